"""The comparison's report: one page, its figures, its rows and its summary for programs."""

from __future__ import annotations

from pathlib import Path

from sharpening.evaluation.comparison import sections
from sharpening.evaluation.comparison.figures import draw_figures
from sharpening.evaluation.comparison.missing import missing_parts
from sharpening.evaluation.comparison.records import COSTS, JUDGEMENTS, write_records
from sharpening.evaluation.comparison.results import ComparisonResults
from sharpening.evaluation.comparison.scores import Scores
from sharpening.evaluation.comparison.summary import summarise
from sharpening.evaluation.files import disk_errors, write_bytes, write_json

REPORT, SUMMARY, FIGURES = "report.md", "summary.json", "figures"


def write_report(folder: str | Path, results: ComparisonResults) -> Path:
    """Write everything that a reader and a program want of a comparison.

    Args:
        folder: where to; made if need be, files of an earlier report are replaced.
        results: everything measured, with at least one image judged.

    Returns:
        `report.md`. Beside it `summary.json`, `results.parquet` (a row an image), `costs.parquet` (a row a system,
        seed and budget) and `figures/*.png`.

    Raises:
        RecordError: if no image was judged, or one was judged twice.
        DiskFull: if there is no room.
    """  # noqa: DOC502, DOC503
    folder = Path(folder)
    scores = Scores(results.judgements)
    with disk_errors(folder):
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    write_records(folder / JUDGEMENTS, results.judgements)
    if results.costs:
        write_records(folder / COSTS, results.costs)
    figures = draw_figures(results, scores)
    for name, contents in figures.items():
        write_bytes(folder / FIGURES / name, contents)
    missing = missing_parts(results, scores)
    write_json(folder / SUMMARY, summarise(results, scores, missing))
    write_bytes(folder / REPORT, page(results, scores, missing, list(figures)).encode())
    return folder / REPORT


def page(results: ComparisonResults, scores: Scores, missing: dict[str, str], figures: list[str]) -> str:
    """The page.

    Args:
        results: everything measured.
        scores: its judgements.
        missing: reason by part that is missing.
        figures: file names of the figures.

    Returns:
        Markdown.
    """
    parts = [
        "# Comparison",
        sections.question(results, scores),
        sections.outcome(results, scores),
        sections.levels_and_gains(results, scores),
        sections.pictures(figures),
        sections.guidance(results, scores),
        *(sections.swept(sweep, results) for sweep in results.sweeps),
        sections.beside_the_paper(results, scores),
        sections.diversity(results),
        sections.over_optimisation(results, scores),
        sections.tuning(results),
        sections.cost(results),
        sections.lacking(missing),
        sections.repeat(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
