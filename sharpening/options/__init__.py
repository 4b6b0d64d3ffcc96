"""Options of the methods and of training, checked where they are made. Imports no torch: command lines read it."""

from sharpening.options.base import Kind, MethodOptions, described
from sharpening.options.rlhf import SharpeningOptions
from sharpening.options.training import OptionError, TrainingOptions

__all__ = ["Kind", "MethodOptions", "OptionError", "SharpeningOptions", "TrainingOptions", "described"]
