"""DeepSpeed, without mlflow, which its autotuner would import: two seconds of every learner."""

from sharpening.startup import without

with without("mlflow"):
    import deepspeed

__all__ = ["deepspeed"]
