"""The report page: its numbers against the run's own files, its safety, and the page in a real browser."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy import stats

from rayjobs.options import RLHFOptions
from rayjobs.page import numbers
from rayjobs.report import main
from sharpening.evaluation.cost import CostAccount
from sharpening.evaluation.events import EventLog
from sharpening.evaluation.files import write_parquet
from sharpening.evaluation.grids import sample_grid
from sharpening.evaluation.run_folder import RunFolder
from sharpening.evaluation.summary import PromptResult, judged, summarise

ROOT = Path(__file__).resolve().parents[2]
UPDATES = 9
NASTY = '</script><script>alert("x")</script> & <img src=x onerror=alert(1)> {{ 7 * 7 }}'
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
NO_BROWSER = "no Chromium is installed (Debian: apt install chromium)"


def metric(update: int) -> dict[str, Any]:
    noise = np.random.default_rng(update)
    return {
        "update": update, "version": update, "loss": 0.69 - 0.01 * update + 0.003 * noise.random(), "accuracy": 0.5,
        "reward": 55 + update + noise.random(), "reward_spread": 2.0, "reward_best": 60.0 + update,
        "reward_worst": 50.0 + update, "grad_norm": 3.0, "seconds": 2.5, "dropped": 0, "restarts_rollout": 0,
        "restarts_learner": 0,
    }  # fmt: skip


def results() -> list[PromptResult]:
    noise = np.random.default_rng(5)
    rows = []
    for phase, gain in (("before", 0.0), ("after", 2.0)):
        for index in range(10):
            prompt = NASTY if index == 3 else f"a red circle, number {index}"
            reward = 60 + gain + 3 * noise.standard_normal()
            rows.append(
                PromptResult(
                    index, prompt, ("colour", "shape")[index % 2], phase, 1.0, **judged(reward, (True, index > 4))
                )  # type: ignore[arg-type]
            )
    return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder, with held-out looks, an alarm, faults, and a prompt that would do harm."""
    # Of these, resolution and eval_steps are what validation derives from the model and from --rollout_steps.
    options = RLHFOptions(max_train_steps=UPDATES, learning_rate=2e-6, resolution=64, eval_steps=12)
    folder = RunFolder.create(tmp_path_factory.mktemp("page") / "rlhf-test", options.config())
    log = folder.metrics()
    for update in range(UPDATES):
        log.append(metric(update) | {"restarts_rollout": int(update > 4), "dropped": 3 * (update == 2)})
    log.write_table()
    folder.write_evaluation(results())
    looks = {"update": [1, 4, 7], "reward": [58.125, 59.5, 59.25], "facts": [0.7, 0.6, 0.5]}
    write_parquet(
        folder.path / "validation.parquet", looks | {"training_reward": [1.0, 2.0, 3.0], "alarm": [False, False, True]}
    )
    cost = CostAccount()
    cost.add_nfe("rollout", 3000)
    cost.add_nfe("learn", 1000)
    cost.add_nfe("evaluate", 500)
    cost.add_seconds({"generate": 20.0, "learn": 5.0, "wall": 61.0})
    cost.note_memory("learner", 3 * 2**30)
    folder.write_cost(cost)
    folder.write_summary(summarise(results(), 1.0, updates=UPDATES, seconds=61.0, nfe=4500))
    events = EventLog(folder.path)
    events.add("rollout-0 died; Ray restarts it", "restart", role="rollout")
    events.add(
        f"update 2: 3 prompts could not be scored {NASTY}",
        "dropped",
        update=2,
        reasons={"not finite": 2, "rejected": 1},
    )
    for update in (1, 4, 7):
        shade = np.full((2, 64, 64, 3), 20 * update, np.uint8)
        folder.write_image(f"samples_{update:06d}.png", sample_grid(shade, [NASTY, "a square"]), [NASTY, "a square"])
    folder.write_image("samples_compared.png", sample_grid(shade, ["a", "b"]), ["a", "b"])
    for update in (0, 4):
        shade = np.full((2, 64, 64, 3), 30 + 10 * update, np.uint8)
        folder.write_image(f"own_prompts_{update:06d}.png", sample_grid(shade, ["my own", NASTY]), ["my own", NASTY])
    own = {"update": [0, 0, 4, 4], "prompt": ["my own", NASTY] * 2, "image": [0] * 4, "reward": [3.0, 4.0, 7.0, None]}
    write_parquet(folder.path / "own_prompts.parquet", own)
    return folder.path


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    assert main([str(run)]) == 0
    return (run / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """What a browser would make of a page: tables by id, scripts, attributes, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._table = self._row = self._cell = self._script = False
        self._rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "table":
            self._rows = self.tables.setdefault(dict(attrs).get("id") or f"table {len(self.tables)}", [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th") and self._rows:
            self._rows[-1].append("")
            self._cell = True
        elif tag == "script":
            self.scripts.append("")
            self._script = True

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")
        self._script = self._script and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[-1] += data
            return
        self.text += data
        if self._cell:
            self._rows[-1][-1] += data.strip()


def number(text: str) -> float:
    return float(text.replace("\N{MINUS SIGN}", "-").replace("\N{NARROW NO-BREAK SPACE}", ""))


def test_the_headline_is_what_the_parquet_says(run: Path, html: str) -> None:
    table = pq.read_table(run / "evaluation.parquet").to_pandas()
    lines = {row[0]: row for row in Page(html).tables["headline-1"][1:]}
    assert list(lines)[:3] == ["reward", "facts", "all"]
    for name, category in (("reward", None), ("facts", None), ("reward colour", "colour"), ("all shape", "shape")):
        part = table if category is None else table[table.category == category]
        column = name.split()[0]
        before, after = (
            part[part.phase == phase].set_index("index")[column].astype(float) for phase in ("before", "after")
        )
        gain = after - before
        low, high = stats.t.interval(0.95, len(gain) - 1, gain.mean(), stats.sem(gain)) if gain.std() else (0.0, 0.0)
        shown = [number(text) for text in (*lines[name][1:4], *lines[name][4].strip("[]").split(", "))]
        expected = [before.mean(), after.mean(), gain.mean(), low, high]
        assert shown == pytest.approx(expected, abs=0.006 if column == "reward" else 0.0006)
        assert lines[name][5] == ("up" if low > 0 else "down" if high < 0 else "")


def test_several_rewards_have_a_line_each(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    rows = [
        replace(row, parts={"embedded-aesthetic": 5 + 0.1 * row.index * (row.phase == "after")}) for row in results()
    ]
    RunFolder(folder).write_evaluation(rows)
    log = RunFolder(folder).metrics()
    log.rewrite([row | {"reward_clip_mean": 60.0 + row["update"], "reward_aesthetic_mean": 5.0} for row in log.rows])
    assert main([str(folder)]) == 0
    page = Page((folder / "report.html").read_text())
    (line,) = [row for row in page.tables["headline-1"] if row[0] == "reward embedded aesthetic"]
    assert [number(text) for text in line[1:4]] == pytest.approx([5.0, 5.45, 0.45])
    (chart,) = [chart for chart in json.loads(page.scripts[0]) if chart["id"] == "by_reward"]
    assert {s["name"]: s["texts"][-1] for s in chart["series"]} == {"clip": "68.00", "aesthetic": "5.00"}


def test_the_curves_are_what_the_parquet_says(run: Path, html: str) -> None:
    data = {chart["id"]: chart for chart in json.loads(Page(html).scripts[0])}
    metrics, looks = (pq.read_table(run / name).to_pydict() for name in ("metrics.parquet", "validation.parquet"))
    series = {s["key"]: s for s in data["reward"]["series"]}
    assert series["mean"]["updates"] == [update + 1 for update in metrics["update"]]
    for key, column in {"mean": "reward", "best": "reward_best", "worst": "reward_worst"}.items():
        assert [number(text) for text in series[key]["texts"]] == pytest.approx(metrics[column], abs=0.05)
    assert series["held"]["updates"] == looks["update"]
    assert [number(text) for text in series["held"]["texts"]] == pytest.approx(looks["reward"], abs=0.05)
    assert [number(text) for text in data["facts"]["series"][0]["texts"]] == pytest.approx(looks["facts"], abs=1e-3)
    assert [number(text) for text in data["loss"]["series"][0]["texts"]] == pytest.approx(metrics["loss"], abs=1e-3)
    # Points stand where their values are: a straight line through the axis' own ticks.
    ys, values = np.array(series["mean"]["ys"]), np.array(metrics["reward"])
    slope, offset = np.polyfit(values, ys, 1)
    assert slope < 0  # up is more
    assert np.abs(slope * values + offset - ys).max() < 0.2
    chart = html[html.index('id="chart-reward"') :]
    labels = re.findall(r'y="([\d.]+)" text-anchor="end">([\d.]+)<', chart[: chart.index("</svg>\n</div>")])
    assert len(labels) >= 3
    for y, label in labels:
        assert slope * float(label) + offset == pytest.approx(float(y) - 4, abs=0.3)
    table = Page(html).tables["updates"]
    assert [int(row[0]) for row in table[1:]] == list(range(1, UPDATES + 1))
    assert number(table[3][1 + table[0][1:].index("loss")]) == pytest.approx(metrics["loss"][2], rel=1e-4)


def test_cost_faults_configuration_and_versions_are_told(run: Path, html: str) -> None:
    page = Page(html)
    text = " ".join(page.text.split())
    assert "finished" in text
    for told in (
        "4 000",
        "3.00 GiB",
        "1 min 01 s",
        "2 not finite, 1 rejected",
    ):
        assert told in text
    widths = [
        float(value.rstrip("%"))
        for tag, name, value in page.attributes
        if (tag, name) == ("rect", "width") and "%" in value
    ]
    assert {100.0, round(100 / 3, 2), round(100 / 6, 2)} <= {round(width, 2) for width in widths}
    assert "Alarm from update 7 on" in text
    assert [row[1] for row in page.tables["events"][1:]] == ["restart", "dropped"]
    rate = f"{RLHFOptions.model_fields['learning_rate'].default:g}"
    changed = {row[0]: row[1:3] for row in page.tables["changed"][1:]}
    assert changed == {"--max_train_steps": ["9", "36"], "--learning_rate": ["2e-06", rate]}
    versions = json.loads((run / "versions.json").read_text())
    assert versions["packages"]["numpy"] in text
    assert versions["python"] in text


def test_what_comes_from_prompts_and_logs_cannot_become_markup(html: str) -> None:
    page = Page(html)
    assert len(page.scripts) == 2  # the data and the page's own
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert not [a for a in page.attributes if a[0] == "img" and not a[2].startswith("data:image/") and a[1] == "src"]
    assert page.text.count(NASTY) >= 3  # in the prompts that moved, in an event, beneath the grids
    assert json.loads(page.scripts[0])


def test_nothing_is_loaded_and_no_other_script_may_run(html: str) -> None:
    page = Page(html)
    for _, name, value in page.attributes:
        if name in ("src", "href", "action", "data", "srcset"):
            assert value.startswith(("#", "data:image/"))
    assert "://" not in re.sub(r'"data:[^"]*"', "", html).replace('"http://www.w3.org/2000/svg"', "")
    policy = next(value for tag, name, value in page.attributes if name == "content" and "default-src" in value)
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert not [a for a in page.attributes if a[1] == "style"]


def test_it_reads_without_eyes_on_it(html: str) -> None:
    page = Page(html)
    pictures = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert len(pictures) == 6
    assert all("Sample grid" in text for text in pictures)
    drawings = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(drawings) == 6
    assert re.search(r"Loss over updates 1 to 9: loss from 0\.69\d* to 0\.61\d*", " ".join(drawings))


def test_the_pictures_are_the_runs_own(run: Path, html: str) -> None:
    urls = [value for tag, name, value in Page(html).attributes if (tag, name) == ("img", "src")]
    found = [base64.b64decode(url.partition(",")[2]) for url in urls]
    names = ["samples_compared.png", *(f"samples_{update:06d}.png" for update in (1, 4, 7))]
    names += [f"own_prompts_{update:06d}.png" for update in (0, 4)]
    assert found == [(run / name).read_bytes() for name in names]


def test_own_prompts_have_rewards_and_no_facts(html: str) -> None:
    own = html[html.index("<h3>Your own prompts</h3>") : html.index('<section id="cost">')]
    text = " ".join(Page(own).text.split())
    assert "after update 0: reward 3.50" in text.replace(" :", ":")
    assert "after update 4: reward 7.00" in text.replace(" :", ":")
    assert "my own" in text
    assert "fact" not in own
    assert "fact" in html[html.index("<h3>As the model learns</h3>") : html.index("<h3>Your own prompts</h3>")]


def test_large_grids_are_packed(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (300, 1900, 3), dtype=np.uint8)
    RunFolder(folder).write_image("samples_compared.png", Image.fromarray(noise))
    assert main([str(folder)]) == 0
    url = re.search(r'src="data:image/webp;base64,([^"]+)"', (folder / "report.html").read_text())
    assert url is not None
    with Image.open(BytesIO(base64.b64decode(url[1]))) as packed:
        assert packed.size == (1800, 284)


def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("report.html")))


def test_a_run_that_goes_on_or_died_has_a_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(run, tmp_path)
    for name in (
        "metrics.parquet",
        "summary.json",
        "evaluation.parquet",
        "samples_compared.png",
        "cost.json",
        "versions.json",
    ):
        (folder / name).unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:5]) + '\n{"update": 5, "lo')
    assert main([str(folder), "--output", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert not (folder / "report.html").exists()
    text = " ".join(Page((tmp_path / "page.html").read_text()).text.split())
    assert "unfinished" in text
    assert "The run has made 5 of 9 updates; it goes on, or ended without a word." in text
    EventLog(folder).add("stopping: the reward 'clip' gave no answer for 5 s", "stop", why="reward")
    assert main([str(folder)]) == 0
    text = " ".join(Page((folder / "report.html").read_text()).text.split())
    assert "The run ended after 5 of 9 updates: the reward 'clip' gave no answer for 5 s." in text
    before = [row for row in results() if row.phase == "before"]
    RunFolder(folder).write_evaluation(before)
    assert main([str(folder)]) == 0
    mean = np.mean([row.reward for row in before if row.reward is not None])
    assert f"The base model's reward on 10 held-out prompts is {mean:.2f}" in (
        folder / "report.html"
    ).read_text().replace("&#39;", "'")


def test_a_folder_with_a_configuration_alone_has_a_page(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "fresh", {**RLHFOptions().config(), "option_of_another_version": 3}).path
    assert main([str(folder)]) == 0
    text = " ".join(Page((folder / "report.html").read_text()).text.split())
    for told in ("No update was made yet.", "Nothing was evaluated.", "no sample grids", "option_of_another_version"):
        assert told in text
    assert "Nothing went wrong" in text


def test_a_methods_page_without_reward_and_of_an_unknown_method(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "sft", {"method": "of-tomorrow", "max_train_steps": 2, "seed": 0})
    folder.metrics().append({"update": 0, "version": 0, "loss": 0.5, "seconds": 1.0})
    assert main([str(folder.path)]) == 0
    charts = json.loads(Page((folder.path / "report.html").read_text()).scripts[0])
    assert [chart["id"] for chart in charts] == ["loss", "seconds"]


@pytest.mark.parametrize(
    ("name", "contents", "said"),
    [
        ("config.json", b"{", r"config\.json cannot be read \(.*\); restore it"),
        ("config.json", b'{"search": "demon"}', r"config\.json names no method; pass the folder of a fine-tuning run"),
        ("config.json", None, r"is no run folder, it has no config\.json; pass the folder"),
        ("evaluation.parquet", b"PAR1nonsense", r"evaluation\.parquet cannot be read"),
        ("validation.parquet", b"", r"validation\.parquet cannot be read"),
        ("metrics.jsonl", b'{"update": 0}\nnonsense\n{"update": 1}\n', r"metrics\.jsonl cannot be read \(line 2 is"),
        ("cost.json", b"[1]", r"cost\.json cannot be read \(it holds no JSON object\)"),
        ("samples_000004.png", b"\x89PNG cut", r"samples_000004\.png is no whole picture"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_in_one_sentence(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, contents: bytes | None, said: str
) -> None:
    folder = copied(run, tmp_path)
    (folder / name).unlink()
    if contents is not None:
        (folder / name).write_bytes(contents)
    assert main([str(folder)]) == 2
    told = capsys.readouterr().err
    assert re.search(said, told)
    assert told.count("\n") == 1
    assert not (folder / "report.html").exists()


def test_a_missing_folder_and_a_device_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    folder = copied(run, tmp_path)
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").symlink_to("/dev/null")  # another device might be read for ever
    assert main([str(folder)]) == 2
    assert "metrics.jsonl cannot be read (it is no file)" in capsys.readouterr().err
    assert main([str(run), "--output", str(tmp_path / "no" / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_command_imports_nothing_heavy() -> None:
    modules = "rayjobs.report, rayjobs.page.render, rayjobs.page.settings, rayjobs.page.images"
    code = f"import sys, {modules}; print([m for m in ('torch', 'ray') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_ticks_are_round_and_within() -> None:
    assert numbers.ticks(0.0, 10.0) == [0, 2, 4, 6, 8, 10]
    assert numbers.ticks(57.3, 62.9) == pytest.approx([58, 59, 60, 61, 62][::1]) or numbers.ticks(
        57.3, 62.9
    ) == pytest.approx([58, 60, 62])
    assert numbers.ticks(1, 3, 8, whole=True) == [1, 2, 3]
    assert numbers.ticks(0.0031, 0.0039) == pytest.approx([0.0032, 0.0034, 0.0036, 0.0038])


def test_numbers_are_worded_so_that_they_can_be_read() -> None:
    assert numbers.fixed(-1234.5, 1) == "\N{MINUS SIGN}1\N{NARROW NO-BREAK SPACE}234.5"
    assert numbers.fixed(-0.0001, 2, sign=True) == "+0.00"
    assert [numbers.seconds(value) for value in (0.421, 59.4, 317, 3 * 3600 + 300)] == [
        "0.42 s",
        "59 s",
        "5 min 17 s",
        "3 h 05 min",
    ]
    assert [numbers.size(value) for value in (512, 2**20, 1.25 * 2**30)] == ["512 bytes", "1 MiB", "1.25 GiB"]
    assert list(numbers.thinned(5, 9)) == [0, 1, 2, 3, 4]
    assert list(numbers.thinned(101, 3)) == [0, 50, 100]
    assert numbers.decimals_for([55.0, 60.0]) == 2
    assert numbers.decimals_for([3.0]) == 2


def browse(page: Path, tmp_path: Path, fragment: str = "") -> str:
    """The document as headless Chromium has it, after its scripts."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--virtual-time-budget=5000",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"{page.as_uri()}{fragment}",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout


@pytest.mark.skipif(not CHROMIUM, reason=NO_BROWSER)
def test_a_browser_reads_values_at_an_update(run: Path, html: str, tmp_path: Path) -> None:
    metrics = pq.read_table(run / "metrics.parquet").to_pydict()
    dom = browse(run / "report.html", tmp_path, "#update=4")
    assert 'class="scripted"' in dom
    chart = dom[dom.index('id="chart-reward"') : dom.index('id="chart-facts"')]
    shown = dict(re.findall(r'data-value="(\w+)">([^<]+)<', chart))
    assert number(shown["mean"]) == pytest.approx(metrics["reward"][3], abs=0.05)
    assert number(shown["held"]) == pytest.approx(59.5, abs=0.05)
    plot = re.search(r'<div class="plot"[^>]*>', chart)
    assert plot is not None
    assert 'role="slider"' in plot[0]
    assert 'aria-valuenow="4"' in plot[0]
    assert 'tabindex="0"' in plot[0]
    assert f'aria-valuetext="after update 4: best branch {shown["best"]}' in plot[0]
    assert len(re.findall(r'<figure data-update="4" class="shown">', dom)) == dom.count('class="shown"') == 2
    assert ">after update 4 (2 of 3)<" in dom
    assert ">after update 4 (2 of 2)<" in dom  # the user's own prompts have a slider of their own
    assert "alert(" not in re.sub(r"&lt;.*?&gt;", "", Page(dom).scripts[1])
    assert len(Page(dom).scripts) == 2


@pytest.mark.skipif(not CHROMIUM, reason=NO_BROWSER)
def test_a_browser_without_scripts_shows_everything(html: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(re.sub(r"script-src &#39;sha256-[^&]+&#39;", "script-src &#39;none&#39;", html), encoding="utf-8")
    dom = browse(page, tmp_path)
    assert 'class="scripted"' not in dom
    assert re.search(r'class="slider" hidden', dom)
    assert Page(dom).tables["headline-1"] == Page(html).tables["headline-1"]
    assert len(re.findall(r'<figure data-update="\d+">', dom)) == 5


@pytest.mark.skipif(not CHROMIUM, reason=NO_BROWSER)
def test_a_browser_runs_no_other_script(html: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    harm = "<script>document.title = 'harmed'</script>"
    page.write_text(html.replace("<main>", f"<main>{harm}"), encoding="utf-8")
    dom = browse(page, tmp_path)
    assert 'class="scripted"' in dom  # its own script ran
    assert "<title>harmed" not in dom
