"""The Grafana board, Prometheus' configuration, a run's events and its counters."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayjobs.runtime.counters import COUNTERS, GAUGES, exported
from rayjobs.runtime.gauges import WATCHED
from rayjobs.runtime.state import DISK, RunState
from sharpening.evaluation.events import EVENTS, EventLog, read_events

ROOT = Path(__file__).resolve().parents[2]
GRAFANA = ROOT / "cluster" / "grafana"
BOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "sharpening.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
WORDS = {"sum", "avg", "by", "rate", "increase", "histogram_quantile"}


def metrics(expression: str) -> set[str]:
    """Names of the metrics in a PromQL expression that uses no other words than `WORDS`."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(by|on)\s*\([^)]*\)", " ", expression)
    return set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", bare)) - WORDS


def labels(expression: str) -> set[str]:
    """Labels that an expression selects or sums by."""
    grouped = re.findall(r"\bby\s*\(([^)]*)\)", expression)
    selected = re.findall(r"[{,]\s*(\w+)\s*[=!]~?", expression)
    return set(selected) | {name.strip() for group in grouped for name in group.split(",")}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_board_asks_for_what_is_exported(expression: str) -> None:
    known = exported() | served()
    found = metrics(expression)
    assert found
    for name in found:
        if name.startswith("ray_sharpening_"):
            assert name in known, f"{name} is exported by nobody"
            assert labels(expression) <= {*known[name], "le"}
        else:
            assert name.removesuffix("_bucket") in rays_own_boards()


def served() -> dict[str, tuple[str, ...]]:
    """What the rewards' replicas export: labels by name, as Prometheus has them."""
    from ray.util.metrics import Counter, Histogram, Metric

    from reward_servers.metrics import RewardMetrics

    found = {}
    for metric in vars(RewardMetrics("clip")).values():
        if isinstance(metric, Metric):
            end = "_total" if isinstance(metric, Counter) else "_bucket" if isinstance(metric, Histogram) else ""
            found[f"ray_{metric.info['name']}{end}"] = tuple(metric.info["tag_keys"])
    return found


def rays_own_boards() -> str:
    """Source of the boards that Ray ships: they name its metrics."""
    from ray.dashboard.modules.metrics import dashboards

    return "".join(path.read_text(encoding="utf-8") for path in Path(dashboards.__path__[0]).glob("*.py"))


def test_the_board_shows_what_an_operator_must_see() -> None:
    shown = {name.removeprefix("ray_sharpening_").removesuffix("_total") for e in EXPRESSIONS for name in metrics(e)}
    assert shown >= {
        "reward", "reward_spread", "loss", "staleness_updates", "queue_depth_tasks", "updates_per_second",
        "images_per_second", "nfe", "dropped_prompts", "publish_seconds", "held_out_reward", "held_out_facts", "alarm",
    }  # fmt: skip
    described = [panel["description"] for panel in PANELS]
    assert all(described)
    variable = next(entry for entry in BOARD["templating"]["list"] if entry["name"] == "run")
    assert metrics(variable["query"]["query"].removeprefix("label_values").strip("()").partition(",")[0]) <= set(
        exported()
    )


def test_the_board_is_laid_out_without_overlaps() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


def test_names_follow_prometheus_conventions() -> None:
    for name, (tags, about) in (COUNTERS | GAUGES).items():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)
        assert about
        assert "run" not in tags
        assert not name.endswith("_total")  # Ray's exporter adds it to counters
    assert all(WATCHED.values())
    assert not set(WATCHED) & (set(COUNTERS) | set(GAUGES))


def test_the_documentation_names_every_metric_and_its_alerts_ask_for_them() -> None:
    text = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    listed = {
        name for row in text.splitlines() if row.startswith("| `") for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert {name.removeprefix("ray_sharpening_") for name in exported()} <= listed
    rules = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])["groups"][0]["rules"]
    assert len(rules) == 3
    for rule in rules:
        assert metrics(re.sub(r"[=><]=?\s*\d+", "", rule["expr"])) <= set(exported())


def test_provisioning_names_no_machine() -> None:
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text(encoding="utf-8"))
    assert source["datasources"][0]["url"] == "$RAY_PROMETHEUS_HOST"
    boards = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "sharpening.yml").read_text(encoding="utf-8"))
    paths = [provider["options"]["path"] for provider in boards["providers"]]
    assert paths == ["$SHARPENING_GRAFANA", "/tmp/ray/session_latest/metrics/grafana/dashboards"]
    scrape = yaml.safe_load((GRAFANA / "prometheus.yml").read_text(encoding="utf-8"))
    assert scrape["scrape_configs"][0]["file_sd_configs"][0]["files"] == [
        "/tmp/ray/prom_metrics_service_discovery.json"
    ]


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt install prometheus)"
)
def test_prometheus_itself_reads_configuration_and_expressions(tmp_path: Path) -> None:
    subprocess.run(["promtool", "check", "config", str(GRAFANA / "prometheus.yml")], check=True, capture_output=True)
    rules = [
        {"record": f"board:{number}", "expr": expression.replace("$__rate_interval", "1m").replace("$run", ".*")}
        for number, expression in enumerate(EXPRESSIONS)
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    checked = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert f"{len(EXPRESSIONS)} rules found" in checked.stdout


def test_events_are_kept_in_order_over_a_kill_and_a_resume(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.add("an actor died", "restart", role="rollout")
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(b'{"time": "2025')  # a kill cuts a line short
    EventLog(tmp_path).add("resumed at update 3", "resume", update=3)
    log.add("a line\nof two", "note")
    found = read_events(tmp_path)
    assert [(event["kind"], event["text"]) for event in found] == [
        ("restart", "an actor died"), ("resume", "resumed at update 3"), ("note", "a line\nof two"),
    ]  # fmt: skip
    assert found[1]["update"] == 3
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"]) for event in found)
    assert read_events(tmp_path / "nowhere") == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a device without room")
def test_a_full_disk_costs_an_event_and_not_the_run(tmp_path: Path) -> None:
    state = RunState(EventLog(tmp_path).add)
    (tmp_path / EVENTS).symlink_to("/dev/full")
    state.end(DISK, "no room")
    assert state.events == ["stopping: no room"]
    assert state.stop is not None
