"""The report says what the intervals say: numbers parse back, losses are printed, what is missing is named."""

import itertools
import json
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from sharpening.evaluation.comparison.diversity import diversity
from sharpening.evaluation.comparison.estimate import Estimate
from sharpening.evaluation.comparison.markdown import level, markdown_table, whole
from sharpening.evaluation.comparison.plots import forest_figure
from sharpening.evaluation.comparison.records import ImageJudgement, RecordError, SystemCost, read_records
from sharpening.evaluation.comparison.report import write_report
from sharpening.evaluation.comparison.results import ComparisonResults, Sweep, TrainingCurve, Trial
from sharpening.evaluation.comparison.systems import title_of
from sharpening.evaluation.plots import BLUE, RED
from sharpening.shapes.captions import CATEGORIES

STEPS, PROMPTS = 10, 48
KINDS = {"base": "base", "random": "search", "fk_steering": "search"}


def images(system, gain, guidance=1.0, nfe=None, steps=STEPS):
    rng = np.random.default_rng(zlib.crc32(repr((system, guidance, nfe, steps)).encode()))
    nfe = nfe or (steps if guidance == 1 else 2 * steps)
    rows = []
    for seed, prompt in itertools.product(range(3), range(PROMPTS)):
        facts = float(np.clip(0.4 + 0.05 * (prompt % 5) + gain + 0.03 * rng.normal(), 0, 1))
        scored = {"clip": 50 + 30 * facts, "facts": facts, "all": facts > 0.5}
        rows.append(ImageJudgement(system, seed, guidance, steps, nfe, prompt, CATEGORIES[prompt % 6], **scored))
    return rows


def spent(system, nfe=STEPS):
    kind = KINDS.get(system, "fine-tuning")
    trained = kind == "fine-tuning"
    seconds, nfes = 200.0 * trained, 12345 * trained
    made = (nfes, seconds, 2 * seconds, nfe, 0.01 * nfe, 36 * trained, 99)
    return [SystemCost(system, seed, kind, *made) for seed in range(3)]


@pytest.fixture(scope="module")
def full():
    """RLHF sharpening gains, DDPO gains more, and SFT sharpening loses."""
    gains = {"base": 0.0, "standard": 0.0, "ddpo": 0.2, "d3po": 0.05, "sft": -0.1, "rlhf": 0.1}
    rows = [row for name, gain in gains.items() for scale in (1.0, 3.0) for row in images(name, gain / scale, scale)]
    rows += images("base", 0.02, steps=2 * STEPS) + images("rlhf", 0.12, steps=2 * STEPS)
    rows += [row for times in (2, 16, 64) for row in images("random", 0.01 * times**0.5, nfe=times * STEPS)]
    rows += [row for n in (1, 2, 3) for row in images(f"rlhf n={n}", 0.03 * n)]
    costs = [cost for name in gains for cost in spent(name)]
    costs += [cost for times in (2, 16, 64) for cost in spent("random", times * STEPS)]
    curve = [{"update": u, "loss": 0.3 + np.exp(-u / 5), "reward": 50.0 + u, "reward_spread": 5.0} for u in range(40)]
    features = np.random.default_rng(0).normal(size=(30, 3, 4))
    return ComparisonResults(
        rows, costs, guidance_scale=1.0, steps=STEPS,
        sweeps=[Sweep("branches", "n", {n: f"rlhf n={n}" for n in (1, 2, 3)})],
        curves=[TrainingCurve(name, seed, curve) for name in ("sft", "rlhf") for seed in range(2)],
        diversity={"rlhf": diversity(0.5 * features, features)},
        trials=[Trial("rlhf", {}, 28, 0.71, 0.31, 60.2, 60.0, True), Trial("ddpo", {"lr": 1e-4}, 30, 0.7, 0.3, 59, 60),
                Trial("ddpo", {"lr": 3e-4}, 30, 0.69, 0.2, 58, 60)],
        notes=["DDPO is ahead because the test says so."],
        missing={"grader": "no endpoint was given"},
        command="python rayjobs/compare.py --seeds 0 1 2", commit="0123abc", machine="2 cores",
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(full, tmp_path_factory):
    path = tmp_path_factory.mktemp("comparison") / "report"
    assert write_report(path, full) == path / "report.md"
    return path


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.md").read_text()


@pytest.fixture(scope="module")
def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def tables(page):
    """Every Markdown table of a page as its rows of cells, header first, by the header's first cell."""
    found, block = {}, []
    for line in [*page.splitlines(), ""]:
        if line.startswith("|"):
            block.append([cell.strip() for cell in line.strip("|").split("|")])
        elif block:
            found.setdefault(block[0][0], []).append([block[0], *block[2:]])
            block = []
    return found


def test_the_tables_parse_back_to_the_summarys_numbers(page, summary):
    levels, gains = tables(page)["system"][:2]
    names = {title_of(name): name for name in summary["methods"]}
    assert [names[row[0]] for row in levels[1:]] == ["base", "standard", "ddpo", "d3po", "random", "sft", "rlhf"]
    keys = {"CLIP": "clip", "non-spatial": "non_spatial", "all facts": "all"}
    for row in levels[1:]:
        metrics = summary["methods"][names[row[0]]]
        for title, cell in zip(levels[0][1:10], row[1:10], strict=True):
            mean, half = (float(number) for number in cell.replace("▲", "").replace("▼", "").split("±"))
            metric = metrics[keys.get(title, title)]
            assert mean == pytest.approx(metric["mean"], abs=6e-3 if title == "CLIP" else 6e-4)
            assert half == pytest.approx((metric["high"] - metric["low"]) / 2, abs=6e-3 if title == "CLIP" else 6e-4)
            assert ("▲" in cell, "▼" in cell) == (metric["verdict"] == "above", metric["verdict"] == "below")
        assert row[10] == str(metrics["all"]["nfe"])
    for row in gains[1:]:
        difference = summary["methods"][names[row[0]]]["facts"]["difference"]
        numbers = row[gains[0].index("facts")].replace("[", "").replace("]", "").replace(",", "").split()
        assert [float(n) for n in numbers] == pytest.approx([difference[k] for k in ("mean", "low", "high")], abs=6e-4)


def test_the_summary_against_the_rows(full, folder, summary):
    rows = read_records(folder / "results.parquet", ImageJudgement)
    assert rows == list(full.judgements)
    assert read_records(folder / "costs.parquet", SystemCost) == list(full.costs)
    ours = [row.facts for row in rows if row.system == "rlhf" and row.guidance_scale == 1 and row.steps == STEPS]
    found = summary["methods"]["rlhf"]["facts"]
    assert found["mean"] == pytest.approx(np.mean(ours))
    assert found["low"] < found["mean"] < found["high"]
    assert (found["seeds"], found["prompts"], found["nfe"], found["seconds"]) == (3, PROMPTS, STEPS, 200)
    assert summary["methods"]["base"]["facts"]["difference"] is None
    assert summary["methods"]["random"]["facts"]["nfe"] == 16 * STEPS
    assert summary["budgets"] == {"random": [20, 160, 640]}
    assert summary["costs"]["ddpo"]["training_nfe"] == 12345
    assert summary["costs"]["random"]["seconds_per_image"] == pytest.approx(1.6)
    for metrics in summary["methods"].values():
        assert set(metrics) == {"clip", *(c.replace("-", "_") for c in CATEGORIES), "facts", "all"}
        for metric in metrics.values():
            assert {"mean", "low", "high", "nfe", "seconds"} < set(metric)
    assert (summary["commit"], summary["command"]) == (full.commit, full.command)


def test_a_method_of_ours_that_loses_is_printed_as_losing(page, summary):
    assert summary["methods"]["sft"]["facts"]["verdict"] == "below"
    row = next(row for row in tables(page)["system"][0] if row[0] == "SFT sharpening")
    assert "▼" in row[9]
    assert "- SFT sharpening against base model: overall verifier score -" in page
    lost = [line for line in page.splitlines() if line.startswith("- RLHF sharpening against DDPO:")]
    assert len(lost) == 1
    assert "**below**" in lost[0]
    claim = summary["claims"][0]
    assert claim["holds"] is False
    assert "Below DDPO" in claim["reason"]
    assert f"{claim['text']}: does not hold. " in page
    assert "DDPO is ahead because the test says so." in page


def test_what_is_missing_is_named_with_its_reason(page, summary):
    missing = summary["missing"]
    assert missing["grader"] == "no endpoint was given"
    assert "- column grader: no endpoint was given" in page
    assert "- column preference: no image has a score of it" in page
    assert "- temperature: λ was not varied" in page
    assert "- Demon: no image of it was judged at guidance 1 with 10 steps" in page
    present = {"clip", "rlhf", "branches", "guidance", "equal NFE", "diversity", "rlhf: seeds", "rlhf: cost"}
    assert not present & set(missing)
    header = tables(page)["system"][0][0]
    assert not {"grader", "preference", "aesthetic"} & set(header)


def test_the_rest_of_the_page(page, full):
    assert f"```\n{full.command}\n```" in page
    assert "Commit: 0123abc." in page
    assert "Machine: 2 cores." in page
    assert "Trials: RLHF sharpening 1; DDPO 2. **The methods did not have equally many.**" in page
    assert [row[0] for row in tables(page)["n"][0][1:]] == ["n = 1", "n = 2", "n = 3"]
    assert len(tables(page)["paper, SDXL"][0]) == 12
    best = {row[0]: row for row in tables(page)["model"][0]}
    assert best["RLHF sharpening"][4] == "1"
    assert "nan" not in page.lower().split()


def test_every_figure_is_a_picture_that_the_page_shows(page, folder):
    names = sorted(path.name for path in (folder / "figures").iterdir())
    assert names == sorted([
        "differences.png", "divergence.png", "figure4_loss.png", "figure5_cost.png", "figure6_reward.png",
        "guidance.png", "branches.png",
    ])  # fmt: skip
    for name in names:
        assert f"](figures/{name})" in page
        pixels = np.asarray(Image.open(folder / "figures" / name).convert("L"))
        assert min(pixels.shape) > 250
        assert 0.01 < (pixels < 200).mean() < 0.5


def colours_of(png):
    pixels = np.asarray(Image.open(BytesIO(png)).convert("RGB")).reshape(-1, 3)
    wanted = {name: [int(name[i : i + 2], 16) for i in (1, 3, 5)] for name in (BLUE, RED)}
    return {name: int((pixels == colour).all(axis=1).sum()) for name, colour in wanted.items()}


def test_the_forest_is_blue_above_red_below_and_grey_where_undecided():
    cases = {
        BLUE: Estimate(0.1, 0.05, 0.15, 3, 9), RED: Estimate(-0.1, -0.15, -0.05, 3, 9),
        "neither": Estimate(0.1, -0.05, 0.25, 3, 9), "too few seeds": Estimate(0.1, 0.05, 0.15, 2, 9),
    }  # fmt: skip
    for colour, value in cases.items():
        counts = colours_of(forest_figure({"rlhf": value}, "facts"))
        assert {name for name, count in counts.items() if count > 20} == {colour} & {BLUE, RED}


def test_a_report_of_the_least_there_can_be(tmp_path):
    rows = images("base", 0.0)[:PROMPTS]
    path = write_report(tmp_path, ComparisonResults(rows, [], 1.0, STEPS))
    text = path.read_text()
    assert "is not decided. RLHF sharpening was not judged." in text
    assert "- base model, seeds: 1 of 3 seeds" in text
    assert "- command: not recorded" in text
    assert not (tmp_path / "costs.parquet").exists()
    assert json.loads((tmp_path / "summary.json").read_text())["methods"]["base"]["facts"]["seconds"] is None
    with pytest.raises(RecordError, match="at least one image"):
        write_report(tmp_path / "none", ComparisonResults([], [], 1.0, STEPS))


def test_cells():
    assert level(Estimate(0.5, 0.4, 0.6, 3, 9), 3, "▲") == "0.500 ± 0.100 ▲"
    assert level(None, 3) == "–"
    assert [whole(v) for v in (None, 0, 12.0, 12345.6, 4.25, 31.25, 0.0312)] == [
        "–", "0", "12", "12,346", "4.2", "31.2", "0.031",
    ]  # fmt: skip
    lines = markdown_table(["a", "b"], [["x|y", "1"]]).splitlines()
    assert lines == ["| a    |   b |", "|------|----:|", "| x\\|y |   1 |"]
