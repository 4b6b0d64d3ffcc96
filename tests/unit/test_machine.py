"""Where run folders lie when Ray runs a job in a copy of the submitter's folder."""

import json
from pathlib import Path

import pytest

from rayjobs.command_line import parse
from rayjobs.machine import lasting
from rayjobs.validation import validate

SUBMITTED = json.dumps({"runtime_env": {"working_dir": "gcs://_ray_pkg_0123456789abcdef.zip"}, "metadata": {}})


def test_a_relative_folder_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert lasting("runs") == Path("runs")
    for without_copy in ("{}", '{"runtime_env": {}}', '{"runtime_env": null}', "not json"):
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", without_copy)
        assert lasting("runs") == Path("runs")


def test_a_submitted_job_keeps_its_runs_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", SUBMITTED)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert lasting("runs") == tmp_path / "runs"
    assert lasting("/elsewhere/run") == Path("/elsewhere/run")
    options = validate(parse(["--output_dir", "mine"]))
    assert options.output_dir == str(tmp_path / "mine")
    options = validate(parse([]))
    assert Path(options.output_dir or "").parent == tmp_path / "runs"
