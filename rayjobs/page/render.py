"""Puts the page together: what the files hold, the template, style and script inline, and nothing from a network."""

from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

from rayjobs.commands import program
from rayjobs.page import charts, images, settings, tables
from rayjobs.page.contents import Contents, read_contents
from rayjobs.page.numbers import fixed, seconds, size, thinned

PAGE = "report.html"
TEMPLATES = Path(__file__).resolve().parent / "templates"
MOST_ROWS = 200  # rows of the table of all updates; the whole of it is in metrics.parquet
FILES = {
    "config.json": "every option, resolved", "metrics.parquet": "one row an update",
    "metrics.jsonl": "the same, while the run goes on", "evaluation.parquet": "held-out prompts before and after",
    "validation.parquet": "looks at held-out prompts",
    "own_prompts.parquet": "rewards of your own prompts' images, look by look",
    "events.jsonl": "what happened besides updates",
    "cost.json": "the cost account", "summary.json": "the final table for programs", "pipeline": "the trained model",
    "checkpoints": "what a resumed run goes on from",
}  # fmt: skip


def write_page(folder: Path, output: Path) -> None:
    """Make a run's report page.

    Args:
        folder: The run folder.
        output: The HTML file; replaced in one step.

    Raises:
        PageError: If the folder is no run's, or a file in it is damaged.
        OSError: If the page cannot be written.
    """  # noqa: DOC502
    from sharpening.evaluation.files import write_bytes

    write_bytes(output, render(read_contents(folder)).encode())


def render(contents: Contents) -> str:
    """The page.

    Args:
        contents: The run.

    Returns:
        One HTML document. Everything that comes from files is escaped; its policy lets a browser run this page's own
        script and nothing else, and load nothing.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = environment.get_template("page.html.j2")
    return page.render(style=Markup(style), script=Markup(script), policy=policy, **_facts(contents))  # noqa: S704


def _hash(text: str) -> str:
    """How a content security policy names an inline style or script."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _facts(contents: Contents) -> dict[str, Any]:
    """What the template shows."""
    groups = settings.settings(contents.config)
    drawn = charts.charts(contents)
    blocks = tables.headline(contents)
    return {
        "name": contents.folder.resolve().name, "config": contents.config, "state": state(contents),
        "tiles": _tiles(contents, blocks), "blocks": blocks, "base_model": tables.base_model(contents),
        "movers": tables.movers(contents), "charts": drawn,
        "chart_data": [chart.data() for chart in drawn],
        "frame": {"left": charts.LEFT, "right": charts.RIGHT,
                  "top": charts.TOP, "bottom": charts.BOTTOM},
        "updates": _updates(contents), "made": contents.updates,
        "grids": images.sample_grids(contents.folder), "looks": _looks(contents),
        "cost": tables.cost_bars(contents.cost), "wall": contents.cost.get("seconds", {}).get("wall"),
        "faults": tables.faults(contents), "events": contents.events, "seconds": seconds,
        "groups": groups, "changed": settings.changed(groups), "versions": tables.versions(contents),
        "command": _command(contents),
        "files": {name: about for name, about in FILES.items() if (contents.folder / name).exists()},
    }  # fmt: skip


def state(contents: Contents) -> tuple[str, str]:
    """How the run ended, if it did.

    Args:
        contents: The run.

    Returns:
        One word for its mark (`finished`, `stopped`, `unfinished`), and a sentence.
    """
    planned = contents.planned
    made = f"{contents.updates} of {planned} updates" if planned else f"{contents.updates} updates"
    last = [event for event in contents.events if event["kind"] in ("stop", "resume")][-1:]
    finished = contents.summary and contents.summary.get("updates") == contents.updates
    if finished and (planned is None or contents.updates >= planned):
        return "finished", f"The run made all its {contents.updates} updates."
    if last and last[0]["kind"] == "stop":
        return "stopped", f"The run ended after {made}: {str(last[0]['text']).removeprefix('stopping: ')}."
    return "unfinished", f"The run has made {made}; it goes on, or ended without a word."


def _tiles(contents: Contents, blocks: list[tables.Block]) -> list[tuple[str, str, str]]:
    """(what, value, in small print) of the numbers on top."""
    found = []
    for line in blocks[0].lines if blocks and blocks[0].own else []:
        if line.overall:
            about = {"reward": "reward", "facts": "facts that hold", "all": "prompts fully right"}[line.name]
            found.append((about, line.difference, f"{line.interval} {line.verdict}".strip()))
    planned = contents.planned
    found.append(("updates", str(contents.updates), f"of {planned}" if planned else ""))
    cost = contents.cost
    if cost.get("nfe"):
        nfe = cost["nfe"]
        found.append(("NFE, training", fixed(nfe.get("training", 0), 0), "network evaluations"))
    wall = cost.get("seconds", {}).get("wall")
    spent = sum(row.get("seconds") or 0.0 for row in contents.rows)
    found.append(("training", seconds(spent), f"of {seconds(wall)} in all" if wall else "so far"))
    if cost.get("peak_memory_bytes"):
        role, peak = max(cost["peak_memory_bytes"].items(), key=lambda item: item[1])
        found.append(("peak memory", size(peak), f"a {role.replace('_', ' ')} process"))
    return found


def _updates(contents: Contents) -> dict[str, Any]:
    """The table of all updates: its columns, and rows as text."""
    rows = contents.rows
    names = [name for name in dict.fromkeys(n for row in rows for n in row) if name != "update"]
    kept = [rows[place] for place in thinned(len(rows), MOST_ROWS)]
    return {
        "names": names, "all": len(rows),
        "rows": [(int(row["update"]) + 1, [_cell(row.get(name)) for name in names]) for row in kept],
    }  # fmt: skip


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else "" if value is None else str(value)


def _looks(contents: Contents) -> list[dict[str, Any]]:
    """Series of grids that a slider steps through: held-out prompts, then the user's own."""
    held_out = {int(look["update"]): _look(look) for look in contents.looks}
    own: dict[int, list[float]] = {}
    for row in contents.own:
        own.setdefault(int(row["update"]), []).extend([] if row["reward"] is None else [row["reward"]])
    means = {update: f"reward {fixed(fmean(found), 2)}" if found else "not scored" for update, found in own.items()}
    series: list[dict[str, Any]] = [
        {"title": "As the model learns", "note": "Other held-out prompts, from the same noise at every look.",
         "label": "look at held-out prompts", "grids": images.look_grids(contents.folder), "told": held_out},
        {"title": "Your own prompts",
         "note": "Before training, at every look and after it, from the same noise, each image with its reward. No "
         "verifier knows what they claim.",
         "label": "look at your own prompts", "grids": images.own_grids(contents.folder), "told": means},
    ]  # fmt: skip
    for look in series:
        look["told"] = {grid.update: look["told"].get(grid.update, "") for grid in look["grids"]}
    return [look for look in series if look["grids"]]


def _look(look: dict[str, Any]) -> str:
    """What a look at held-out prompts found, in words."""
    told = [f"reward {fixed(look['reward'], 2)}"] if look.get("reward") is not None else []
    told += [f"facts {fixed(look['facts'], 3)}"] if look.get("facts") is not None else []
    return ", ".join(told)


def _command(contents: Contents) -> str:
    """The command that starts such a run again."""
    return f"python rayjobs/{program(contents.config['method'])} --config {contents.folder.resolve().name}/config.json"
