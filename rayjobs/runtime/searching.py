"""One search from start to end: check, spread over actors, keep every finished task, write images and cost."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from rayjobs import machine
from rayjobs.command_line import read_config
from rayjobs.comparison.base_model import base_model
from rayjobs.comparison.pool import pool
from rayjobs.comparison.tasks import Answer, SearchTask
from rayjobs.errors import OptionError, RunStopped
from rayjobs.options import EMBEDDED
from rayjobs.options.search import SearchJobOptions
from rayjobs.rewards import reward_plans, scores_alike
from rayjobs.runtime.evaluation import choose
from rayjobs.runtime.labels import label
from rayjobs.runtime.search_scale import FILE as SCALE
from rayjobs.runtime.search_scale import measure_scale, scale_tasks
from rayjobs.validation import check_rewards
from sharpening.evaluation.files import write_bytes, write_json, write_parquet
from sharpening.rewards.terms import reward_column
from sharpening.slots import tasks

CONFIG, PARTS, IMAGES, RESULTS, SUMMARY = "config.json", "parts", "images", "results.parquet", "summary.json"
GRID = 24  # images in the sample grid


class SearchRun:
    """A search and its run folder.

    Args:
        options: As parsed.
    """

    def __init__(self, options: SearchJobOptions) -> None:
        self.options = options.model_copy(update={"reward_config": check_rewards(options)})
        self._mix = options.mix
        self._scale: dict[str, Any] = {}
        self._own = self._search_options()
        self._model = base_model(options, {"guidance_scale": options.guidance_scale})
        self._items, self._texts = self._prompts()
        self.folder = self._claim()
        self._started = time.monotonic()

    def execute(self) -> str:
        """Search.

        Returns:
            What was found, in a few lines.

        Raises:
            RunStopped: If the reward stays down; what was found until then is kept.
        """
        options = self.options
        wanted = self._tasks()
        missing = {number: task for number, task in wanted.items() if not self._part(number).exists()}
        self._say(f"run folder {self.folder}")
        if len(missing) < len(wanted):
            self._say(f"{len(wanted) - len(missing)} of {len(wanted)} tasks were done before")
        if missing:
            with pool(
                label(self.folder.name), options.num_rollout_actors, options.rollout_threads, options,
                reward_plans(options), self._mix, options.reward_timeout,
            ) as actors:  # fmt: skip
                self._search(actors, missing)
        return self._finish(wanted)

    def _search(self, actors: Any, missing: dict[int, SearchTask]) -> None:
        """Have tasks done; each is kept as soon as it and those before it are."""
        from ray.exceptions import RayError

        numbers = list(missing)
        try:
            if self._mix and not self._mix.alone:
                wanted = scale_tasks(self.options, self._model, self._items, self._texts)
                self._scale = measure_scale(self.folder, actors, wanted, self._mix.names)
            asked = [replace(missing[number], sample=self._scale.get("scores", {})) for number in numbers]
            for place, answer in enumerate(actors.each(asked)):
                self._keep(numbers[place], answer)
                self._say(f"searched {place + 1}/{len(numbers)} tasks, mean reward {np.nanmean(answer.rewards):.2f}")
        except RayError as error:
            cause = str(getattr(error, "cause", error)).strip().splitlines()[-1]
            raise RunStopped(cause, f"the same command with --output_dir {self.folder}") from error

    # -- before anything is started ------------------------------------------------------------------------------

    def _search_options(self) -> dict[str, Any]:
        """The search's own options, checked; and whether the budget pays for an image."""
        from sharpening.options import OptionError as MethodError
        from sharpening.search import load_search, search_class

        named = self.options.search_config
        given = read_config(named, "search_config") if named else {}
        given |= {"steps": self.options.rollout_steps, "guidance_scale": self.options.guidance_scale}
        kind = search_class(self.options.search).Options
        unknown = set(given) - set(kind.__dataclass_fields__)
        if unknown:
            known = ", ".join(sorted(kind.__dataclass_fields__))
            raise OptionError("search_config", f"{self.options.search} has no {sorted(unknown)[0]}", f"it has {known}")
        try:
            kind(**given)
        except MethodError as error:
            raise OptionError("search_config", str(error), "correct the value") from error
        search: Any = load_search(self.options.search, **given)
        smallest = search.smallest * search.options.prediction_nfe
        if self.options.budget < smallest:
            reason = f"{self.options.budget} evaluations do not pay for one image"
            raise OptionError("budget", reason, f"pass {smallest} or more")
        return given

    def _prompts(self) -> tuple[list[int], list[str]]:
        """Places of the prompts, and the prompts."""
        from sharpening.data.prompts import PromptFileError, load_prompts
        from sharpening.shapes import assets

        options = self.options
        if options.prompts == EMBEDDED:
            chosen = choose(assets.benchmark(), options.num_prompts)
            return [index for index, _ in chosen], [prompt.prompt for _, prompt in chosen]
        try:
            found = load_prompts(Path(options.prompts).expanduser(), options.caption_column)
        except PromptFileError as error:
            raise OptionError("prompts", str(error), "pass another file") from error
        count = min(options.num_prompts, len(found))
        items = [place * len(found) // count for place in range(count)]
        return items, [found[item] for item in items]

    def _claim(self) -> Path:
        """Make the run folder, or go on with it if it is this search's."""
        options = self.options
        named = options.output_dir or f"runs/search-{time.strftime('%Y%m%d-%H%M%S')}"
        folder = Path(machine.lasting(named)).expanduser()
        path, config = folder / CONFIG, options.config()
        try:
            known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
            folder.mkdir(parents=True, exist_ok=True)
            if known is None and any(folder.iterdir()):
                raise OptionError("output_dir", f"{folder} belongs to another run", "pass another folder")
            kept = {name: type(options).model_fields[name].default for name in options.must_match()}
            differing = [name for name in kept if known and known.get(name, kept[name]) != config.get(name)]
            if known and scores_alike(known.get("reward_config")) != scores_alike(config["reward_config"]):
                differing.append("reward_config")
            if known and differing:
                raise OptionError(
                    differing[0], f"the search in {folder} has {known.get(differing[0])}",
                    "pass that, or another --output_dir",
                )  # fmt: skip
            (folder / PARTS).mkdir(exist_ok=True)
            (folder / IMAGES).mkdir(exist_ok=True)
            write_json(path, config)
        except (OSError, ValueError) as error:
            raise OptionError("output_dir", f"{folder} cannot be used ({error})", "pass another folder") from error
        return folder

    # -- tasks and what they found -------------------------------------------------------------------------------

    def _tasks(self) -> dict[int, SearchTask]:
        options = self.options
        places = tasks(range(len(self._items)), options.rollout_batch_size)
        own = () if options.prompts == EMBEDDED else self._texts
        return {
            number: SearchTask(
                options.search, options.seed, self._model, tuple(self._items[i] for i in part), options.budget,
                self._own, keep=True, prompts=tuple(own[i] for i in part) if own else (),
            )
            for number, part in enumerate(places)
        }  # fmt: skip

    def _part(self, number: int) -> Path:
        return self.folder / PARTS / f"{number:05d}.json"

    def _keep(self, number: int, answer: Answer) -> None:
        """Write a task's images, then what it says about them: a part that is there is whole."""
        from PIL import Image

        task = self._tasks()[number]
        judged = {row.prompt: row for row in answer.judgements}
        rows = []
        for row, item in enumerate(task.items):
            failure = answer.failures.get(item)
            name = None
            if failure is None:
                assert answer.images is not None
                name = f"{IMAGES}/{item:05d}.png"
                buffer = BytesIO()
                Image.fromarray(answer.images[row]).save(buffer, format="PNG")
                write_bytes(self.folder / name, buffer.getvalue())
            found = judged.get(item)
            rows.append({
                "index": item, "prompt": self._texts[self._items.index(item)], "image": name,
                "reward": None if failure else answer.rewards[row], "failure": failure,
                "facts": found.facts if found else None, "all": found.all if found else None,
                "trace": answer.traces[row], **{reward_column(name): told[row] for name, told in answer.parts.items()},
            })  # fmt: skip
        write_json(
            self._part(number),
            {"rows": rows, "nfe": answer.nfe, "images_scored": answer.images_scored, "seconds": answer.seconds},
        )

    def _finish(self, wanted: dict[int, SearchTask]) -> str:
        """Join the parts: results, cost, grid, summary."""
        parts = [json.loads(self._part(number).read_text(encoding="utf-8")) for number in wanted]
        rows = [row for part in parts for row in part["rows"]]
        own = [reward_column(name) for name in (self._mix.names if self._mix else ())]
        names = ("index", "prompt", "image", "reward", "failure", "facts", "all", *own)
        write_parquet(self.folder / RESULTS, {name: [row[name] for row in rows] for name in names})
        found = [row for row in rows if row["failure"] is None]
        self._grid(found[:: max(1, len(found) // GRID)][:GRID])
        summary = {
            "search": self.options.search, "prompts": len(rows), "failed": len(rows) - len(found),
            "metrics": {name: _mean(found, name) for name in ("reward", *own, "facts", "all") if _known(found, name)},
            "nfe": sum(part["nfe"] for part in parts), "nfe_per_image": sum(part["nfe"] for part in parts) / len(rows),
            "images_scored": sum(part["images_scored"] for part in parts),
            "seconds": {stage: sum(part["seconds"].get(stage, 0.0) for part in parts) for stage in parts[0]["seconds"]},
        }  # fmt: skip
        if (self.folder / SCALE).exists():
            summary["nfe_scale"] = json.loads((self.folder / SCALE).read_text(encoding="utf-8"))["nfe"]
        write_json(self.folder / SUMMARY, summary)
        lines = [f"{name}: {v['mean']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for name, v in summary["metrics"].items()]
        return "\n".join([
            f"\n{self.options.search}, {len(found)} of {len(rows)} prompts, {summary['nfe_per_image']:.1f} evaluations "
            f"an image of at most {self.options.budget}", *lines, f"run folder: {self.folder}",
        ])  # fmt: skip

    def _grid(self, rows: Sequence[dict[str, Any]]) -> None:
        from PIL import Image

        from sharpening.evaluation.grids import sample_grid

        if not rows:
            return
        images = np.stack([np.asarray(Image.open(self.folder / row["image"]).convert("RGB")) for row in rows])
        title = f"{self.options.search}, {self.options.budget} evaluations, guidance {self.options.guidance_scale:g}"
        buffer = BytesIO()
        sample_grid(images, [row["prompt"] for row in rows], None, title).save(buffer, format="PNG")
        write_bytes(self.folder / "samples.png", buffer.getvalue())

    def _say(self, text: str) -> None:
        print(f"search: {time.monotonic() - self._started:5.0f} s  {text}", file=sys.stderr, flush=True)


def _known(rows: Sequence[dict[str, Any]], name: str) -> bool:
    return sum(row[name] is not None for row in rows) > 1


def _mean(rows: Sequence[dict[str, Any]], name: str) -> dict[str, float]:
    from dataclasses import asdict

    from sharpening.evaluation.statistics import interval

    return asdict(interval([float(row[name]) for row in rows if row[name] is not None]))
