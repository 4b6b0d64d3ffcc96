"""Stage times of a run: from its folder, or from a file that states them."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rayjobs.command_line import read_config
from rayjobs.errors import OptionError
from rayjobs.simulation.stages import Layout, Stages
from sharpening.evaluation.metrics import read_metrics

NAME = "run"
LEARNER_STAGES = ("wait", "learn", "publish")
STARTING = 1  # the first update pays for starting up
FEWEST = 4  # updates that a calibration needs
DENOISERS = ("unet", "transformer")


def calibrate(path: str) -> tuple[Stages, Layout, list[str]]:
    """Read a run's stage times.

    Args:
        path: A run folder, or a JSON or YAML file of `Stages` and `Layout` by their names.

    Returns:
        Its stage times, how it was laid out, and what a reader should know about them.

    Raises:
        OptionError: If it is neither, or too short.
    """  # noqa: DOC502
    place = Path(path).expanduser()
    return of_folder(place) if place.is_dir() else of_file(str(place))


def of_file(path: str) -> tuple[Stages, Layout, list[str]]:
    """Read stage times that were stated, not measured.

    Args:
        path: A JSON or YAML file with `about`, `stages` and `layout`.

    Returns:
        Stage times, layout and notes.

    Raises:
        OptionError: If something in it is unknown or absent.
    """
    values = read_config(path, NAME)
    made: list[Any] = []
    for section, kind in (("stages", Stages), ("layout", Layout)):
        given = values.get(section)
        if not isinstance(given, dict):
            raise OptionError(NAME, f"{path} has no section '{section}'", f"write a mapping of {kind.__name__} there")
        known = {f.name for f in fields(kind)}
        unknown = sorted(set(given) - known)
        if unknown:
            raise OptionError(NAME, f"{path} names '{unknown[0]}' under {section}", f"use {', '.join(sorted(known))}")
        try:
            made.append(kind(**given))
        except TypeError as error:
            raise OptionError(NAME, f"{path}, {section}: {error}", "add what is missing") from error
    return made[0], made[1], [f"stated, not measured: {values.get('about', path)}"]


def of_folder(folder: Path) -> tuple[Stages, Layout, list[str]]:
    """Read the stage times that a run measured of itself.

    Args:
        folder: A run folder.

    Returns:
        Stage times, layout and notes.

    Raises:
        OptionError: If it is no run folder, or the run made too few updates.
    """
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        rows = read_metrics(folder)
    except (OSError, ValueError) as error:
        raise OptionError(NAME, f"{folder} is no run folder ({error})", "pass the folder of a run") from error
    if len(rows) < STARTING + FEWEST:
        raise OptionError(
            NAME, f"the run in {folder} made {len(rows)} updates", f"pass one of {STARTING + FEWEST} or more"
        )
    layout = Layout(
        actors=values["num_rollout_actors"], reward_replicas=values["reward_replicas"],
        learners=values["num_learners"], staleness=values["staleness"],
        prompts_per_update=values["prompts_per_update"], rollout_batch_size=values["rollout_batch_size"],
        checkpointing_steps=values["checkpointing_steps"],
    )  # fmt: skip
    rows = rows[STARTING:]
    size = sum(file.stat().st_size for part in DENOISERS for file in (folder / "pipeline" / part).glob("*.safetensors"))
    return of_rows(rows, layout, size)


def of_rows(
    rows: Sequence[Mapping[str, Any]], layout: Layout, weights_bytes: float
) -> tuple[Stages, Layout, list[str]]:
    """Tell stage times from metrics.

    Rollout stages are means over updates of what the actors measured. What the learner waited for experience beyond
    them is the hand-over: messages, copies, new weights taken over. What an update took beyond the learner's own
    stages is the coordinator's taking the weights in, and in some updates a checkpoint. Medians leave out the updates
    in which something else happened.

    Args:
        rows: A row an update, without the first.
        layout: How the run was laid out.
        weights_bytes: Of a version; 0 where unknown.

    Returns:
        Stage times, layout and notes.
    """
    notes = []
    stages = {
        name.removeprefix("seconds_")
        for row in rows
        for name in row
        if name.startswith("seconds_") and name.removeprefix("seconds_") not in LEARNER_STAGES
    }
    # A row's stage seconds are sums over tasks divided by the number of actors.
    per_task = {
        stage: statistics.fmean(row.get(f"seconds_{stage}", 0.0) for row in rows) * layout.actors / layout.tasks
        for stage in stages
    }
    reward, after = per_task.pop("reward", 0.0), per_task.pop("reference", 0.0)
    before = sum(per_task.values())
    sums = [sum(row.get(f"seconds_{stage}", 0.0) for stage in stages - {"reward"}) for row in rows]
    # The tasks' own spread: that of a sum of independent tasks shrinks with their number.
    spread = statistics.stdev(sums) / statistics.fmean(sums) * layout.tasks**0.5 if statistics.fmean(sums) else 0.0
    wait, learn, publish = (statistics.median(row[f"seconds_{stage}"] for row in rows) for stage in LEARNER_STAGES)
    beside = [row["seconds"] - sum(row[f"seconds_{stage}"] for stage in LEARNER_STAGES) for row in rows]
    finish = max(0.0, statistics.median(beside))
    due = [b for b, row in zip(beside, rows, strict=True) if (row["update"]) % layout.checkpointing_steps == 0]
    rounds = -(-layout.tasks // layout.actors)
    hand_over = max(0.0, wait / rounds - before - reward - after)
    if layout.staleness:
        hand_over = 0.0
        notes.append("rollouts and learning overlapped, so the hand-over between them is unknown and taken as 0 s")
    if layout.actors > 1:
        notes.append("several actors: the reward's seconds hold waiting for one another; one actor measures it purely")
    images = statistics.fmean(row["images_scored"] for row in rows) / layout.prompts_per_update
    found = Stages(
        prompts_per_update=layout.prompts_per_update, rollout_batch_size=layout.rollout_batch_size,
        images_per_prompt=images, num_learners=layout.learners, before_reward=before, reward=reward,
        after_reward=after, spread=spread, hand_over=hand_over, learn=learn, publish=publish, finish=finish,
        checkpoint=max(0.0, statistics.median(due) - finish) if due else 0.0, weights_bytes=weights_bytes,
        gradient_bytes=weights_bytes,
    )  # fmt: skip
    return found, layout, notes
