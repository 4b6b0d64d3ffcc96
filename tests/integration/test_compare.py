"""A comparison with real jobs: killed after its training, it goes on there, and its report says what was measured."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sharpening.shapes import assets
from tests import runs
from tests.openai_server import OpenAIServer, Received, Reply, marks_of, openai_server, refusal, score_of
from tests.runs import Models, local_ray, models

__all__ = ["local_ray", "models"]  # fixtures


KEY = "sk-test-5ecret"


@pytest.fixture
def grader() -> Iterator[OpenAIServer]:
    """An endpoint that marks images, but never those of the benchmark's first prompt."""
    unfit = assets.benchmark()[0].prompt

    def answer(request: Received) -> Reply:
        if request.prompt == unfit:
            return refusal(400, "unfit")
        return Reply(json.dumps(marks_of(request.image, request.prompt)))

    with openai_server() as server:
        server.always = answer
        yield server


def test_a_killed_comparison_goes_on_and_reports(
    models: Models, local_ray: None, grader: OpenAIServer, tmp_path: Path
) -> None:
    """Its second half in a Ray that is there already."""
    folder = tmp_path / "comparison"
    arguments = [
        "--quick", "--methods", "standard", "--searches", "random", "--steps", "3", "--pretrained_model_name_or_path",
        str(models.pipeline), "--output_dir", str(folder), "--grader_url", grader.url, "--grader_model", "judge",
    ]  # fmt: skip
    process = runs.start_process(arguments, tmp_path, "compare", OPENAI_API_KEY=KEY)
    trained = folder / "runs" / "standard-s0" / "summary.json"
    runs.wait_for(lambda: trained.exists() or process.poll() is not None, "a trained model")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = trained.stat().st_mtime_ns
    process = runs.start_process(arguments, tmp_path, "compare", joins=True, OPENAI_API_KEY=KEY)
    said = runs.finish_process(process)
    assert process.returncode == 0, said
    assert (folder / "report.md").is_file(), said
    assert trained.stat().st_mtime_ns == before  # it was not trained again
    summary = json.loads((folder / "summary.json").read_text())
    rows = pq.read_table(folder / "results.parquet").to_pylist()
    for name, nfe in (("base", 3), ("standard", 3), ("random", 12)):
        own = [row for row in rows if row["system"] == name and row["nfe"] == nfe and row["guidance_scale"] == 1.0]
        found = summary["methods"][name]["clip"]
        assert found["nfe"] == nfe
        assert found["mean"] == pytest.approx(sum(row["clip"] for row in own) / len(own))
    best = {row["prompt"]: row["clip"] for row in rows if row["system"] == "random" and row["nfe"] == 12}
    once = {row["prompt"]: row["clip"] for row in rows if row["system"] == "random" and row["nfe"] == 3}
    assert all(best[prompt] >= once[prompt] - 1e-3 for prompt in once)
    report = (folder / "report.md").read_text()
    assert "--quick --methods standard" in report  # the command
    assert list((folder / "figures").glob("*.png"))
    check_grades(rows, grader, report)
    texts = [path.read_text() for path in folder.glob("*.*") if path.suffix in (".json", ".md")]
    assert len(texts) > 2
    assert not [text for text in [said, *texts] if KEY in text]


def check_grades(rows: list[dict[str, Any]], grader: OpenAIServer, report: str) -> None:
    """The main table's images were graded, each with its prompt; those that were refused are counted and said."""
    prompts = [prompt.prompt for prompt in assets.benchmark()]
    given = {(request.prompt, round(score_of(request.image, request.prompt), 3)) for request in grader.received}
    main = [row for row in rows if row["guidance_scale"] == 1.0 and (row["system"] != "random" or row["nfe"] == 12)]
    main = [row for row in main if row["steps"] == 3]
    assert {row["system"] for row in main} == {"base", "standard", "random"}
    ungraded = [row for row in main if row["grader"] is None]
    assert {row["prompt"] for row in ungraded} == {0}
    graded = [row for row in rows if row["grader"] is not None]
    assert len(graded) + len(ungraded) == len(main)
    assert {(prompts[row["prompt"]], round(row["grader"], 3)) for row in graded} <= given
    assert f"- column grader: {len(ungraded)} of {len(main)} images have no grade ({len(ungraded)} rejected)" in report
    assert "The grader is judge, asked for the images of the main table" in report
