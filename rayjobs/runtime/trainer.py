"""Ray Train's trainer, without the helpers that would be idle: each is a process that imports for seconds."""

from typing import Any

from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class Trainer(DataParallelTrainer):
    """`DataParallelTrainer` for learners that read nothing from Ray Data.

    Ray Train starts an actor that hands out shards of its `datasets`, though there are none, and two that only a
    cluster needs: one that asks the autoscaler for nodes, and a cleaner that gives back the learners' placement group
    if the controller dies. The cleaner asks the dashboard whether it lives: without one every question takes ten
    seconds, which hold up the run's end, and is never answered.

    Args:
        *args: As Ray's.
        lasting: Whether the Ray outlives its runs, as a cluster does, which has a dashboard and may have nodes to add.
        **kwargs: As Ray's.
    """

    def __init__(self, *args: Any, lasting: bool, **kwargs: Any) -> None:
        self._lasting = lasting
        self._idle = (DatasetsCallback,) if lasting else (DatasetsCallback, PlacementGroupCleanerCallback)
        super().__init__(*args, **kwargs)

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, self._idle)]

    def _initialize_and_run_controller(self, **told: Any) -> Any:
        if not self._lasting:
            told["scaling_policy"] = AsManyAsAsked(self.scaling_config)
        return super()._initialize_and_run_controller(**told)


class AsManyAsAsked(FixedScalingPolicy):
    """As many learners as were asked for, on what nodes there are."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """Ask nobody for nodes.

        Args:
            train_run_context: The run.
        """

    def _maybe_send_resource_request(self) -> None:
        pass
