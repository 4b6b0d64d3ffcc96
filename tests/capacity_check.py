"""The capacity plan beside real runs: calibrated by the first run alone, it foretells the others (docs/capacity.md).

    python -m tests.capacity_check runs/capacity-check

Takes some ten minutes on a machine that does nothing else. A run that is there already is not made again.
"""

import argparse
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev

from scipy.special import stdtrit

from rayjobs.simulation.calibration import calibrate
from rayjobs.simulation.model import simulate
from sharpening.evaluation.comparison.markdown import markdown_table
from sharpening.evaluation.files import write_json
from sharpening.evaluation.metrics import read_metrics
from tests.runs import ROOT, Models, flags, make_models

ROWS = ((1, 1, 0), (2, 2, 0), (4, 4, 0), (4, 2, 0), (4, 4, 1))
"""Actors, replicas of the reward, staleness."""
UPDATES = 7
SIMULATED = 200  # updates, so that the simulation's own chance does not show


def measure(models: Models, folder: Path, actors: int, replicas: int, staleness: int) -> list[float]:
    """Seconds of each update of a real run.

    Args:
        models: the small models.
        folder: the run folder; what a finished run left there is read again.
        actors: rollout actors.
        replicas: of the reward, which waits 0.25 s an image.
        staleness: updates that rollouts may lag behind.

    Returns:
        One an update; without the first one, which pays for starting, and at staleness 1 without the second, since its
        experience was made beside the first's.
    """
    if not (folder / "summary.json").exists():
        arguments = flags(
            models, folder, reward="tests.waiting_reward:WaitingReward", reward_model=None, prompts_per_update=8,
            num_rollout_actors=actors, reward_replicas=replicas, staleness=staleness, max_train_steps=UPDATES,
            checkpointing_steps=UPDATES,
        )  # fmt: skip
        subprocess.run([sys.executable, str(ROOT / "rayjobs" / "rlhf.py"), *arguments], cwd=ROOT, check=True)
    return [row["seconds"] for row in read_metrics(folder)][1 + staleness :]


def main() -> None:
    """Run, simulate, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the runs and check.json go")
    folder = parser.parse_args().folder.resolve()
    models = make_models(folder / "models")
    runs = {row: folder / "actors-{}-replicas-{}-staleness-{}".format(*row) for row in ROWS}
    measured = {row: measure(models, run, *row) for row, run in runs.items()}
    stages, first, _ = calibrate(str(runs[ROWS[0]]))
    cells, kept = [], []
    for (actors, replicas, staleness), seconds in measured.items():
        layout = replace(first, actors=actors, reward_replicas=replicas, staleness=staleness)
        simulated = simulate(stages, layout, SIMULATED, 0).seconds_per_update
        mean, half = fmean(seconds), float(stdtrit(len(seconds) - 1, 0.975)) * stdev(seconds) / math.sqrt(len(seconds))
        kept.append({"layout": asdict(layout), "simulated": simulated, "mean": mean, "half": half, "seconds": seconds})
        within = "yes" if abs(simulated - mean) <= half else "no"
        numbers = [f"{simulated:.2f}", f"{mean:.2f} ± {half:.2f}", within]
        cells.append([str(actors), str(replicas), str(staleness), *numbers])
    write_json(folder / "check.json", {"rows": kept})
    print(markdown_table(["actors", "replicas", "staleness", "simulated, s an update", "measured", "within"], cells))


if __name__ == "__main__":
    main()
