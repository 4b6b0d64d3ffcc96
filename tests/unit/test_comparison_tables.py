"""Tables, ranks, guidance and verdicts from judgements whose answers are known."""

import itertools
import zlib

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau, spearmanr

from sharpening.evaluation.comparison import paper
from sharpening.evaluation.comparison.curves import over_seeds, settled_at
from sharpening.evaluation.comparison.guidance import at_best, equal_cost_table, guidance_table
from sharpening.evaluation.comparison.ranks import agreement, rank_correlation
from sharpening.evaluation.comparison.records import ImageJudgement, Setting, SystemCost
from sharpening.evaluation.comparison.results import ComparisonResults, Sweep, TrainingCurve
from sharpening.evaluation.comparison.scores import Scores
from sharpening.evaluation.comparison.selection import main_settings, mean_cost, of_same_seeds
from sharpening.evaluation.comparison.tables import main_table, sweep_agreement, sweep_table
from sharpening.evaluation.comparison.verdicts import claims, verdict, verdicts

PROMPTS, SEEDS, STEPS = 60, 3, 10


def images(system, gain=0.0, guidance=1.0, nfe=None, steps=STEPS, seeds=SEEDS, noise=0.02, odd=0.0):
    """Judgements whose clip and facts are a prompt's own level, plus a gain, plus noise; `odd` is for odd prompts."""
    rng = np.random.default_rng(zlib.crc32(repr((system, guidance, nfe, steps)).encode()))
    nfe = nfe or (steps if guidance == 1 else 2 * steps)
    rows = []
    for seed, prompt in itertools.product(range(seeds), range(PROMPTS)):
        level = 0.3 + 0.3 * (prompt % 7) / 6 + gain + odd * (prompt % 2) + noise * rng.normal()
        category = "colour" if prompt < 30 else "complex"
        scored = {"clip": 100 * level, "facts": level, "all": level > 0.5}
        rows.append(ImageJudgement(system, seed, guidance, steps, nfe, prompt, category, **scored))
    return rows


def costs(system, kind, seconds=100.0, nfe=STEPS):
    return [SystemCost(system, s, kind, 1000 * (s + 1), seconds, 2 * seconds, nfe, 0.5, 7, 80) for s in range(SEEDS)]


def results(rows, spent=(), **changes):
    return ComparisonResults(rows, list(spent), 1.0, STEPS, overall="facts", **changes)


def test_main_table_marks_only_what_the_paired_interval_decides():
    rows = images("base") + images("rlhf", 0.05) + images("ddpo", -0.05) + images("d3po", 0.0)
    found = results(rows, costs("rlhf", "fine-tuning"))
    table = main_table(found, Scores(rows))
    assert table.columns == ("clip", "colour", "complex", "facts", "all")
    assert [row.title for row in table.rows] == ["base model", "DDPO", "D3PO", "RLHF sharpening"]
    by_name = {row.setting.system: row for row in table.rows}
    assert [by_name[name].cells["facts"].mark for name in ("base", "rlhf", "ddpo", "d3po")] == ["", "▲", "▼", ""]
    mine = np.array([row.facts for row in rows if row.system == "rlhf"])
    theirs = np.array([row.facts for row in rows if row.system == "base"])
    cell = by_name["rlhf"].cells["facts"]
    assert cell.value.mean == pytest.approx(mine.mean())
    assert cell.difference.mean == pytest.approx((mine - theirs).mean())
    assert cell.difference.half < cell.value.half / 5
    assert by_name["rlhf"].cost["training_nfe"] == 2000
    assert by_name["rlhf"].cost["training_seconds"] == 100
    assert by_name["ddpo"].cost is None


def test_two_seeds_are_marked_by_nothing():
    rows = images("base", seeds=2) + images("rlhf", 0.2, seeds=2)
    row = main_table(results(rows), Scores(rows)).rows[1]
    assert row.cells["facts"].difference.low > 0.1
    assert row.cells["facts"].mark == ""


def test_a_search_stands_at_its_largest_budget_within_16_times_the_base():
    budgets = (20, 80, 160, 320)
    rows = images("base") + [row for nfe in budgets for row in images("random", nfe=nfe)] + images("demon", nfe=900)
    found = results(rows, [cost for nfe in budgets for cost in costs("random", "search", nfe / 1000, nfe)])
    chosen = main_settings(found, Scores(rows))
    assert (chosen["random"].nfe, chosen["demon"].nfe) == (160, 900)
    assert mean_cost(found.costs, chosen["random"])["training_seconds"] == pytest.approx(0.16)
    assert "seconds_per_image" not in mean_cost(found.costs, Setting("random", 1.0, STEPS, 21))


def test_sweep_table_and_its_order_beside_the_paper():
    gains = {1: 0.0, 2: 0.1, 3: 0.4, 4: 0.2, 8: 0.3}
    rows = images("base") + [row for n, gain in gains.items() for row in images(f"rlhf n={n}", gain)]
    sweep = Sweep("branches", "n", {n: f"rlhf n={n}" for n in (8, 4, 3, 2, 1, 16)})
    table = sweep_table(sweep, results(rows), Scores(rows))
    assert [row.title for row in table.rows] == ["n = 1", "n = 2", "n = 3", "n = 4", "n = 8"]
    # Ranks of ours 1 2 5 3 4; the paper's CLIP .334 .336 .338 .336 .337 has ranks 1 2.5 5 2.5 4.
    theirs = [paper.TABLE_2[n]["clip"] for n in gains]
    assert sweep_agreement(sweep, table) == {"clip": pytest.approx(spearmanr(list(gains.values()), theirs).statistic)}
    assert sweep_agreement(sweep, table)["clip"] == pytest.approx(0.975, abs=5e-3)


def test_a_sweeps_rows_are_of_the_same_seeds():
    rows = images("base") + images("rlhf", 0.1) + images("rlhf n=2", 0.2, seeds=1)
    sweep = Sweep("branches", "n", {2: "rlhf n=2", 4: "rlhf", 8: "never judged"})
    own = of_same_seeds(results(rows, costs("rlhf", "fine-tuning")), sweep)
    assert {row.seed for row in own.judgements} == {0}
    assert len(own.judgements) == 3 * PROMPTS
    four = next(row for row in sweep_table(sweep, own, Scores(own.judgements)).rows if row.title == "n = 4")
    assert four.cost["training_nfe"] == 1000  # seed 0's alone
    assert (four.cells["facts"].value.seeds, four.cells["facts"].mark) == (1, "")
    levels = [row.facts for row in rows if row.system == "rlhf" and row.seed == 0]
    assert four.cells["facts"].value.mean == pytest.approx(np.mean(levels))


def test_rank_correlation_of_a_worked_case():
    ours, theirs = (
        {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "x": 9.0},
        {"a": 10.0, "b": 30.0, "c": 20.0, "d": 40.0, "y": 0.0},
    )
    found = rank_correlation(ours, theirs)
    # One neighbouring swap of four: ρ = 1 − 6·2/(4·15) = 0.8; 5 of 6 pairs agree, τ = 4/6.
    assert (found.spearman, found.kendall, found.systems) == (pytest.approx(0.8), pytest.approx(4 / 6), 4)
    assert found.p_value == pytest.approx(kendalltau([1, 2, 3, 4], [1, 3, 2, 4]).pvalue)
    assert rank_correlation({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0}) is None
    assert rank_correlation(ours, dict.fromkeys(ours, 1.0)) is None


def test_only_pairs_that_the_intervals_decide_count_for_agreement():
    scores = Scores(images("base") + images("dpo", 0.1) + images("ddpo", 0.2) + images("d3po", 0.2))
    tables = {s.system: scores.table(s, "facts") for s in scores.settings}
    found = agreement(tables, {"base": 1.0, "dpo": 3.0, "ddpo": 2.0, "d3po": 4.0})
    # Decided: all but ddpo/d3po. Reversed: ddpo over dpo, which the paper has the other way round.
    assert (found.decided, found.agreeing) == (5, 4)
    assert found.reversed == (("ddpo", "dpo"),)


def test_the_paper_says_what_it_says():
    assert paper.TABLE_1["rlhf"] == {
        "clip": 0.338, "colour": 0.6841, "shape": 0.5680, "texture": 0.6401, "spatial": 0.2134, "non_spatial": 0.3220,
        "complex": 0.4498, "aesthetic": 5.956, "preference": 1.445, "grader": 0.921,
    }  # fmt: skip
    best = {c: max(paper.TABLE_1, key=lambda name: paper.TABLE_1[name][c]) for c in paper.COLUMNS}
    assert {c for c, name in best.items() if name != "rlhf"} == {"shape", "spatial"}
    assert (best["shape"], best["spatial"]) == ("standard", "inference_scaling")
    assert (
        paper.TABLE_2[3] == paper.TABLE_3[3] == {c: paper.TABLE_1["rlhf"][c] for c in ("clip", "preference", "grader")}
    )


def test_the_best_scale_is_judged_on_prompts_that_did_not_choose_it():
    # Scale 2 is better for odd prompts and worse for even ones: each half chooses the scale that is bad for the other.
    rows = images("base") + images("base", -0.05, guidance=2.0, odd=0.3)
    scores = Scores(rows)
    found = at_best(scores.of("base", steps=STEPS), "facts", scores)
    assert found.scales == (2.0, 1.0)
    even = scores.table(Setting("base", 2.0, STEPS, 2 * STEPS), "facts").iloc[:, 0::2]
    odd = scores.table(Setting("base", 1.0, STEPS, STEPS), "facts").iloc[:, 1::2]
    assert np.nanmean(found.table.to_numpy()) == pytest.approx((even.to_numpy().mean() + odd.to_numpy().mean()) / 2)


def test_choosing_among_equal_scales_gains_nothing():
    gains = []
    for trial in range(40):
        rng = np.random.default_rng(trial)
        rows = [
            ImageJudgement("base", seed, scale, STEPS, STEPS, prompt, "colour", None, rng.normal())
            for scale in (1.0, 1.5, 2.0, 3.0, 5.0) for seed in range(3) for prompt in range(40)
        ]  # fmt: skip
        scores = Scores(rows)
        gains.append(float(at_best(scores.of("base"), "facts", scores).table.to_numpy().mean()))
    # The largest of five such means would be 1.16 standard errors up, 0.106.
    assert abs(np.mean(gains)) < 4 / np.sqrt(40 * 120)


def test_guidance_table_and_equal_cost():
    rows = images("base") + images("base", 0.1, guidance=3.0) + images("base", 0.02, steps=2 * STEPS)
    rows += images("rlhf", 0.08) + images("rlhf", 0.05, guidance=3.0) + images("rlhf", 0.15, steps=2 * STEPS)
    rows += images("random", 0.5, nfe=160)
    scores = Scores(rows)
    base, ours = guidance_table(scores, "facts", STEPS)
    assert (base.system, ours.system) == ("base", "rlhf")
    assert (base.scales, ours.scales) == ((3.0, 3.0), (1.0, 1.0))
    assert sorted(ours.by_scale) == [1.0, 3.0]
    assert base.difference is None
    assert ours.difference.mean == pytest.approx(-0.02, abs=0.01)
    assert {scale: found.mean for scale, found in ours.gains.items()} == pytest.approx(
        {1.0: 0.08, 3.0: -0.05}, abs=0.01
    )
    assert base.gains == {}
    base, ours = equal_cost_table(scores, "facts")
    assert (base.nfe, ours.nfe) == (2 * STEPS, 2 * STEPS)
    assert base.unguided_gain.mean == pytest.approx(-0.08, abs=0.01)
    assert ours.unguided_gain.mean == pytest.approx(0.05, abs=0.01)
    assert ours.guided_gain.mean == pytest.approx(-0.05, abs=0.01)
    assert ours.unguided_gain.word == "above"


def all_rivals(gain=0.05, **gains):
    rows = images("rlhf", gain)
    for name in ("base", "standard", "ddpo", "d3po"):
        rows += images(name, gains.get(name, 0.0))
    return rows


def outcome(rows, spent):
    found, scores = results(rows, spent), Scores(rows)
    settings = main_settings(found, scores)
    return claims(found, settings, verdicts(settings, scores, "facts"))


def equal_costs(**seconds):
    names = ("standard", "ddpo", "d3po", "rlhf")
    return [cost for name in names for cost in costs(name, "fine-tuning", seconds.get(name, 100.0))]


def test_a_verdict_in_words():
    scores = Scores(images("rlhf", 0.05) + images("ddpo", 0.1))
    ours, theirs = (Setting(name, 1.0, STEPS, STEPS) for name in ("rlhf", "ddpo"))
    lost, won = verdict(ours, theirs, "facts", scores), verdict(theirs, ours, "facts", scores)
    assert (lost.word, won.word) == ("below", "above")
    gap = lost.difference
    assert lost.sentence == (
        "RLHF sharpening against DDPO: share of a prompt's facts that hold, all prompts "
        f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}] (3 seeds × 60 prompts): **below**."
    )
    assert won.difference.mean == pytest.approx(-gap.mean)
    far = verdict(ours, Setting("base", 1.0, STEPS, STEPS), "facts", Scores(images("rlhf", 0.5) + images("base")))
    assert far.apart
    assert not lost.apart


@pytest.mark.parametrize(
    ("rows", "spent", "holds", "words"),
    [
        (all_rivals(), equal_costs(), True, "overlap for"),
        (all_rivals(0.5), equal_costs(), True, "are apart"),
        (all_rivals(ddpo=0.1), equal_costs(), False, "Below DDPO"),
        (all_rivals(d3po=0.05), equal_costs(), False, "Not told apart from D3PO"),
        (all_rivals(), equal_costs(standard=50.0), None, "tandard fine-tuning: trained for fewer seconds"),
        (all_rivals(), equal_costs(standard=500.0), True, "overlap for"),
        (all_rivals(), [], None, "unknown time"),
        (images("rlhf", 0.1) + images("base"), equal_costs(), None, "tandard fine-tuning, DDPO, D3PO: not judged"),
        (images("rlhf", 0.1, seeds=2) + all_rivals()[180:], equal_costs(), None, "fewer than 3 seeds"),
    ],
)
def test_claim_about_training(rows, spent, holds, words):
    claim = outcome(rows, spent)[0]
    assert claim.holds is holds
    assert words in claim.sentence


@pytest.mark.parametrize(
    ("search", "nfe", "holds", "word"),
    [(0.0, 160, True, "above"), (0.1, 160, False, "below"), (0.0, 40, None, "above"), (None, 0, None, "No search")],
)
def test_claim_about_search(search, nfe, holds, word):
    rows = all_rivals() + (
        images("random", search, nfe=nfe) + images("demon", -0.1, nfe=nfe) if search is not None else []
    )
    claim = outcome(rows, equal_costs())[1]
    assert claim.holds is holds
    assert word in claim.reason
    assert search is None or "random search" in claim.reason


def test_training_curves_meet_at_shared_updates_and_settle_after_three_time_constants():
    rng = np.random.default_rng(0)
    time = np.arange(600)
    curves = []
    for seed in range(3):
        loss = 0.2 + 0.1 * np.exp(-time / 50) + 0.004 * rng.normal(size=600)
        rows = [{"update": int(u), "loss": float(value)} for u, value in zip(time, loss, strict=True)]
        curves.append(TrainingCurve("sft", seed, rows))
    curves[1] = TrainingCurve("sft", 1, curves[1].rows[:500])
    updates, losses = over_seeds(curves, "loss")
    assert losses.shape == (3, 500)
    assert (updates[0], updates[-1]) == (1, 500)
    assert settled_at(updates, losses.mean(axis=0)) == pytest.approx(151, rel=0.06)
    assert settled_at(updates[:60], losses.mean(axis=0)[:60]) is None
    assert settled_at(updates, np.linspace(0, 1, 500)) is None
    assert over_seeds(curves, "reward")[0].size == 0


def test_scores_of_frames_that_are_no_judgements():
    assert agreement({"base": pd.DataFrame()}, {"base": 1.0}) is None
