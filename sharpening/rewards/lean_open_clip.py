"""open_clip, without wandb, which timm would import for it: half a second of every process that scores images."""

from sharpening.startup import without

with without("wandb"):
    import open_clip

__all__ = ["open_clip"]
