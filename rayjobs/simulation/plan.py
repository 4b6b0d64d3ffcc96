"""A capacity plan: every layout that was asked for, simulated, as a table, a picture, and a recommendation."""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rayjobs import machine
from rayjobs.errors import OptionError
from rayjobs.simulation.calibration import calibrate
from rayjobs.simulation.model import Outcome, simulate
from rayjobs.simulation.options import CapacityOptions, per
from rayjobs.simulation.stages import Layout, Stages

JSON, PICTURE = "capacity.json", "capacity.png"
SATURATED = 0.9  # share of time from which a part counts as saturated
NEAR = 0.95  # of the best throughput: what costs less and reaches it is recommended
REMEDIES = {
    "reward": "more --reward_replicas help",
    "learner": "more --num_learners help, or more --prompts_per_update for a step that learns more",
    "network": "--broadcast tree, a faster line, or smaller weights (LoRA) help",
    "coordinator": "a larger --rollout_batch_size makes fewer messages",
    "tasks": "a smaller --rollout_batch_size, or more --prompts_per_update, make more of them",
}
NAMES = {"tasks": "the number of tasks", "network": "the head's line"}
HEADER = (
    "actors", "learners", "replicas", "staleness", "s/update", "updates/h", "images/s", "each", "rollout", "reward",
    "learner", "network", "queue", "saturated",
)  # fmt: skip


def run_plan(options: CapacityOptions) -> str:
    """Simulate what was asked for, and write it down.

    Args:
        options: What was asked for.

    Returns:
        What to print.

    Raises:
        OptionError: If the run or an option cannot be used.
    """
    if options.run is None:
        raise OptionError("run", "nothing says which run's stage times to use", "pass its folder as first argument")
    stages, measured, notes = calibrate(options.run)
    layouts = list(asked_for(options, measured))
    outcomes = [simulate(stages, layout, options.updates, options.seed) for layout in layouts]
    folder = results_folder(options)
    folder.mkdir(parents=True, exist_ok=True)
    best = recommended(outcomes)
    write_json(folder / JSON, stages, measured, outcomes, best)
    from rayjobs.simulation.picture import draw

    (folder / PICTURE).write_bytes(draw(outcomes))
    told = [describe(stages), *(f"note: {note}" for note in notes), "", *table(outcomes), "", advice(outcomes, best)]
    return "\n".join([*told, "", f"results: {folder / JSON} and {folder / PICTURE}"])


def results_folder(options: CapacityOptions) -> Path:
    """Where results go."""
    if options.output_dir:
        return machine.lasting(options.output_dir)
    run = Path(str(options.run)).expanduser()
    return run if run.is_dir() else machine.lasting(f"runs/capacity-{run.stem}")


def asked_for(options: CapacityOptions, measured: Layout) -> Sequence[Layout]:
    """Every layout that the options ask for.

    Args:
        options: What was asked for.
        measured: The layout of the run that was measured.

    Returns:
        All combinations, in the order of the options.

    Raises:
        OptionError: If options contradict one another.
    """
    for name, instead, given in (
        ("actors_per_replica", "reward_replicas", options.actors_per_replica and options.reward_replicas),
        ("actors_per_learner", "learners", options.actors_per_learner and options.learners),
        ("prompts_per_actor", "prompts_per_update", options.prompts_per_actor and options.prompts_per_update),
    ):
        if given:
            raise OptionError(name, f"and --{instead} both say how many there are", "leave one of them out")
    fixed: dict[str, Any] = {
        "rollout_batch_size": options.rollout_batch_size, "reward_concurrency": options.reward_concurrency,
        "routing": options.routing, "actors_per_node": options.actors_per_node, "bandwidth": options.bandwidth,
    }  # fmt: skip
    base = replace(measured, **{name: value for name, value in fixed.items() if value is not None})
    base = replace(base, tree=options.broadcast == "tree")
    if options.network_gbit is not None and not base.actors_per_node:
        raise OptionError("network_gbit", "all actors are on one machine, without a network", "pass --actors_per_node")
    prompts = options.prompts_per_update or measured.prompts_per_update
    combinations = itertools.product(
        options.learners or (measured.learners,), options.reward_replicas or (measured.reward_replicas,),
        options.staleness, options.actors,
    )  # fmt: skip
    return [
        replace(
            base, actors=actors, staleness=staleness, learners=per(actors, options.actors_per_learner, learners),
            reward_replicas=per(actors, options.actors_per_replica, replicas),
            prompts_per_update=prompts if options.prompts_per_actor is None else actors * options.prompts_per_actor,
        )
        for learners, replicas, staleness, actors in combinations
    ]  # fmt: skip


def saturated(outcome: Outcome) -> str:
    """What limits a layout.

    Args:
        outcome: Of a simulation.

    Returns:
        The part that works nine tenths of the time or more; else `tasks` where there are more actors than tasks that
        may run at a time, and `turns` where all wait for one another.
    """
    part, layout = outcome.bottleneck, outcome.layout
    if outcome.busy[part] >= SATURATED:
        return part
    return "tasks" if layout.actors > layout.tasks * (layout.staleness + 1) else "turns"


def recommended(outcomes: Sequence[Outcome]) -> Outcome:
    """The layout with the fewest processes within 5 % of the best throughput; of equal ones the least stale.

    Args:
        outcomes: Of simulations.

    Returns:
        One of them.
    """
    best = max(outcome.images_per_second for outcome in outcomes)
    near = [outcome for outcome in outcomes if outcome.images_per_second >= NEAR * best]
    return min(near, key=lambda outcome: (processes(outcome.layout), outcome.layout.staleness))


def processes(layout: Layout) -> int:
    """Processes that want a device of their own."""
    return layout.actors + layout.reward_replicas + layout.learners


def describe(stages: Stages) -> str:
    """The stage times in words."""
    task = (
        f"a task of {stages.rollout_batch_size} prompts: {stages.before_reward:.3g} s to the images, "
        f"{stages.reward:.3g} s reward, {stages.after_reward:.3g} s after it (spread {stages.spread:.0%}), "
        f"{stages.hand_over:.3g} s hand-over"
    )
    update = (
        f"an update of {stages.prompts_per_update} prompts on {stages.num_learners} learners: {stages.learn:.3g} s "
        f"learning, {stages.publish + stages.finish:.3g} s publishing, {stages.checkpoint:.3g} s a checkpoint; "
        f"weights {stages.weights_bytes / 1e9:.3g} GB"
    )
    return f"{task}\n{update}"


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """The outcomes as aligned lines: images a second, those of each process, and shares in which the parts are idle.

    Args:
        outcomes: Of simulations.

    Returns:
        Lines, the header first.
    """
    rows = [HEADER, *(cells(outcome) for outcome in outcomes)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)) for row in rows]
    lines = [f"{line}  {row[-1]}" for line, row in zip(lines, rows, strict=True)]
    start = sum(widths[:8]) + 2 * 8
    return [" " * start + "idle share", *lines]


def cells(outcome: Outcome) -> tuple[str, ...]:
    """One row of the table."""
    layout, idle = outcome.layout, {part: 1 - share for part, share in outcome.busy.items()}
    return (
        str(layout.actors), str(layout.learners), str(layout.reward_replicas), f"{outcome.staleness:.3g}",
        f"{outcome.seconds_per_update:.3g}", f"{3600 / outcome.seconds_per_update:.4g}",
        f"{outcome.images_per_second:.4g}", f"{outcome.images_per_second / processes(layout):.3g}",
        *(f"{abs(idle[part]):.0%}" for part in ("rollout", "reward", "learner", "network")),
        f"{outcome.reward_queue:.2g}", saturated(outcome),
    )  # fmt: skip


def advice(outcomes: Sequence[Outcome], best: Outcome) -> str:
    """What saturates first, and which settings to choose.

    Args:
        outcomes: Of simulations.
        best: The recommended one.

    Returns:
        Two lines.
    """
    limits = [o for o in outcomes if saturated(o) not in ("rollout", "turns")]
    first = min(limits, key=lambda outcome: outcome.layout.actors, default=None)
    layout = best.layout
    flags = (
        f"--num_rollout_actors {layout.actors} --num_learners {layout.learners} "
        f"--reward_replicas {layout.reward_replicas} --staleness {layout.staleness} "
        f"--prompts_per_update {layout.prompts_per_update} --rollout_batch_size {layout.rollout_batch_size}"
    )
    told = "nothing but the actors saturates: more of them help"
    if first is not None:
        what = saturated(first)
        name = NAMES.get(what, f"the {what}")
        told = f"as actors are added, first {name} saturates, at {first.layout.actors} actors; {REMEDIES[what]}"
    top = max(outcome.images_per_second for outcome in outcomes)
    return (
        f"{told}\nrecommended, with the fewest processes within {1 - NEAR:.0%} of the fastest "
        f"({best.images_per_second:.4g} of {top:.4g} images/s): {flags}"
    )


def write_json(path: Path, stages: Stages, measured: Layout, outcomes: Sequence[Outcome], best: Outcome) -> None:
    """Write everything for programs."""

    def plain(layout: Layout) -> dict[str, Any]:  # JSON has no infinity
        return asdict(layout) | ({"bandwidth": None} if math.isinf(layout.bandwidth) else {})

    def row(outcome: Outcome) -> dict[str, Any]:
        derived = {"actor_idle": outcome.actor_idle, "learner_wait": outcome.learner_wait}
        return asdict(outcome) | {"layout": plain(outcome.layout), "saturated": saturated(outcome)} | derived

    contents = {
        "stages": asdict(stages), "measured": plain(measured), "outcomes": [row(o) for o in outcomes],
        "recommended": row(best),
    }  # fmt: skip
    path.write_text(json.dumps(contents, indent=2, allow_nan=False) + "\n", encoding="utf-8")
