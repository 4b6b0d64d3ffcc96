"""Learner ranks agreeing: every rank goes on, or none does."""

from typing import Any


class Ranks:
    """What this rank and the others say together; a rank alone asks nobody.

    Args:
        rank: This rank.
        world: How many there are.
        device: Where their numbers are reduced, `cpu` or `cuda`.
    """

    def __init__(self, rank: int, world: int, device: str) -> None:
        self.rank, self.world, self._device = rank, world, device

    @property
    def leads(self) -> bool:
        """Whether this rank speaks to the coordinator and writes for all."""
        return self.rank == 0

    def all(self, holds: bool) -> bool:
        """Whether something holds on every rank; also a barrier."""
        return self._reduce(float(holds), "MIN") > 0

    def sum(self, value: float) -> float:
        """The sum over the ranks."""
        return self._reduce(value, "SUM")

    def mean(self, metrics: dict[str, float]) -> dict[str, float]:
        """Means over the ranks' equal shares, by name."""
        return {name: self._reduce(value, "SUM") / self.world for name, value in metrics.items()}

    def told(self, value: Any) -> Any:
        """What rank 0 says; the others' value is not looked at."""
        import torch.distributed as dist

        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def _reduce(self, value: float, operation: str) -> float:
        import torch
        import torch.distributed as dist

        if self.world == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self._device)
        dist.all_reduce(tensor, getattr(dist.ReduceOp, operation))
        return float(tensor.item())
