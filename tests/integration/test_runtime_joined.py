"""Runs that ask a reward which the cluster serves already are told when it is another one."""

from pathlib import Path

import pytest

from rayjobs.errors import OptionError
from rayjobs.runtime.driver import run
from tests import runs
from tests.runs import Models, local_ray, models, served

__all__ = ["local_ray", "models", "served"]  # fixtures


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"served_rewards": "absent"}, r"no reward application 'absent' answers on this cluster"),
        ({"reward_model": None}, r"'served' serves clip with model /\S+/clip, and this run names its own"),
        (
            {"reward": "embedded-aesthetic", "reward_model": None},
            r"serves embedded-aesthetic with reward clip, and this run names embedded-aesthetic",
        ),
    ],
)
def test_a_reward_that_is_not_the_one_named_is_refused(
    models: Models, served: str, tmp_path: Path, changes: dict[str, str | None], message: str
) -> None:
    options = runs.options(models, tmp_path / "run", **{"served_rewards": served, **changes})
    with pytest.raises(OptionError, match=message):
        run(options)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
