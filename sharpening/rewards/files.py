"""Whether the files that a reward needs are there and whole, before anything heavy is imported; no torch."""

from __future__ import annotations

import importlib
from importlib.util import find_spec

from sharpening.rewards import REWARDS


def check_reward_files(reward: str, model: str | None = None, checkpoint: str | None = None) -> None:
    """Refuse local files that are absent, cut off or another model's, as far as can be known without torch.

    What a reward needs is known beside it: the module `sharpening.rewards.NAME` has a `sharpening.rewards.NAME_files`
    with `check(model, checkpoint)`, or nothing to check. What the hub holds is not looked at, nor are scorers that
    are named by their import path.

    Args:
        reward: name in `REWARDS`, or the import path `module:class` of a scorer.
        model: what the scorer's `model` will be; None: its default.
        checkpoint: what its `checkpoint` will be; None: its default.

    Raises:
        ModelFolderError: a `RewardModelError` whose `option` is the one to change.
    """  # noqa: DOC502
    path = REWARDS.get(reward)
    if path is None:
        return
    module = f"{path.partition(':')[0]}_files"
    if find_spec(module) is not None:
        importlib.import_module(module).check(model, checkpoint)
