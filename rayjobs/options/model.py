"""Options that say which model there is, the same for every job that draws with one. Nothing heavy is imported."""

from rayjobs.options.declaring import EMBEDDED, Options, option


class ModelOptions(Options):
    """Which pipeline, at which size, with which VAE."""

    pretrained_model_name_or_path: str = option(EMBEDDED, "model", "folder or hub id", "diffusers pipeline", "θ")
    resolution: int | None = option(
        None, "model", "pixels", "width and height of all images of the run", "H, W", "the model's", ge=8
    )
    pretrained_vae_model_name_or_path: str | None = option(
        None, "model", "folder or hub id",
        "VAE (AutoencoderKL) in place of the pipeline's own, for all images of the run and in pipelines that it saves",
        shown="the pipeline's own",
    )  # fmt: skip
