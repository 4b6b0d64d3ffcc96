"""Options of what a method learns from: prompts, images with captions, or preference pairs."""

from pydantic import BaseModel

from rayjobs.options.declaring import EMBEDDED, option
from sharpening.options import Kind

RANK = "rank"
NAMED = "name on the hub, or folder"


class DatasetOptions(BaseModel):
    """What all kinds of training data can be told; names are those of diffusers' scripts."""

    dataset_name: str | None = option(
        None, "data", NAMED, "data set of the library `datasets`: on the hub, of files, or saved to disk"
    )
    dataset_config_name: str | None = option(None, "data", "name", "its configuration", shown="the only one it has")
    max_train_samples: int | None = option(
        None, "data", "examples", "learn from a random choice of so many, the same for the same --seed", shown="all",
        ge=1,
    )  # fmt: skip


class PromptOptions(DatasetOptions):
    """Where prompts come from, for methods that draw their own images."""

    prompts: str = option(
        EMBEDDED, "data", "file or folder", "training prompts: .txt (one a line), .jsonl, .parquet or a folder", "c"
    )
    caption_column: str = option("text", "data", "column", "where the data keep the prompt")


class ShapeOptions(BaseModel):
    """Which shapes given images are learnt in."""

    aspect_ratio_buckets: bool = option(
        False, "data", "switch", "keep the images' shapes, up to 2 : 1; every update is of one shape"
    )


class ImageOptions(ShapeOptions, DatasetOptions):
    """Where images with captions come from."""

    train_data: str = option(
        EMBEDDED, "data", "file or folder", "images with captions to learn from: .parquet, .tar or a folder", "x_0, c"
    )
    train_data_dir: str | None = option(
        None, "data", "folder", "the same, for a folder: of images with metadata.jsonl or .csv, of .tar or .parquet"
    )
    image_column: str = option("image", "data", "column", "where the data keep images: PNG, JPEG or WebP")
    caption_column: str = option("text", "data", "column", "where the data keep their captions")


class PairOptions(ShapeOptions, PromptOptions):
    """Where preference pairs come from."""

    train_data: str = option(
        RANK, "data", "file or folder",
        f"preference pairs to learn from; '{RANK}': the base model draws them for --prompts, the reward ranks them",
    )  # fmt: skip
    dataset_name: str | None = option(
        None, "data", NAMED, "preference pairs to learn from, a data set of the library `datasets`"
    )
    caption_column: str = option("caption", "data", "column", "where files keep the caption or prompt")
    ranked_prompts: int = option(400, "data", "prompts", f"prompts that '{RANK}' draws images for", ge=1)
    ranked_samples: int = option(
        4, "data", "images a prompt", f"images of a prompt, of which '{RANK}' keeps the best and the worst", ge=2
    )

    @property
    def ranks(self) -> bool:
        """Whether the run ranks its pairs itself."""
        return self.train_data == RANK and self.dataset_name is None


DATA: dict[Kind, type[BaseModel]] = {"prompts": PromptOptions, "images": ImageOptions, "pairs": PairOptions}
