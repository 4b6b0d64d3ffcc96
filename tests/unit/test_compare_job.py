"""The comparison's own bookkeeping: what is refused, what is run, at which budget."""

import json
from pathlib import Path

import pytest

from rayjobs.command_line import read
from rayjobs.comparison.grading import grader_options
from rayjobs.comparison.options import VARIANTS, CompareOptions
from rayjobs.comparison.reporting import sweep_system
from rayjobs.comparison.run import Comparison
from rayjobs.comparison.tasks import Model
from rayjobs.comparison.trainings import COST, SUMMARY, Training, Trainings, short_warmup, shrunk
from rayjobs.errors import OptionError
from rayjobs.options import options_class
from sharpening.evaluation.comparison.records import ImageJudgement
from sharpening.evaluation.comparison.systems import title_of
from sharpening.methods import METHODS
from sharpening.rewards.grader.endpoint import MODEL
from tests.openai_server import openai_server, refusal


def parsed(folder: Path, *arguments: str) -> CompareOptions:
    options = read(CompareOptions, [*arguments, "--output_dir", str(folder)], "compare.py")
    assert isinstance(options, CompareOptions)
    return options


def test_defaults_are_the_whole_comparison(tmp_path: Path) -> None:
    options = parsed(tmp_path)
    assert set(options.methods) == {*METHODS, *VARIANTS}
    assert len(options.seeds) >= 3
    assert parsed(tmp_path, "--sweeps", "none").sweeps == ()
    assert parsed(tmp_path, "--seeds", "4", "7").seeds == (4, 7)
    assert parsed(tmp_path, "--quick").resolved().eval_prompts < options.eval_prompts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "rlhf", "magic"), r"--methods: unknown name 'magic'"),
        (("--searches", "luck"), r"--searches: unknown name 'luck'"),
        (("--train_seconds", "0"), r"--train_seconds: must be greater than 0"),
        (("--seeds",), r"--seeds: expected at least one argument"),
        (("--guidance_scales", "-1"), r"--guidance_scales: "),
        (("--sweeps", "colour"), r"--sweeps: "),
        (("--grader_url", "judge.example"), r"--grader_url: .*not of the form http"),
        (("--grader_model", "judge"), r"--grader_model: there is nobody to ask for it, pass --grader_url"),
        (("--metods", "rlhf"), r"did you mean --methods\?"),
        (("--resolution", "4"), r"--resolution: must be at least 8"),
    ],
)
def test_wrong_options_are_refused(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        parsed(tmp_path, *arguments)


def test_a_folder_is_one_comparisons_and_may_grow(tmp_path: Path) -> None:
    Comparison(parsed(tmp_path / "c", "--seeds", "0"), "")
    Comparison(parsed(tmp_path / "c", "--seeds", "0", "1"), "")
    with pytest.raises(OptionError, match=r"--train_seconds: is 9.0, but the comparison in .* has 150.0"):
        Comparison(parsed(tmp_path / "c", "--train_seconds", "9"), "")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(OptionError, match="holds something else"):
        Comparison(parsed(tmp_path / "other"), "")


def test_grades_are_those_of_one_model_and_its_address_is_not_kept(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/v1"
    options = parsed(tmp_path, "--grader_url", url)
    assert grader_options(options.resolved()) == {"model": MODEL, "base_url": url}
    assert grader_options(parsed(tmp_path).resolved()) is None
    Comparison(parsed(tmp_path / "c", "--grader_url", url, "--grader_model", "judge"), "")
    assert url not in (tmp_path / "c" / "comparison.json").read_text()
    Comparison(parsed(tmp_path / "c", "--grader_url", "http://[::1]:9/v1", "--grader_model", "judge"), "")
    for arguments in ((), ("--grader_url", url)):
        with pytest.raises(OptionError, match='--grader_model: is .* but the comparison in .* has "judge"'):
            Comparison(parsed(tmp_path / "c", *arguments), "")


def test_a_grader_that_does_not_grade_is_found_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with openai_server() as server:
        server.always = refusal(404, "no such model")
        comparison = Comparison(parsed(tmp_path, "--grader_url", server.url, "--grader_model", "judge"), "")
        with pytest.raises(OptionError, match="--grader_url: the grader at .* does not know the model judge"):
            comparison.execute()
    assert not (tmp_path / "runs").exists()


def test_options_of_methods_are_checked_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "methods.json"
    for values, message in (
        ({"ddpo": {"clip_range": -1}}, "ddpo: "), ({"rlhf": {"branchs": 4}}, "rlhf: "), ({"magic": {}}, "'magic'"),
    ):  # fmt: skip
        path.write_text(json.dumps(values))
        with pytest.raises(OptionError, match=message):
            Comparison(parsed(tmp_path / "c", "--method_config", str(path)), "")


def test_updates_are_what_the_budget_pays_for(tmp_path: Path) -> None:
    trainings = Trainings(tmp_path, parsed(tmp_path, "--train_seconds", "100"), {}, lambda text: None)
    (tmp_path / "calibration.json").write_text(
        json.dumps({"rlhf": {"update": 6.0, "before": 0.0}, "dpo": {"update": 2.0, "before": 40.0}})
    )
    assert trainings.updates(Training("rlhf", "rlhf", 0, {})) == 16
    assert trainings.updates(Training("dpo", "dpo", 2, {})) == 30
    fixed = Trainings(tmp_path, parsed(tmp_path, "--updates", "5"), {}, lambda text: None)
    assert fixed.updates(Training("ddpo", "ddpo", 0, {})) == 5


def test_a_finished_training_is_not_run_again(tmp_path: Path) -> None:
    trainings = Trainings(tmp_path, parsed(tmp_path), {}, lambda text: None)
    training = Training("rlhf", "rlhf", 0, {})
    folder = trainings.folder(training)
    folder.mkdir(parents=True)
    (folder / SUMMARY).write_text("{}")
    assert trainings.train(training) == folder  # or it would have started a job
    (folder / COST).write_text(json.dumps({"seconds": {"rank_generate": 6.0, "rank_reward": 2.0, "learn": 9.0}}))
    assert trainings.seconds_before(folder) == pytest.approx(8.0)  # one actor makes a round
    (folder / "pairs.parquet").write_bytes(b"")
    assert trainings.seconds_before(folder) == pytest.approx(4.0)  # two actors side by side


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_variant_is_a_method_with_other_options(name: str, tmp_path: Path) -> None:
    training = Training.of(name, 3)
    assert (training.system, training.seed) == (name, 3)
    own, base = options_class(training.method)(**training.changes), options_class(training.method)()
    assert {key for key in own.model_dump() if getattr(own, key) != getattr(base, key)} == set(training.changes)
    assert title_of(name) != name


@pytest.mark.parametrize("method", list(METHODS))
def test_smaller_updates_fit_their_batches(method: str) -> None:
    model = options_class(method)
    small = model(**shrunk(model(), 6))
    assert small.prompts_per_update == 6
    assert small.groups_per_update % (small.train_batch_size * small.inner_steps) == 0
    whole = model()
    assert whole.groups_per_update % (whole.train_batch_size * whole.inner_steps) == 0  # and so do the defaults


def test_a_warm_up_leaves_most_of_a_short_run() -> None:
    model = options_class("rlhf")
    whole = model(lr_scheduler="cosine", lr_warmup_steps=4, max_train_steps=8)
    assert short_warmup(whole) == {}
    assert short_warmup(whole.model_copy(update={"max_train_steps": 4})) == {"lr_warmup_steps": 1}
    tiny = model(lr_scheduler="constant_with_warmup", lr_warmup_steps=4, max_train_steps=2)
    assert short_warmup(tiny) == {"lr_warmup_steps": 0, "lr_scheduler": "constant"}


def test_one_branch_is_the_papers() -> None:
    assert sweep_system("branches", 1, 4) == "dpo"
    assert sweep_system("branches", 4, 4) == "rlhf"
    assert sweep_system("branches", 4, 3) == "rlhf, n = 4"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--resolution", "70"), r"--resolution: is 70, but the model draws multiples of 8 pixels; pass 64"),
        (
            ("--pretrained_model_name_or_path", "nowhere"),
            r"--pretrained_model_name_or_path: there is no folder nowhere",
        ),
        (
            ("--pretrained_vae_model_name_or_path", "nowhere"),
            r"--pretrained_vae_model_name_or_path: there is no folder nowhere",
        ),
    ],
)
def test_a_model_that_cannot_be_used_costs_nothing(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        Comparison(parsed(tmp_path / "c", *arguments), "")
    assert not (tmp_path / "c").exists()


def judged(comparison: Comparison, **means: dict[str, float]) -> None:
    """Keep images of systems whose scores are about so much: each image is as much above or below with every system."""
    for system, scores in means.items():
        for seed in range(3):
            rows = [
                ImageJudgement(
                    system, seed, 1.0, 12, 12, i, "colour",
                    **{name: mean * (1 + 0.02 * i + 0.001 * seed) for name, mean in scores.items()},
                )
                for i in range(4)
            ]  # fmt: skip
            comparison._store.write(f"{system}-s{seed}", rows)


def test_a_reward_that_rises_alone_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = Comparison(parsed(tmp_path / "c", "--methods", "rlhf,ddpo", "--sweeps", "none"), "")
    means = {"base": (50.0, 0.5), "rlhf": (55.0, 0.6), "ddpo": (55.0, 0.4)}
    judged(comparison, **{name: {"clip": clip, "facts": facts} for name, (clip, facts) in means.items()})
    comparison._report()
    alarms = [line for line in capsys.readouterr().err.splitlines() if "Alarm" in line]
    assert len(alarms) == 1
    assert "Alarm: DDPO at guidance 1: the reward rose by 5.1" in alarms[0]


def test_a_comparison_at_another_size_is_judged_by_the_reward(tmp_path: Path) -> None:
    comparison = Comparison(parsed(tmp_path / "c", "--resolution", "72", "--methods", "rlhf", "--sweeps", "none"), "")
    assert comparison._base == Model("embedded", 72)
    judged(comparison, base={"clip": 50.0}, rlhf={"clip": 55.0})
    page = comparison._report().read_text()
    assert "RLHF sharpening's CLIP reward, cosine × 100 is above" in page
    assert "- column facts: the verifiers judge images of 64×64 pixels alone" in page
