"""What jobs can be told: every option with its unit, bounds, symbol and sentence, a file a group of them.

From these models the command line, its help and its checks are made (`rayjobs.command_line`). Nothing heavy is loaded.
"""

from rayjobs.options.cluster import RayOptions
from rayjobs.options.data import RANK, DatasetOptions, ImageOptions, PairOptions, PromptOptions, ShapeOptions
from rayjobs.options.declaring import EMBEDDED, SECRET_URL, Options, option
from rayjobs.options.evaluation import OWN_IMAGES
from rayjobs.options.job import GROUPS, PLACES, JobOptions, RLHFOptions, options_class
from rayjobs.options.model import ModelOptions
from rayjobs.options.reward import RewardOptions
from rayjobs.options.search import SearchJobOptions

__all__ = [
    "EMBEDDED",
    "GROUPS",
    "OWN_IMAGES",
    "PLACES",
    "RANK",
    "SECRET_URL",
    "DatasetOptions",
    "ImageOptions",
    "JobOptions",
    "ModelOptions",
    "Options",
    "PairOptions",
    "PromptOptions",
    "RLHFOptions",
    "RayOptions",
    "RewardOptions",
    "SearchJobOptions",
    "ShapeOptions",
    "option",
    "options_class",
]
