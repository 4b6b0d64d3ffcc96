"""Over-optimisation: the alarm of the report is raised where the reward alone rises, and nowhere else."""

import itertools
import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from sharpening.evaluation.comparison.divergence import Divergence, divergences
from sharpening.evaluation.comparison.estimate import Estimate
from sharpening.evaluation.comparison.plots import divergence_figure
from sharpening.evaluation.comparison.records import ImageJudgement
from sharpening.evaluation.comparison.report import write_report
from sharpening.evaluation.comparison.results import ComparisonResults
from sharpening.evaluation.comparison.scores import Scores
from sharpening.shapes.captions import CATEGORIES

STEPS, PROMPTS = 8, 48


def images(system, reward, facts, guidance=1.0, nfe=STEPS, seeds=3):
    """Images whose reward and facts differ from the base model's by so much on average, image by image."""
    rng = np.random.default_rng(7)
    noise = rng.normal(size=(seeds, PROMPTS, 2))
    return [
        ImageJudgement(system, seed, guidance, STEPS, nfe, prompt, CATEGORIES[prompt % 6],
                       clip=60 + reward * (1 + 0.3 * noise[seed, prompt, 0]),
                       facts=0.6 + facts * (1 + 0.3 * noise[seed, prompt, 1]), all=None)
        for seed, prompt in itertools.product(range(seeds), range(PROMPTS))
    ]  # fmt: skip


BASES = [*images("base", 0, 0), *images("base", 0, 0, guidance=3.0)]


@pytest.mark.parametrize(
    ("reward", "facts", "seeds", "status"),
    [
        (2, -0.05, 3, "diverging"), (2, 0.05, 3, "quiet"), (-2, -0.05, 3, "quiet"), (-2, 0.05, 3, "quiet"),
        (2, 0, 3, "quiet"), (0, -0.05, 3, "quiet"), (2, -0.05, 2, "undecided"),
    ],
)  # fmt: skip
def test_reward_up_and_verifiers_down_is_the_alarm(reward, facts, seeds, status):
    (found,) = divergences(Scores([*BASES, *images("ddpo", reward, facts, seeds=seeds)]), STEPS)
    assert (found.system, found.guidance_scale, found.status) == ("ddpo", 1.0, status)
    assert found.reward.mean == pytest.approx(reward, abs=0.2)
    assert found.verifiers.mean == pytest.approx(facts, abs=0.01)


def test_each_scale_has_its_own_base_and_a_search_its_dearest_budget():
    rows = [
        *BASES,
        *images("rlhf", 2, 0.05),
        *images("rlhf", 2, -0.05, guidance=3.0),
        *images("rlhf", 1, 1, guidance=5),
    ]
    rows += [*images("demon", 1, 0.02, nfe=4 * STEPS), *images("demon", 9, -0.2, nfe=16 * STEPS)]
    found = {(one.system, one.guidance_scale): one for one in divergences(Scores(rows), STEPS)}
    assert {key: one.status for key, one in found.items()} == {
        ("rlhf", 1.0): "quiet", ("rlhf", 3.0): "diverging", ("demon", 1.0): "diverging",
    }  # fmt: skip
    assert found["demon", 1.0].reward.mean == pytest.approx(9, abs=0.5)
    assert divergences(Scores(rows), STEPS + 1) == []


def test_the_report_names_the_alarm_at_every_scale(tmp_path):
    rows = [*BASES, *images("rlhf", 2, 0.05), *images("ddpo", 2, 0.0), *images("ddpo", 2, -0.05, guidance=3.0)]
    page = write_report(tmp_path, ComparisonResults(rows, [], 1.0, STEPS, overall="facts")).read_text()
    section = page.partition("## Over-optimisation")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    assert [line.strip("| ").split("|")[0].strip() for line in lines[1:]] == ["DDPO", "RLHF sharpening"]
    assert all(line.rstrip("| ").endswith("no") for line in lines[1:])
    assert "- Alarm: DDPO at guidance 3: the reward rose by 1.92 [1.8" in section
    assert "fell by 0.048 [0.045" in section
    alarms = json.loads((tmp_path / "summary.json").read_text())["alarms"]
    assert {name: {scale: one["status"] for scale, one in by.items()} for name, by in alarms.items()} == {
        "ddpo": {"1": "quiet", "3": "diverging"}, "rlhf": {"1": "quiet"},
    }  # fmt: skip
    quiet = write_report(tmp_path, ComparisonResults(rows[: -3 * PROMPTS], [], 1.0, STEPS, overall="facts")).read_text()
    assert "No system at guidance 1 raises the alarm." in quiet


def test_a_report_without_verifiers_says_that_it_cannot_tell(tmp_path):
    rows = [
        ImageJudgement(name, seed, 1.0, STEPS, STEPS, prompt, CATEGORIES[prompt % 6], clip=60.0 + prompt)
        for name, seed, prompt in itertools.product(("base", "ddpo"), range(3), range(PROMPTS))
    ]
    page = write_report(tmp_path, ComparisonResults(rows, [], 1.0, STEPS, overall="clip")).read_text()
    assert "## Over-optimisation" not in page
    assert "- alarms: reward and verifiers of a system" in page


def test_the_figure_is_red_where_only_the_reward_rises():
    point = Divergence("ddpo", 1.0, Estimate(2, 1, 3, 3, 9), Estimate(-0.05, -0.08, -0.02, 3, 9))
    pixels = np.asarray(Image.open(BytesIO(divergence_figure([point]))).convert("RGB")).astype(int)
    reddish = (pixels[..., 0] - pixels[..., 2] > 8) & (pixels[..., 1] > 180)
    rows, columns = np.nonzero(reddish)
    assert reddish.mean() > 0.3  # all of it: the point is in it
    assert rows.max() - rows.min() > 0.6 * len(pixels)
    assert columns.max() - columns.min() > 0.4 * pixels.shape[1]
