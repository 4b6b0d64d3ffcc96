"""The tuning of the comparison's methods: as many trials for each, judged on validation prompts, the best one taken."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKL

from rayjobs.command_line import read
from rayjobs.comparison.actor import EvaluationActor
from rayjobs.comparison.options import CompareOptions, TrialsOptions
from rayjobs.comparison.results import Store
from rayjobs.comparison.run import Comparison
from rayjobs.comparison.tasks import DrawTask, Model
from rayjobs.comparison.trainings import SUMMARY, Trainings
from rayjobs.comparison.tuning import CANDIDATES, Tuning, chosen, read_candidates, read_trials
from rayjobs.errors import OptionError
from rayjobs.trials import main
from sharpening.evaluation.comparison.records import ImageJudgement
from sharpening.evaluation.comparison.sections import trials_table
from sharpening.methods import METHODS
from sharpening.shapes import assets


def parsed(folder: Path, *arguments: str) -> TrialsOptions:
    options = read(TrialsOptions, [*arguments, "--output_dir", str(folder)], "trials.py")
    assert isinstance(options, TrialsOptions)
    return options


def candidates(folder: Path, found: dict[str, Any]) -> str:
    path = folder / "candidates.json"
    path.write_text(json.dumps(found))
    return str(path)


def test_every_method_of_the_comparison_has_as_many_candidates(tmp_path: Path) -> None:
    found = read_candidates(parsed(tmp_path))  # which checks every setting against the method's own options
    assert set(found) == set(parsed(tmp_path).methods)
    assert all(settings[0] == {} for settings in found.values())  # its own options are among them
    assert len({json.dumps(setting) for setting in found["dpo"]}) == len(found["dpo"]) > 1


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"dpo": [{}, {"beta": 9}], "sft": [{}]}, r"unequal numbers of trials \(dpo 2, sft 1\)"),
        ({"dpo": [{}]}, "there is no list of settings for sft"),
        ({"dpo": [], "sft": []}, "there is no list of settings for dpo"),
        ({"dpo": [{"beta": -1}], "sft": [{}]}, r'dpo, \{"beta": -1\}: '),
        ({"dpo": [{"bta": 1}], "sft": [{}]}, r'dpo, \{"bta": 1\}: '),
    ],
)
def test_settings_that_are_none_are_refused(found: dict[str, Any], message: str, tmp_path: Path) -> None:
    options = parsed(tmp_path / "t", "--methods", "dpo", "sft", "--candidates", candidates(tmp_path, found))
    with pytest.raises(OptionError, match=rf"^--candidates: .*{message}"):
        Tuning(options, "")
    assert not (tmp_path / "t").exists()


def test_a_wrong_option_costs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--methods", "magic", "--output_dir", str(tmp_path / "t")]) == 2
    assert "--methods: unknown name 'magic'" in capsys.readouterr().err


def finished(tuning: Tuning, system: str, place: int, facts: tuple[float | None, ...], clip: float = 50.0) -> None:
    """Put down what a trial leaves: the end of its training, and two judged images."""
    name = f"{system}, trial {place + 1}"
    folder = tuning.folder / "runs" / f"{name}-s0"
    folder.mkdir(parents=True)
    (folder / SUMMARY).write_text(json.dumps({"updates": 7, "seconds_training": 150.0}))
    rows = [
        ImageJudgement(
            name, 0, 1.0, 12, 12, i, "colour", clip=clip + i, facts=share, all=None if share is None else share == 1
        )
        for i, share in enumerate(facts)
    ]
    Store(tuning.folder).write(f"{name}-s0", rows)


def test_the_best_trial_is_what_the_comparison_runs(tmp_path: Path) -> None:
    tried = {"dpo": [{}, {"beta": 100.0}], "sft": [{}, {"learning_rate": 1e-5}]}
    arguments = ("--methods", "dpo", "sft", "--candidates", candidates(tmp_path, tried))
    tuning = Tuning(parsed(tmp_path / "t", *arguments), "")
    finished(tuning, "dpo", 0, (1.0, 0.0))
    finished(tuning, "dpo", 1, (1.0, 0.5))
    finished(tuning, "sft", 0, (0.5, 0.5))
    assert [(t.system, t.facts, t.all, t.clip, t.chosen) for t in tuning.trials()] == [
        ("dpo", 0.5, 0.5, 50.5, False), ("dpo", 0.75, 0.5, 50.5, True),
        ("sft", 0.5, 0.0, 50.5, False),  # the other one is still to come
    ]  # fmt: skip
    finished(tuning, "sft", 1, (0.5, 0.0))
    path = Tuning(parsed(tmp_path / "t", *arguments), "").execute()  # nothing is left to train or to judge
    values = ["--methods", "dpo", "sft", "ddpo", "--trials", str(path), "--output_dir", str(tmp_path / "c")]
    options = read(CompareOptions, values, "compare.py")
    assert isinstance(options, CompareOptions)
    comparison = Comparison(options, "")
    assert json.loads((comparison.folder / "comparison.json").read_text())["overrides"] == {"dpo": {"beta": 100.0}}


def test_a_variant_has_its_own_winner_and_a_sweep_its_methods(tmp_path: Path) -> None:
    options = read(CompareOptions, ["--output_dir", str(tmp_path)], "compare.py")
    assert isinstance(options, CompareOptions)
    tuned: dict[str, dict[str, Any]] = {"rlhf": {"inner_steps": 2, "branches": 3}, "rlhf_guided": {"beta": 100.0}}
    trainings = Trainings(tmp_path, options, {}, lambda text: None, tuned)
    assert trainings.of("rlhf", 1).changes == tuned["rlhf"]
    assert trainings.of("rlhf_image", 1).changes == {"selection": "image"}  # nothing of rlhf's
    guided = trainings.of("rlhf_guided", 1)
    assert (guided.method, guided.changes["beta"], guided.changes["guidance_scale"]) == ("rlhf", 100.0, 3.0)
    assert trainings.varied("rlhf, n = 8", "rlhf", 0, "branches", 8).changes == {"inner_steps": 2, "branches": 8}
    assert (trainings.own("rlhf", "branches"), trainings.own("rlhf", "branch_steps")) == (3, 1)


def test_a_folder_is_one_tunings(tmp_path: Path) -> None:
    Tuning(parsed(tmp_path / "t", "--methods", "dpo"), "")
    Tuning(parsed(tmp_path / "t", "--methods", "dpo", "sft"), "")
    with pytest.raises(OptionError, match=r"--train_seconds: is 9.0, but the tuning in .* has 150.0"):
        Tuning(parsed(tmp_path / "t", "--train_seconds", "9"), "")


def test_what_is_shipped_is_as_many_trials_for_every_method_of_the_claim(tmp_path: Path) -> None:
    methods = (*(name for name in METHODS if name != "guidance_distillation"), "rlhf_image")
    trials, tried = read_trials(None, methods), json.loads(CANDIDATES.read_text())
    assert {name: [dict(t.options) for t in trials if t.system == name] for name in methods} == {
        name: tried[name] for name in methods
    }
    for name in methods:
        own = [t for t in trials if t.system == name]
        assert [t.chosen for t in own] == [t is max(own, key=lambda t: t.facts or 0) for t in own]
        assert len({t.updates for t in own if "timesteps_per_rollout" not in t.options}) == 1
    folders = {"shipped": (), "untuned": ("--trials", "none")}
    told = {}
    for name, arguments in folders.items():
        options = read(CompareOptions, [*arguments, "--output_dir", str(tmp_path / name)], "compare.py")
        assert isinstance(options, CompareOptions)
        told[name] = json.loads((Comparison(options, "").folder / "comparison.json").read_text())["overrides"]
    assert told == {"shipped": chosen(trials), "untuned": {}}


def test_a_file_without_trials_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trials.json").write_text('{"trials": [{"system": "dpo"}]}')
    options = read(CompareOptions, ["--trials", str(tmp_path / "trials.json")], "compare.py")
    assert isinstance(options, CompareOptions)
    with pytest.raises(OptionError, match=r"^--trials: .* holds no trials"):
        Comparison(options, "")


def test_validation_prompts_are_what_a_trial_is_judged_on(pipeline_folder: Path) -> None:
    actor = EvaluationActor("judge", "cpu", 1, None)
    items = (0, 60, 299)
    model = Model(str(pipeline_folder))
    task = DrawTask("dpo, trial 1", 0, model, items, 1.0, 2, validation=True)
    found, other = actor.draw(task).judgements, actor.draw(DrawTask("dpo", 0, model, items, 1.0, 2))
    prompts = assets.validation_benchmark()
    assert [row.category for row in found] == [prompts[item].category for item in items]
    assert [row.clip for row in found] != [row.clip for row in other.judgements]
    assert not {prompt.prompt for prompt in prompts} & {prompt.prompt for prompt in assets.benchmark()}


def test_images_of_another_size_and_vae_are_what_is_judged_and_without_facts_the_reward_decides(
    pipeline_folder: Path, tmp_path: Path
) -> None:
    vae = AutoencoderKL.from_pretrained(pipeline_folder / "vae")
    vae.register_to_config(scaling_factor=0.1)
    vae.save_pretrained(tmp_path / "vae")
    actor, items = EvaluationActor("judge", "cpu", 1, None), (0, 60)
    whole = Model(str(pipeline_folder), 72)
    drawn = [
        actor.draw(DrawTask("base", 0, m, items, 1.0, 2)) for m in (whole, replace(whole, vae=str(tmp_path / "vae")))
    ]
    assert actor._loaded is not None
    assert actor._loaded[1].latent_shape == (8, 9, 9)
    assert [row.facts for answer in drawn for row in answer.judgements] == [None] * 4
    assert [row.clip for row in drawn[0].judgements] != [row.clip for row in drawn[1].judgements]
    tried = {"dpo": [{}, {"beta": 100.0}]}
    arguments = ["--methods", "dpo", "--candidates", candidates(tmp_path, tried), "--resolution", "72"]
    arguments += ["--pretrained_vae_model_name_or_path", str(tmp_path / "vae")]
    arguments += ["--pretrained_model_name_or_path", str(pipeline_folder)]
    tuning = Tuning(parsed(tmp_path / "t", *arguments), "")
    told = tuning._trainings._values(tuning._training("dpo", 1))
    assert (told["resolution"], told["pretrained_vae_model_name_or_path"]) == (72, str(tmp_path / "vae"))
    assert tuning._trainings.model(tuning._training("dpo", 1)).resolution == 72
    finished(tuning, "dpo", 0, (None, None), clip=60.0)
    finished(tuning, "dpo", 1, (None, None))
    assert [(t.facts, t.clip, t.chosen) for t in tuning.trials()] == [(None, 60.5, True), (None, 50.5, False)]
    assert re.search(r"\| 60\.50 \| +– \| +– \| 150 \| +yes \|", trials_table(tuning.trials()))
    with pytest.raises(OptionError, match=r"^--resolution: is 70, but the model draws multiples of 8 pixels; pass 64"):
        Tuning(parsed(tmp_path / "other", *arguments, "--resolution", "70"), "")
    assert not (tmp_path / "other").exists()
