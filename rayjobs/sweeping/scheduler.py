"""ASHA in a sweep that may be interrupted."""

from pathlib import Path
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler

from rayjobs.sweeping.space import run_name
from rayjobs.sweeping.trial import METRIC, TIME, of_config
from sharpening.evaluation.run_folder import RunFolder


class ResumableASHA(AsyncHyperBandScheduler):
    """ASHA that remembers what the runs of an interrupted sweep had reached.

    Tune restores trials and search, and begins with an empty scheduler: the next run would be held against nothing.
    What is known of runs that have ended is in their folders.

    Args:
        runs: Folder of the runs.
        **told: What `AsyncHyperBandScheduler` is told.
    """

    def __init__(self, runs: str, **told: Any) -> None:
        super().__init__(**told)
        self._runs = Path(runs)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Take a trial in, with what it has reported where it has ended.

        Args:
            tune_controller: Tune's.
            trial: Tune's.
        """
        super().on_trial_add(tune_controller, trial)
        if trial.status != "TERMINATED":
            return
        for look in RunFolder(self._runs / run_name(*of_config(trial.config))).validation():
            if look["reward"] is not None:
                self.on_trial_result(tune_controller, trial, {TIME: look["update"], METRIC: look["reward"]})
