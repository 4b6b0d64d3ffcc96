"""The scorer of one's own that docs/rewards.md shows."""

import re
from pathlib import Path

import numpy as np
import pytest

from sharpening.rewards import load_reward
from sharpening.rewards.files import check_reward_files

PAGE = Path(__file__).parents[2] / "docs" / "rewards.md"


def test_the_documented_example_runs_and_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    (tmp_path / "colour.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    check_reward_files("colour:Colourfulness")
    scorer = load_reward("colour:Colourfulness", device="cpu", batch_size=4)
    grey = np.full((1, 8, 8, 3), 90, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    scores = scorer(np.concatenate([grey, noise]), ["a", "b", "c"])
    expected = [0.0]
    for image in noise.astype(float):
        r, g, b = image[..., 0].ravel(), image[..., 1].ravel(), image[..., 2].ravel()
        rg, yb = r - g, 0.5 * (r + g) - b
        spread = (((rg - rg.mean()) ** 2).mean() + ((yb - yb.mean()) ** 2).mean()) ** 0.5
        expected.append(spread + 0.3 * (rg.mean() ** 2 + yb.mean() ** 2) ** 0.5)
    assert scores.values.dtype == np.float32
    assert scores.failures == {}
    np.testing.assert_allclose(scores.values, expected, rtol=1e-5)


def test_the_page_lists_every_reward() -> None:
    from sharpening.rewards import REWARDS

    page = PAGE.read_text(encoding="utf-8")
    for name in REWARDS:
        assert f"`{name}`" in page or f"`-{name.removeprefix('embedded-')}`" in page
