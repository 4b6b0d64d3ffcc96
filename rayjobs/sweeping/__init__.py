"""Sweeps: one fine-tuning job many times, with other options, under Ray Tune."""
