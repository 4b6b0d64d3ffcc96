"""The exponential moving average of the trained weights over the updates, by diffusers' `EMAModel`."""

from __future__ import annotations

from pathlib import Path

from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_STEPS = "steps"


class WeightAverage:
    """Average of weights by name, in float32 on the CPU.

    After update s it is `d · average + (1 − d) · weights` with `d = min(decay, s / (9 + s))` for s > 1 and 0 before, so
    short runs forget the start as well.

    Attributes:
        steps: updates averaged so far.
    """

    def __init__(self, state: dict[str, Tensor], decay: float) -> None:
        """Begin with a model's weights.

        Args:
            state: what `Policy.trainable_state` returned.
            decay: the largest decay.
        """
        self._names = list(state)
        self._average = EMAModel(self._parameters(state), decay=decay)

    @property
    def steps(self) -> int:
        """Updates averaged so far."""
        return int(self._average.optimization_step)

    def step(self, state: dict[str, Tensor]) -> None:
        """Take in the weights after an update.

        Args:
            state: what `Policy.trainable_state` returned.
        """
        self._average.step(self._parameters(state))

    def state(self) -> dict[str, Tensor]:
        """The average, as `Policy.load_trainable_state` takes it.

        Returns:
            Name to float32 tensor.
        """
        return dict(zip(self._names, self._average.shadow_params, strict=True))

    def save(self, path: str | Path) -> None:
        """Write it.

        Args:
            path: a `.safetensors` file.
        """
        save_file(self.state(), path, metadata={_STEPS: str(self.steps)})

    @classmethod
    def load(cls, path: str | Path, decay: float) -> WeightAverage:
        """Read one back.

        Args:
            path: what `save` wrote.
            decay: the largest decay.

        Returns:
            An average that goes on from there.
        """
        found = cls(load_file(path), decay)
        with safe_open(path, "pt") as file:
            found._average.optimization_step = int(file.metadata()[_STEPS])
        return found

    def _parameters(self, state: dict[str, Tensor]) -> list[nn.Parameter]:
        """The tensors as `EMAModel` averages them: it copies whatever asks for no gradient."""
        return [nn.Parameter(state[name].detach().float()) for name in self._names]
