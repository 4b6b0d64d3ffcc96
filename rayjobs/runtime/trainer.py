"""Ray Train's trainer, without the helpers that would be idle: each is a process that imports for seconds."""

from typing import Any

from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class Trainer(DataParallelTrainer):
    """`DataParallelTrainer` for learners that read nothing from Ray Data.

    Ray Train starts an actor that hands out shards of its `datasets`, though there are none, and a cleaner that gives
    back the learners' placement group if the controller dies. The cleaner asks the dashboard whether it lives: without
    one every question takes ten seconds, which hold up the run's end, and is never answered.

    Args:
        *args: As Ray's.
        cleaner: Whether there is a cleaner.
        **kwargs: As Ray's.
    """

    def __init__(self, *args: Any, cleaner: bool, **kwargs: Any) -> None:
        self._idle = (DatasetsCallback,) if cleaner else (DatasetsCallback, PlacementGroupCleanerCallback)
        super().__init__(*args, **kwargs)

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, self._idle)]
