"""The benchmark's report and command line: arithmetic, tables, pages, wrong options. Nothing here needs torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rayjobs import bench
from rayjobs.benchmark import report, tables
from rayjobs.errors import OptionError

ROOT = Path(__file__).resolve().parents[2]


def turns(seconds, **stages):
    """One turn's rows: the first update takes a hundred times as long as it should."""
    rows = [{"seconds": s, "images_scored": 60, **{f"seconds_{k}": v * s for k, v in stages.items()}} for s in seconds]
    return [rows[0] | {"seconds": 100 * seconds[0]}, *rows[1:]]


# -- arithmetic ----------------------------------------------------------------------------------------------------


def test_rates_leave_the_first_update_out_and_are_totals_over_totals():
    measured = [turns([2, 2, 4]), turns([2, 3, 3])]
    rates = report.throughput(report.steady(measured), prompts=10, pairs=40)
    assert rates == {"updates": 4 / 12, "prompts": 40 / 12, "pairs": 160 / 12, "images_scored": 20.0}


def test_shares_are_of_wall_time():
    ray = report.shares(report.steady([turns([2, 2], generate=0.25, wait=0.6, publish=0.1)]))
    assert ray == pytest.approx({"generate": 0.25, "wait": 0.6, "publish": 0.1})
    assert list(ray) == ["generate", "wait", "publish"]


def test_the_ray_job_is_compared_turn_by_turn_and_as_a_whole():
    found = report.summarise(
        {
            "prompts_per_update": 8, "pairs_per_update": 32,
            "ray": [turns([4, 4, 4], wait=0.5), turns([5, 5, 5], wait=0.5)],
            "loop": [turns([3, 3, 3], learn=0.2), turns([5, 5, 5], learn=0.2)],
        }
    )  # fmt: skip
    assert found["ray_fraction"]["turns"] == pytest.approx([0.75, 1.0])
    assert found["ray_fraction"]["value"] == pytest.approx((4 / 18) / (4 / 16))
    assert found["ray_fraction"]["met"]
    assert found["share"]["loop"] == pytest.approx({"learn": 0.2})
    assert found["throughput"]["ray"]["prompts"] == pytest.approx(8 * 4 / 18)


def test_a_growing_learner_misses_its_target():
    def memory(n3, n8, cuda3=0, cuda8=0):
        by_n = {"3": {"loaded": 9, "peak": n3, "cuda": cuda3}, "8": {"loaded": 9, "peak": n8, "cuda": cuda8}}
        return report.summarise({"memory": {"sharpening": by_n}})["memory"]

    assert memory(1000, 1010)["met"]
    assert memory(1000, 1300)["growth"] == {"sharpening": {"peak": 1.3}}
    assert not memory(1000, 1300)["met"]
    assert memory(1000, 1300, 500, 500)["met"]  # on a GPU, its memory decides
    assert not memory(1000, 1000, 500, 600)["met"]


def test_branch_counts_are_ordered_as_numbers():
    by_n = {"12": {"loaded": 1, "peak": 12, "cuda": 0}, "3": {"loaded": 1, "peak": 3, "cuda": 0}}
    assert report.summarise({"memory": {"sharpening": by_n}})["memory"]["growth"]["sharpening"]["peak"] == 4


def contenders(k1_seconds, k4_seconds):
    return {
        "public order": {"seconds": [2.0, 2.0], "prompts": 1, "pairs": 1},
        "K=1": {"seconds": [k1_seconds] * 3, "prompts": 24, "pairs": 24},
        "K=4": {"seconds": [k4_seconds] * 2, "prompts": 24, "pairs": 96},
    }


def test_the_yardstick_is_compared_by_prompts_at_k1_and_by_pairs_at_k4():
    found = report.summarise({"rates": contenders(8.0, 16.0)})["yardstick"]
    assert found["ratios"]["K=1"] == pytest.approx({"prompts": 6.0, "pairs": 6.0})
    assert found["ratios"]["K=4"] == pytest.approx({"prompts": 3.0, "pairs": 12.0})
    assert found["prompts_at_k1"] == {"value": 6.0, "target": 5.0, "met": True}
    assert found["pairs_at_k4"] == {"value": 12.0, "target": 15.0, "met": False}


# -- tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (0.9996, "1.000"),
        (1.5, "1.50"),
        (56.78, "56.8"),
        (1234.5, "1234"),
        (-2.0, "-2.00"),
    ],
)
def test_numbers_have_three_digits(value, shown):
    assert tables.number(value) == shown


def test_tables_name_missed_targets_and_align():
    found = report.summarise({"rates": contenders(8.0, 16.0)})
    parts = tables.sections(found, {})
    assert [part.title for part in parts] == [
        "Timesteps per rollout, at equal wall time", "Against the public code's order"
    ]  # fmt: skip
    text = tables.text_table(parts, "here")
    assert "prompts ≥ 5: met" in text
    assert "pairs ≥ 15: missed" in text
    page = tables.markdown(parts, "here")
    assert "| ours, K=1 | 3.00 | 3.00 | 6.00 | 6.00 | prompts ≥ 5: met |" in page
    for part in parts:
        assert {len(row) for row in part.rows} == {len(part.header)}


def test_a_whole_report_makes_a_table_of_every_part():
    memory = {
        name: {n: {"loaded": 5, "peak": 9, "cuda": 4} for n in ("3", "8")} for name in ("sharpening", "public order")
    }
    stages = dict.fromkeys(report.STAGES, 0.1)
    rows = [turns([2, 2, 2], **stages)]
    measured = {"prompts_per_update": 2, "pairs_per_update": 8, "ray": rows, "loop": rows}
    found = report.summarise(measured | {"memory": memory, "rates": contenders(8.0, 16.0)})
    parts = tables.sections(found, {"setting": "Small.", "threads": 2, "updates": 3, "turns": 1})
    assert len(parts) == 5
    text = tables.text_table(parts, "here")
    assert all(stage in text for stage in report.STAGES)
    assert "rollout: idle and hand-over 50.0% -" in " ".join(text.split())
    assert json.loads(json.dumps(found)) == found


def test_a_page_is_written_between_its_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Above\n{tables.BEGIN}\nold\n{tables.END}\nbelow\n")
    for contents in ("first", "second"):
        tables.write_between_markers(page, contents)
        assert page.read_text() == f"# Above\n{tables.BEGIN}\n\n{contents}\n\n{tables.END}\nbelow\n"
    for broken in ("", f"{tables.BEGIN}", f"{tables.END}{tables.BEGIN}", f"{tables.BEGIN}{tables.END}{tables.END}"):
        page.write_text(broken)
        with pytest.raises(ValueError, match="needs one line"):
            tables.write_between_markers(page, "contents")
        assert page.read_text() == broken


def test_the_projects_own_page_has_the_markers():
    tables.split_at_markers(ROOT / "docs" / "performance.md")


# -- command line --------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy():
    script = "import sys; from rayjobs import bench; bench.build_parser().format_help(); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {"torch", "ray", "diffusers", "numpy", "pydantic"} & set(shown.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--updates", "1"], "updates"),
        (["--turns", "0"], "turns"),
        (["--seconds", "nan"], "seconds"),
        (["--write", "no/such/page.md"], "write"),
        (["--json", "no/such/folder/bench.json"], "json"),
        (["--ray_address", "auto"], "ray_address"),
        (["--bind", "127.0.0.1"], "bind"),
        (["--output_dir", "runs/here"], "output_dir"),
        (["--mixed_precision", "bf16"], "mixed_precision"),
        (["--rank", "4"], "rank"),
        (["--branches", "1"], "branches"),
        (["--brunches", "3"], "brunches"),
    ],
)
def test_wrong_options_are_named(arguments, option):
    with pytest.raises(OptionError) as caught:
        bench.read_options(arguments)
    assert caught.value.option == option


def test_quick_is_a_small_job_unless_told_otherwise(pipeline_folder):
    model = ["--pretrained_model_name_or_path", str(pipeline_folder), "--use_gpu", "no"]
    plan, options = bench.read_options(["--quick", "--turns", "3", *model])
    assert (plan.turns, plan.updates) == (3, bench.QUICK["updates"])
    assert (options.prompts_per_update, options.max_train_steps) == (8, plan.updates)
    _, options = bench.read_options(["--quick", "--rollout_batch_size", "2", *model])
    assert options.rollout_batch_size == 2
