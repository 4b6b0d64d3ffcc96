"""The rewards' benchmark: arithmetic, tables, pages, wrong options. Nothing here needs torch or Ray."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rayjobs import bench_rewards
from rayjobs.benchmark import reward_tables
from rayjobs.errors import OptionError

ROOT = Path(__file__).resolve().parents[2]


def row(way: str, turn: int, rate: float, latencies: list[float], callers: int = 256, **more: Any) -> dict[str, Any]:
    return {
        "way": way, "callers": callers, "images_per_call": 1, "turn": turn, "images_per_s": rate,
        "latency_s": latencies, "cpu_ms": 2.0, **more,
    }  # fmt: skip


MEASURED = [
    row("process", 0, 100, [0.1]), row("process", 1, 400, [0.1]), row("process", 2, 200, [0.1]),
    row("handle", 0, 90, [0.2, 0.3], batch_images={1: 1, 64: 3}, server_cpu_ms=1.0),
    row("handle", 1, 100, [0.4], batch_images={"64": 1}, server_cpu_ms=3.0),  # as JSON has it
    row("handle", 2, 170, [0.1], batch_images={33: 1}, server_cpu_ms=2.0),
    *(row("http", turn, 50, [1.0]) for turn in range(3)),
]  # fmt: skip


def test_ratios_are_taken_turn_by_turn_and_latencies_over_all() -> None:
    (entry,) = reward_tables.summarise(MEASURED)
    handle = entry["handle"]
    assert handle["images_per_s"] == 100
    assert handle["ratio"] == pytest.approx(0.85)  # of 0.9, 0.25 and 0.85
    assert (handle["p50_s"], handle["p99_s"], handle["calls"]) == (0.2, 0.4, 4)
    assert handle["batch_images"] == {1: 1, 33: 1, 64: 4}
    assert handle["server_cpu_ms"] == 2.0
    assert entry["http"]["ratio"] == 0.25
    assert "batch_images" not in entry["http"]


@pytest.mark.parametrize(("count", "share", "wanted"), [(1, 0.99, 0), (2, 0.5, 0), (100, 0.99, 98), (101, 0.99, 99)])
def test_quantiles_are_values_that_were_measured(count: int, share: float, wanted: int) -> None:
    assert reward_tables.quantile([float(i) for i in range(count)], share) == wanted


def test_tables_say_whether_the_target_is_met_and_what_was_padding() -> None:
    options = bench_rewards.read_options([]).model_dump()
    throughput, latency, batches = reward_tables.sections(reward_tables.summarise(MEASURED), options)
    assert throughput.rows == [("256 × 1", "200", "100", "0.85", "≥ 0.8: met", "50.0", "0.25")]
    assert latency.rows[0][1:5] == ("200", "400", "1000", "1000")
    name, mean, *shares, filled = batches.rows[0]
    assert (name, mean) == ("256 × 1, handle", "48.3")
    assert shares == ["17%", "0%", "0%", "17%", "67%"]
    assert filled == f"{290 / (32 + 64 + 4 * 64):.0%}"
    missed = [row("process", 0, 100, [1]), row("handle", 0, 79, [1]), row("http", 0, 1, [1])]
    assert reward_tables.sections(reward_tables.summarise(missed), options)[0].rows[0][4] == "≥ 0.8: missed"


def test_a_page_keeps_what_stands_around_its_marked_part(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n{reward_tables.BEGIN}\nold\n{reward_tables.END}\nafter\n")
    reward_tables.write_page(page, "new")
    assert page.read_text() == f"# Before\n{reward_tables.BEGIN}\n\nnew\n\n{reward_tables.END}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="needs one line"):
        reward_tables.write_page(page, "new")
    with pytest.raises(OptionError, match="is not a page to write to"):
        bench_rewards.read_options(["--write", str(page)])


def test_options_are_settled_and_wrong_ones_cost_nothing(tmp_path: Path) -> None:
    assert (bench_rewards.read_options([]).seconds, bench_rewards.read_options(["--quick"]).seconds) == (4.0, 1.0)
    assert bench_rewards.read_options(["--quick", "--seconds", "9", "--callers", "2", "3"]).callers == (2, 3)
    for argv, words in (
        (["--callers", "0"], "--callers: holds a number below 1"),
        (["--seconds", "0"], "--seconds: must be greater than 0"),
        (["--json_file", str(tmp_path / "absent" / "x.json")], "there is no folder"),
        (["--write", str(tmp_path / "absent.md")], "is not a page to write to"),
        (["--fast"], "unknown option"),
    ):
        with pytest.raises(OptionError, match=words):
            bench_rewards.read_options(argv)


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.path.insert(0, '.'); from rayjobs import bench_rewards\n"
        "try: bench_rewards.main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'torch', 'ray', 'aiohttp'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert shown.returncode == 0, shown.stderr
    assert "--images_per_call" in shown.stdout
