"""Ray Train's trainer, without the helpers that would be idle: each is a process that imports for seconds."""

from typing import Any

from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class Trainer(DataParallelTrainer):
    """`DataParallelTrainer` for learners that read nothing from Ray Data.

    Ray Train starts an actor that hands out shards of its `datasets`, though there are none, and one that gives back
    the learners' placement group if the controller dies.

    Args:
        *args: as Ray's.
        outlived: whether Ray goes on after the run, so that what a dead controller reserved has to be given back.
        **kwargs: as Ray's.
    """

    def __init__(self, *args: Any, outlived: bool, **kwargs: Any) -> None:
        self._idle = (DatasetsCallback,) if outlived else (DatasetsCallback, PlacementGroupCleanerCallback)
        super().__init__(*args, **kwargs)

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, self._idle)]
