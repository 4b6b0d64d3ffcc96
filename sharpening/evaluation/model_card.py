"""The model card of a run's pipeline: what it is, how much better it became, and the command that made it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharpening.evaluation.results import Result, result_rows
from sharpening.evaluation.run_folder import SUMMARY, VERSIONS, RunFolder

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

FAMILY_TAGS = {
    "StableDiffusionPipeline": ("stable-diffusion", "stable-diffusion-diffusers"),
    "StableDiffusionXLPipeline": ("stable-diffusion-xl", "stable-diffusion-xl-diffusers"),
    "StableDiffusion3Pipeline": ("sd3", "sd3-diffusers"),
    "FluxPipeline": ("flux", "flux-diffusers"),
    "PixArtSigmaPipeline": ("pixart-sigma",),
}
LICENSE = ("license", "license_name", "license_link")
INDEX = "model_index.json"
ADAPTERS = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json")
"""Files of LoRA weights: as diffusers' pipelines load them, or, for those that cannot, as peft does."""
HEAD = ("| metric | before | after | difference | 95 % interval |", "|---|--:|--:|--:|--:|")
LEGEND = (
    "facts: share of a prompt's facts that hold; all: share of prompts of which every fact holds. Intervals are of the "
    "mean difference, on the same prompts and noise."
)


@dataclass(frozen=True)
class Card:
    """What a card says that the run folder does not.

    Attributes:
        name: the model's name.
        base: folder or hub id of the model it was made from; `None` for the embedded one.
        about: the method in a sentence.
        command: the command line of the run.
        reward: who judged, as `--reward` has it.
        grids: picture files beside the card.
        config: file beside the card with every option.
    """

    name: str
    base: str | None
    about: str
    command: str
    reward: str
    grids: tuple[str, ...] = ()
    config: str = ""


def write_card(folder: RunFolder, card: Card) -> Path:
    """Write `README.md` into the pipeline's folder.

    Args:
        folder: the run folder, with the pipeline and `summary.json`.
        card: what else the card says.

    Returns:
        The file.
    """
    from huggingface_hub import ModelCard, ModelCardData

    summary = json.loads((folder.path / SUMMARY).read_text(encoding="utf-8"))
    lora = adapter(folder.pipeline)
    data = ModelCardData(
        model_name=card.name, library_name="diffusers", pipeline_tag="text-to-image",
        base_model=card.base if card.base and not Path(card.base).expanduser().exists() else None,
        tags=tags(folder.pipeline, card.base, lora is not None), eval_results=measured(summary, card.reward) or None,
        **_license(card.base),
    )  # fmt: skip
    path = folder.pipeline / "README.md"
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body(folder, card, summary, lora)}").save(path)
    return path


def adapter(pipeline: Path) -> str | None:
    """The file of LoRA weights in a saved pipeline's folder.

    Args:
        pipeline: the folder.

    Returns:
        Its name; `None` where there is none.
    """
    return next((name for name in ADAPTERS if (pipeline / name).is_file()), None)


def tags(pipeline: Path, base: str | None, lora: bool) -> list[str]:
    """Tags by which the hub finds the model.

    Args:
        pipeline: its folder.
        base: the model it was made from, for the family where the folder does not say.
        lora: whether adapters were trained.

    Returns:
        The tags.
    """
    places = [pipeline, *([Path(base).expanduser()] if base else [])]
    index = next((place / INDEX for place in places if (place / INDEX).is_file()), None)
    name = json.loads(index.read_text(encoding="utf-8")).get("_class_name", "") if index else ""
    family = FAMILY_TAGS.get(name, (name.removesuffix("Pipeline").lower(),) if name else ())
    return ["diffusers", "text-to-image", "diffusion-sharpening", *family, *(["lora"] if lora else [])]


def measured(summary: dict[str, Any], reward: str) -> list[EvalResult]:
    """The results over all prompts, as the hub's metadata has them.

    Args:
        summary: contents of `summary.json`.
        reward: who judged.

    Returns:
        One entry a metric and guidance scale.
    """
    from huggingface_hub import EvalResult

    names = {"reward": f"reward ({reward})", "facts": "share of facts", "all": "share of prompts all right"}
    return [
        EvalResult(
            task_type="text-to-image", dataset_type="held-out-prompts", dataset_name=f"{row.prompts} held-out prompts",
            metric_type=row.metric, metric_name=f"{names[row.metric]}, guidance {row.guidance}",
            metric_value=round(row.after, 4),
        )
        for row in result_rows(summary)
        if row.metric in names
    ]  # fmt: skip


def _license(base: str | None) -> dict[str, Any]:
    """The licence that the base model's own card states; nothing where it states none."""
    if base is None:
        return {}
    from huggingface_hub import ModelCard, try_to_load_from_cache

    folder = Path(base).expanduser()
    readme = folder / "README.md" if folder.is_dir() else try_to_load_from_cache(base, "README.md")
    if not isinstance(readme, (str, Path)) or not Path(readme).is_file():
        return {}
    stated = ModelCard.load(readme).data.to_dict()
    return {name: stated[name] for name in LICENSE if name in stated}


def body(folder: RunFolder, card: Card, summary: dict[str, Any], lora: str | None) -> str:
    """The card's text.

    Args:
        folder: the run folder.
        card: what the run folder does not say.
        summary: contents of `summary.json`.
        lora: file of LoRA weights, where there is one.

    Returns:
        Markdown.
    """
    base = f"`{card.base}`" if card.base else "the embedded model of trajectory-sharpening"
    parts = [f"# {card.name}\n\nFine-tuned from {base}. {card.about}", _usage(card, lora)]
    if lora:
        parts[0] += f" LoRA adapters were trained; they are merged into the pipeline, and alone in `{lora}`."
    if tables := _tables(summary, card.reward):
        parts.append(f"## Results\n\n{tables}")
    if card.grids:
        images = "\n\n".join(f"![{Path(name).stem.replace('_', ' ')}](./{name})" for name in card.grids)
        parts.append(f"## Samples\n\nHeld-out prompts at fixed noise, with the reward beneath each image.\n\n{images}")
    parts.append(f"## Training\n\n```\n{card.command}\n```\n\n{_training(folder, summary)}")
    if card.config:
        parts[-1] += f" Every option is in `{card.config}`."
    return "\n\n".join(parts) + "\n"


def _usage(card: Card, lora: str | None) -> str:
    """How to load the model with diffusers, and adapters that diffusers cannot load with peft."""
    lines = [
        "from diffusers import DiffusionPipeline",
        "",
        f'pipeline = DiffusionPipeline.from_pretrained("{card.name}")',
    ]
    alone = (
        "",
        "# or the adapters alone, on the base model",
        f'pipeline = DiffusionPipeline.from_pretrained("{card.base or "base"}")',
    )
    if lora == ADAPTERS[0]:
        lines += [*alone, f'pipeline.load_lora_weights("{card.name}", weight_name="{lora}")']
    elif lora:
        lines += [*alone, f'adapted = PeftModel.from_pretrained(pipeline.transformer, "{card.name}")']
        lines += ["pipeline.transformer = adapted.get_base_model()"]
        lines.insert(1, "from peft import PeftModel")
    code = "\n".join([*lines, "", 'image = pipeline("a red circle").images[0]'])
    return f"```python\n{code}\n```"


def _tables(summary: dict[str, Any], reward: str) -> str:
    """A table a guidance scale."""
    blocks: dict[str, list[str]] = {}
    for row in result_rows(summary):
        block = blocks.setdefault(row.guidance, [f"Guidance {row.guidance}: {row.prompts} held-out prompts\n", *HEAD])
        block.append(_line(row))
    tables = ["\n".join(block) for block in blocks.values()]
    return "\n\n".join([*tables, f"reward: `{reward}`; {LEGEND}"] if tables else [])


def _line(row: Result) -> str:
    """A metric's line; shares need three decimals, scores of tens or hundreds two."""
    digits = 3 if max(abs(row.before), abs(row.after)) <= 1.5 else 2
    means = f"{row.before:.{digits}f} | {row.after:.{digits}f} | {row.difference:+.{digits}f}"
    return f"| {row.metric.replace('_', ' ')} | {means} | [{row.low:+.{digits}f}, {row.high:+.{digits}f}] |"


def _training(folder: RunFolder, summary: dict[str, Any]) -> str:
    """How long it took, and with what."""
    versions = json.loads((folder.path / VERSIONS).read_text(encoding="utf-8"))
    packages = ", ".join(
        f"{name} {versions['packages'][name]}"
        for name in ("torch", "diffusers", "ray")
        if versions["packages"].get(name)
    )
    return (
        f"{summary['updates']} updates, {summary['seconds']:.0f} seconds, {summary['nfe']:,} network evaluations with "
        f"evaluation; {packages}."
    )
