"""The report's sections as Markdown; each is empty where nothing was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from sharpening.evaluation.comparison import paper
from sharpening.evaluation.comparison.columns import COLUMNS
from sharpening.evaluation.comparison.divergence import REWARD, VERIFIERS, divergences
from sharpening.evaluation.comparison.estimate import MIN_SEEDS
from sharpening.evaluation.comparison.guidance import equal_cost_table, guidance_table
from sharpening.evaluation.comparison.markdown import NONE, gain, level, markdown_table, whole
from sharpening.evaluation.comparison.missing import describe
from sharpening.evaluation.comparison.ranks import Agreement, agreements
from sharpening.evaluation.comparison.records import SystemCost
from sharpening.evaluation.comparison.results import ComparisonResults, Sweep, Trial
from sharpening.evaluation.comparison.scores import Scores
from sharpening.evaluation.comparison.selection import main_settings, of_same_seeds
from sharpening.evaluation.comparison.systems import title_of
from sharpening.evaluation.comparison.tables import Table, main_table, paper_rows, sweep_agreement, sweep_table
from sharpening.evaluation.comparison.verdicts import claims, verdicts

QUESTION = (
    "At equal training seconds, does RLHF sharpening score above the base model, standard fine-tuning, DDPO and D3PO "
    "on held-out verifiers, and does it reach at the base model's cost an image what the best search reaches at "
    "{multiple:g} times that cost?"
)
ESTIMATOR = (
    "Means and 95 % intervals are over seeds and prompts, both taken as drawn from a population (crossed random "
    "effects, Student's t with Satterthwaite's degrees of freedom). Differences are between images of the same prompt "
    "and noise seed. Intervals are not corrected for their number. ▲ and ▼: the paired interval against the base model "
    "excludes zero, with three seeds or more."
)


def question(results: ComparisonResults, scores: Scores) -> str:
    """What was asked, and with what."""
    settings = main_settings(results, scores)
    tables = [scores.table(setting, results.overall) for setting in settings.values()]
    sizes = f"{max((len(t) for t in tables), default=0)} seeds × {max((t.shape[1] for t in tables), default=0)} prompts"
    guided = "unguided" if results.guidance_scale == 1 else f"guidance {results.guidance_scale:g}"
    setting = f"{len(settings)} systems, {sizes}, {results.steps} sampler steps, {guided}."
    return f"## Question\n\n{QUESTION.format(multiple=results.search_multiple)}\n\n{setting} {ESTIMATOR}"


def outcome(results: ComparisonResults, scores: Scores) -> str:
    """Claims, verdicts and notes in sentences."""
    settings = main_settings(results, scores)
    found = verdicts(settings, scores, results.overall)
    lines = [f"- {claim.sentence}" for claim in claims(results, settings, found)]
    lines += ["", "One by one:", "", *(f"- {one.sentence}" for one in found)] if found else []
    lines += ["", "What was found out:", "", *(f"- {note}" for note in results.notes)] if results.notes else []
    return "\n".join(["## Verdicts", "", *lines])


def levels_and_gains(results: ComparisonResults, scores: Scores) -> str:
    """Table 1's analogue, and the differences to the base model."""
    table = main_table(results, scores)
    if not table.rows:
        return ""
    legend = "; ".join(
        f"*{COLUMNS[name].title}*: {COLUMNS[name].meaning}" for name in table.columns if not COLUMNS[name].category
    )
    gains = [
        [row.title, *(gain(row.cells[name].difference, COLUMNS[name].decimals) for name in table.columns)]
        for row in table.rows
        if any(cell.difference for cell in row.cells.values())
    ]
    parts = [
        "## All systems", "Mean ± half the interval's width; mark against the base model. Training NFE and seconds are "
        "a mean over seeds.", level_table(table, "system", cost=True),
        f"{legend}; the other columns: share of facts that hold on that category's prompts.",
    ]  # fmt: skip
    if gains:
        header = ["system", *(COLUMNS[name].title for name in table.columns)]
        parts += ["Differences to the base model:", markdown_table(header, gains)]
    return "\n\n".join(parts)


def level_table(table: Table, first: str, *, cost: bool = False) -> str:
    """A table of means.

    Args:
        table: its rows.
        first: title of the first column.
        cost: whether the columns of the cost are added.

    Returns:
        Markdown.
    """
    header = [first, *(COLUMNS[name].title for name in table.columns), "NFE/image"]
    header += ["training NFE", "training s", "s/image", "updates"] if cost else []
    rows = []
    for row in table.rows:
        cells = [level(cell.value, COLUMNS[name].decimals, cell.mark) for name, cell in row.cells.items()]
        spent = row.cost or {}
        costs = [whole(spent.get(n)) for n in ("training_nfe", "training_seconds", "seconds_per_image", "updates")]
        rows.append([row.title, *cells, whole(row.setting.nfe), *(costs if cost else [])])
    return markdown_table(header, rows)


def beside_the_paper(results: ComparisonResults, scores: Scores) -> str:
    """The paper's Table 1 and how far the orderings agree."""
    header = ["paper, SDXL", *(COLUMNS[name].title for name in paper.COLUMNS)]
    rows = [[title, *(f"{row[name]:g}" for name in paper.COLUMNS)] for title, row in paper_rows(paper.TABLE_1)]
    parts = [
        "## Beside the paper",
        f"{paper.SOURCE}, Table 1: other images, judges and scales (its CLIP is a cosine, its preference model "
        "ImageReward, its grader GPT-4o; it gives no intervals). Levels do not compare; orders do.",
        markdown_table(header, rows),
    ]
    found = agreements(main_settings(results, scores), scores)
    if not found:
        return "\n\n".join([*parts, "Orders cannot be compared: fewer than three systems are in both."])
    header = ["order of systems", "systems", "Spearman ρ", "Kendall τ", "p of τ", "pairs decided", "as in the paper"]
    rows = [
        [COLUMNS[name].title, str(one.correlation.systems), f"{one.correlation.spearman:+.2f}",
         f"{one.correlation.kendall:+.2f}", f"{one.correlation.p_value:.3f}", str(one.decided), str(one.agreeing)]
        for name, one in found.items()
    ]  # fmt: skip
    parts += [
        "Pairs decided: pairs of systems that our intervals tell apart. Its *Inference Scaling* stands beside the mean "
        "of our searches of that work.", markdown_table(header, rows), reversals(found),
    ]  # fmt: skip
    return "\n\n".join(parts)


def reversals(found: Mapping[str, Agreement]) -> str:
    """Pairs of systems that we order otherwise than the paper, with intervals that exclude zero."""
    titles = {"inference_scaling": "Inference Scaling"}
    lines = []
    for column, one in found.items():
        pairs = [" over ".join(titles.get(name, title_of(name)) for name in pair) for pair in one.reversed]
        if pairs:
            lines.append(f"- {COLUMNS[column].title}: {'; '.join(pairs)}")
    if not lines:
        return "No pair that our intervals decide is the other way round in the paper."
    return "\n".join(["The other way round than in the paper (better with us over better in the paper):", "", *lines])


def swept(sweep: Sweep, results: ComparisonResults) -> str:
    """One option's table, beside the paper's where it has one."""
    own = of_same_seeds(results, sweep)
    table = sweep_table(sweep, own, Scores(own.judgements))
    if not table.rows:
        return ""
    compared = [name for name in ("clip", "facts", results.overall) if name in table.columns]
    gains = [
        [row.title, *(gain(row.cells[name].difference, COLUMNS[name].decimals) for name in compared),
         whole(row.cost["updates"]) if row.cost else NONE]
        for row in table.rows
    ]  # fmt: skip
    parts = [
        f"## {sweep.name.capitalize()} {sweep.symbol}", level_table(table, sweep.symbol),
        "Against the base model's images of the same prompts and noise:",
        markdown_table([sweep.symbol, *(COLUMNS[name].title for name in compared), "updates"], gains),
    ]  # fmt: skip
    seeds = len({row.seed for row in own.judgements})
    parts.append(f"All rows are of the {seeds} seed{'s' if seeds > 1 else ''} that every value has.")
    if seeds < 3:
        parts[-1] += " That is fewer than three, so no marks; with one, intervals are over prompts alone."
    theirs = paper.SWEEPS.get(sweep.name)
    if theirs:
        number = {"branches": 2, "steps": 3}[sweep.name]
        rows = [[f"{sweep.symbol} = {value}", *(f"{cell:g}" for cell in row.values())] for value, row in theirs.items()]
        header = [f"paper, Table {number}", "CLIP", "ImageReward", "MLLM"]
        order = sweep_agreement(sweep, table)
        said = "; ".join(f"{COLUMNS[name].title} {rho:+.2f}" for name, rho in order.items()) or "nothing to compare"
        parts += [markdown_table(header, rows), f"Spearman's ρ with the paper over the values: {said}."]
    return "\n\n".join(parts)


def guidance(results: ComparisonResults, scores: Scores) -> str:
    """Every model over the guidance scales, each at its best, and at equal NFE."""
    column, digits = results.overall, COLUMNS[results.overall].decimals
    rows = guidance_table(scores, column, results.steps)
    if not rows:
        return ""
    scales = sorted({scale for row in rows for scale in row.by_scale})
    header = ["model", *(f"w = {scale:g}" for scale in scales), "at its best", "chosen w", "best against base's best"]
    cells = [
        [title_of(row.system), *(level(row.by_scale.get(scale), digits) for scale in scales), level(row.best, digits),
         _scales(row.scales), gain(row.difference, digits)]
        for row in rows
    ]  # fmt: skip
    parts = [
        "## Guidance", f"{COLUMNS[column].meaning.capitalize()}, {results.steps} steps. *At its best*: each half of "
        "the prompts at the scale that is best on the other half. w = 1 costs half the NFE of the others.",
        markdown_table(header, cells),
    ]  # fmt: skip
    if any(row.gains for row in rows):
        cells = [
            [title_of(row.system), *(gain(row.gains.get(scale), digits) for scale in scales)]
            for row in rows if row.gains
        ]  # fmt: skip
        parts += [
            "Against the base model at the same scale. Two halves may choose two scales for the base model, of which "
            "one is none too good, and then every model looks better at its best; here nothing is chosen.",
            markdown_table(["model", *(f"w = {scale:g}" for scale in scales)], cells),
        ]
    equal = equal_cost_table(scores, column)
    if equal:
        header = ["NFE/image", "model", "unguided", "best guided", "chosen w", "unguided against guided base",
                  "guided against guided base"]  # fmt: skip
        cells = [
            [whole(r.nfe), title_of(r.system), level(r.unguided, digits), level(r.guided, digits), _scales(r.scales),
             gain(r.unguided_gain, digits), gain(r.guided_gain, digits)]
            for r in equal
        ]  # fmt: skip
        parts += ["At equal NFE: without guidance an image has twice the steps.", markdown_table(header, cells)]
    return "\n\n".join(parts)


def _scales(scales: Sequence[float]) -> str:
    return ", ".join(f"{scale:g}" for scale in dict.fromkeys(scales)) or NONE


def diversity(results: ComparisonResults) -> str:
    """Fréchet distance to the base model's images, and the spread of one prompt's images."""
    if not results.diversity:
        return ""
    header = ["system", "Fréchet distance to the base model's images", "spread of a prompt's images", "against base"]
    rows = []
    for name, one in results.diversity.items():
        change = one.spread.difference
        words = f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"
        distance = f"{one.frechet.mean:.3f} [{one.frechet.low:.3f}, {one.frechet.high:.3f}]"
        rows.append([title_of(name), distance, level(one.spread.after, 3), words])
    text = "Features of the CLIP image tower; spread: mean distance between the images of one prompt. Less is poorer."
    return "\n\n".join(["## Diversity", text, markdown_table(header, rows)])


def over_optimisation(results: ComparisonResults, scores: Scores) -> str:
    """Reward beside verifiers, and an alarm where only the reward rises."""
    found = divergences(scores, results.steps)
    if not found:
        return ""
    own = [one for one in found if one.guidance_scale == results.guidance_scale]
    header = ["system", "reward, against base", "facts, against base", "alarm"]
    words = {"diverging": "**yes**", "quiet": "no", "undecided": f"fewer than {MIN_SEEDS} seeds"}
    rows = [
        [title_of(one.system), gain(one.reward, COLUMNS[REWARD].decimals),
         gain(one.verifiers, COLUMNS[VERIFIERS].decimals), words[one.status]]
        for one in own
    ]  # fmt: skip
    alarms = [f"- {one.sentence}" for one in found if one.status == "diverging"]
    scales = dict.fromkeys(one.guidance_scale for one in found if one.status != "undecided")
    looked = f"at guidance {', '.join(f'{scale:g}' for scale in sorted(scales))}" if scales else "with enough seeds"
    text = (
        "The alarm: on held-out prompts the reward's interval is above zero and that of the facts, which no system is "
        f"trained on, below. At guidance {results.guidance_scale:g}:"
    )
    parts = ["## Over-optimisation", text, *([markdown_table(header, rows)] if rows else [])]
    return "\n\n".join([*parts, "\n".join(alarms) or f"No system {looked} raises the alarm."])


def pictures(names: Sequence[str]) -> str:
    """The figures."""
    if not names:
        return ""
    return "\n\n".join(["## Figures", *(f"![{Path(name).stem.replace('_', ' ')}](figures/{name})" for name in names)])


def tuning(results: ComparisonResults) -> str:
    """Settings that each method was tuned with."""
    if not results.trials:
        return ""
    counts = {
        name: sum(t.system == name for t in results.trials) for name in dict.fromkeys(t.system for t in results.trials)
    }
    equal = len(set(counts.values())) == 1
    said = "; ".join(f"{title_of(name)} {count}" for name, count in counts.items())
    verdict = "Every method had as many." if equal else "**The methods did not have equally many.**"
    swept = {system for sweep in results.sweeps for system in sweep.systems.values()}
    trained = dict.fromkeys(curve.system for curve in results.curves)
    untried = [title_of(name) for name in trained if name not in counts and (name not in swept or name == "dpo")]
    if untried:
        verdict += f" Without trials of their own: {', '.join(untried)}."
    return "\n\n".join(["## Tuning", f"Trials: {said}. {verdict}", trials_table(results.trials)])


def trials_table(trials: Sequence[Trial]) -> str:
    """A row a trial, as they come.

    Args:
        trials: settings tried.

    Returns:
        A Markdown table.
    """
    rows = [
        [title_of(t.system), ", ".join(f"{k} {v}" for k, v in t.options.items()) or "its own", str(t.updates),
         f"{t.clip:.2f}", _share(t.facts), _share(t.all), whole(t.seconds), "yes" if t.chosen else ""]
        for t in trials
    ]  # fmt: skip
    return markdown_table(["method", "options", "updates", "CLIP", "facts", "all facts", "s", "chosen"], rows)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def cost(results: ComparisonResults) -> str:
    """What each system cost, a row a budget; means over seeds."""
    groups: dict[tuple[str, int], list[SystemCost]] = {}
    for one in results.costs:
        groups.setdefault((one.system, one.nfe_per_image), []).append(one)
    names = ("training_nfe", "training_seconds", "device_seconds", "updates", "images_scored", "seconds_per_image")
    rows = [
        [title_of(system), str(len(group)), whole(nfe), *(whole(fmean(getattr(c, n) for c in group)) for n in names)]
        for (system, nfe), group in groups.items()
    ]
    if not rows:
        return ""
    header = ["system", "seeds", "NFE/image", "training NFE", "training s", "device s", "updates", "images scored",
              "s/image"]  # fmt: skip
    return "\n\n".join(["## Cost", "Means over seeds.", markdown_table(header, rows)])


def lacking(missing: Mapping[str, str]) -> str:
    """What is missing, and why."""
    if not missing:
        return ""
    return "\n".join(["## What is missing", "", *(f"- {describe(part)}: {why}" for part, why in missing.items())])


def repeat(results: ComparisonResults) -> str:
    """How to run it again."""
    command = f"```\n{results.command}\n```" if results.command else "The command was not recorded."
    lines = [f"Commit: {results.commit or 'not recorded'}.", f"Machine: {results.machine or 'not recorded'}."]
    return "\n\n".join(["## How to repeat it", command, *lines])
