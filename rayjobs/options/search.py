"""The options of `rayjobs/search.py`. Nothing heavy is imported."""

from typing import Any, ClassVar

from pydantic import field_validator

from rayjobs.options.cluster import RayOptions
from rayjobs.options.declaring import EMBEDDED, option
from rayjobs.options.model import ModelOptions
from rayjobs.options.reward import RewardOptions
from sharpening.search import SEARCHES

GROUPS = {
    "model": "the diffusion model that is searched with, unchanged",
    "prompts": "what it is asked to draw",
    "search": "how images are searched for",
    "reward": "who judges the images",
    "ray": "processes and where they run",
    "output": "the run folder",
}


class SearchJobOptions(RewardOptions, ModelOptions, RayOptions):
    """What a search is told."""

    groups: ClassVar[dict[str, str]] = GROUPS
    about: ClassVar[str] = (
        "Searches at inference: spends a budget of network evaluations on each image, keeps the one that the reward "
        "likes best. A search that was interrupted goes on where it was when it is started again."
    )

    seed: int = option(0, "model", "integer", "run seed; a prompt's noise depends on it and on its place alone", ge=0)
    prompts: str = option(
        EMBEDDED, "prompts", "file", "prompts: .txt (one a line), .jsonl or .parquet; embedded: the benchmark", "c"
    )
    caption_column: str = option("text", "prompts", "column", "where a .jsonl or .parquet file keeps the prompt")
    num_prompts: int = option(48, "prompts", "prompts", "how many of them, spread over the whole list", ge=1)
    rollout_batch_size: int = option(6, "prompts", "prompts a task", "prompts that are searched together", ge=1)
    search: str = option("random", "search", "name", f"one of {', '.join(SEARCHES)}; random is best of N")
    budget: int = option(
        192, "search", "network evaluations an image", "what each image may cost; a guided evaluation counts twice",
        "NFE", ge=1,
    )  # fmt: skip
    rollout_steps: int = option(12, "search", "denoising steps", "sampler steps of an image", "T", ge=1)
    guidance_scale: float = option(1.0, "search", "-", "classifier-free guidance; 1 is none", "w", ge=0)
    search_config: str | None = option(
        None, "search", "JSON or YAML file", 'the search\'s own options, such as {"temperature": 2}'
    )
    num_rollout_actors: int = option(
        2, "ray", "processes", "actors that search; never changes the result", resume=False, ge=1
    )
    rollout_threads: int = option(1, "ray", "CPU threads", "threads of an actor", ge=1)
    output_dir: str | None = option(
        None, "output", "folder", "the run folder", shown="runs/search-<date>-<time>", resume=False
    )

    @field_validator("search")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in SEARCHES:
            raise ValueError(f"unknown search, choose one of {', '.join(SEARCHES)}")
        return value

    def config(self) -> dict[str, Any]:
        """What `config.json` of the run folder holds."""
        return self.model_dump(mode="json", exclude={"output_dir", *RayOptions.model_fields})
