"""What a run's parts cost, as they report it: into the run folder's account, and into Prometheus' counters."""

from typing import TYPE_CHECKING, Any

from rayjobs.runtime.counters import RunCounters
from rayjobs.runtime.experience import Summary
from sharpening.evaluation.run_folder import RunFolder

if TYPE_CHECKING:  # it imports torch, which the coordinator does without
    from sharpening.methods.rounds import Round


class Accounts:
    """Adds up; the account goes on from what the folder holds.

    Args:
        folder: The run folder.
        counters: The run's counters.
    """

    def __init__(self, folder: RunFolder, counters: RunCounters) -> None:
        self._folder, self._counters = folder, counters
        self._cost = folder.read_cost()

    def rollout(self, summary: Summary) -> None:
        """Count what a rollout cost, also one that comes too late to be learnt from.

        Args:
            summary: What its actor tells.
        """
        self._counters.rollout(summary)
        for stage, evaluations in summary.nfe.items():
            self._cost.add_nfe(stage, evaluations)
        self._cost.add_seconds(summary.seconds)
        self._cost.add_images(summary.images_scored)
        self._cost.note_memory("rollout", summary.peak_memory)
        if summary.peak_gpu_memory:
            self._cost.note_memory("rollout_gpu", summary.peak_gpu_memory)

    def round(self, made: "Round") -> None:
        """Count what the beginning of a round cost.

        Args:
            made: What its actor made.
        """
        self._cost.add_nfe("rank", made.nfe)
        self._cost.add_seconds({f"rank_{stage}": spent for stage, spent in made.seconds.items()})
        self._cost.add_images(made.images_scored)

    def learner(self, row: dict[str, Any]) -> None:
        """Count what an update cost the learner.

        Args:
            row: Its metrics.
        """
        self._cost.add_nfe("learn", int(row.get("nfe_learn", 0)))
        self._cost.add_seconds({stage: row.get(f"seconds_{stage}", 0.0) for stage in ("wait", "learn", "publish")})
        for role in ("learner", "learner_gpu"):
            if f"peak_memory_{role}" in row:
                self._cost.note_memory(role, row[f"peak_memory_{role}"])

    def write(self) -> None:
        """Write the account to the run folder.

        Raises:
            OSError: If the disk refuses.
        """  # noqa: DOC502
        self._folder.write_cost(self._cost)
