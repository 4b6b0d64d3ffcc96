"""Lists of rewards with weights, and what a job makes of them; without torch or Ray."""

import json
import sys
from pathlib import Path

import pytest

from rayjobs.command_line import parse
from rayjobs.errors import OptionError
from rayjobs.options import JobOptions, RLHFOptions
from rayjobs.options.reward import RewardOptions
from rayjobs.resume import check_resume
from rayjobs.rewards import check_terms, reward_plans, settle_config
from rayjobs.runtime.reservations import reserve, threads_wanted
from rayjobs.runtime.rewards import ReplicaWatch, app_names, app_options
from sharpening.rewards import REWARDS
from sharpening.rewards.terms import Term, TermError, check_importable, parse_names, parse_terms, reward_column, worded

TWO = "clip:1.0,embedded-aesthetic:0.2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("clip", [("clip", "clip", 1.0)]),
        ("clip:1.0", [("clip", "clip", 1.0)]),
        (" clip:2 , embedded-spatial ", [("clip", "clip", 2.0), ("embedded-spatial", "embedded-spatial", 1.0)]),
        ("clip:-.5,embedded-verifier:1e-2", [("clip", "clip", -0.5), ("embedded-verifier", "embedded-verifier", 0.01)]),
        ("tests.own_rewards:Patchy", [("Patchy", "tests.own_rewards:Patchy", 1.0)]),
        ("tests.own_rewards:Patchy:0.5,clip", [("Patchy", "tests.own_rewards:Patchy", 0.5), ("clip", "clip", 1.0)]),
    ],
)  # fmt: skip
def test_lists_of_rewards(text: str, expected: list[tuple[str, str, float]]) -> None:
    assert [(term.name, term.reward, term.weight) for term in parse_terms(text)] == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a reward's name is missing"),
        ("clip,", "a reward's name is missing"),
        ("clip,,embedded-aesthetic", "a reward's name is missing"),
        ("hpsv7", "unknown reward 'hpsv7'; choose one of clip, "),
        ("hpsv7:0.5", "unknown reward 'hpsv7'"),
        ("7up:Cola", "unknown reward '7up:Cola'"),
        ("clip:much", "the weight 'much' of 'clip:much' is no number"),
        ("clip:0", "the weight of 'clip:0' must be a finite number other than 0"),
        ("clip:nan", "the weight of 'clip:nan' must be a finite number"),
        ("clip:-inf", "the weight of 'clip:-inf' must be a finite number"),
        ("clip:1e999", "the weight of 'clip:1e999' must be a finite number"),
        ("tests.own_rewards:Patchy:lots", "the weight 'lots'"),
        ("clip,clip:2", "'clip' is named twice; name it once, with the sum of the weights"),
        ("a.b:Mine,c.d:Mine", "'a.b:Mine' and 'c.d:Mine' would both be called Mine; rename one"),
    ],
)
def test_what_is_no_list_of_rewards(text: str, says: str) -> None:
    with pytest.raises(TermError) as error:
        parse_terms(text)
    assert says in str(error.value)
    assert "; " in str(error.value)


def test_every_registered_reward_can_be_named_with_and_without_a_weight() -> None:
    for name in REWARDS:
        assert parse_terms(f"{name},tests.own_rewards:Other") == (
            Term(name, name),
            Term("Other", "tests.own_rewards:Other"),
        )
        assert parse_terms(f"{name}:3")[0].weight == 3


def test_watched_rewards_have_no_weight() -> None:
    assert parse_names("") == ()
    assert [term.name for term in parse_names("clip, a.b:Mine")] == ["clip", "Mine"]
    with pytest.raises(TermError, match=r"'a\.b:Mine:2' has a weight, which means nothing here; pass a\.b:Mine"):
        parse_names("clip,a.b:Mine:2")


def test_a_module_is_looked_for_without_importing_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "explosive"
    (package / "inner").mkdir(parents=True)
    for file in ("__init__.py", "inner/__init__.py", "inner/scorer.py"):
        (package / file).write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("explosive", "explosive.inner", "explosive.inner.scorer", "tests.own_rewards"):
        check_importable(parse_terms(f"{module}:Scorer")[0])
    for module in ("absent", "explosive.absent", "explosive.inner.scorer.absent", "json.absent"):
        with pytest.raises(TermError, match=f"there is no module {module} .*; install it, or put its folder on PYTHON"):
            check_importable(parse_terms(f"{module}:Scorer")[0])
    assert "explosive" not in sys.modules


def test_rewards_in_words_and_as_columns() -> None:
    assert worded(parse_terms(TWO)) == "clip + 0.2 · embedded-aesthetic"
    assert worded(parse_terms("clip:-2,a.b:Mine:-1,embedded-verifier")) == "-2 · clip - Mine + embedded-verifier"
    assert reward_column("embedded-non_spatial") == "reward_embedded_non_spatial"


# -- what a job makes of them ----------------------------------------------------------------------------------------


def test_one_reward_of_weight_one_is_what_it_always_was() -> None:
    for text in ("clip", "clip:1", "tests.own_rewards:Patchy"):
        assert RLHFOptions(reward=text).mix is None
    assert RLHFOptions(reward="clip:2").mix.weights == {"clip": 2.0}
    mix = RLHFOptions(reward=TWO, reward_combine="ranks").mix
    assert (dict(mix.weights), mix.combine) == ({"clip": 1.0, "embedded-aesthetic": 0.2}, "ranks")
    assert app_names("reward-r", reward_plans(RLHFOptions()), None) == {"clip": "reward-r"}
    watching = RLHFOptions(watch="embedded-aesthetic")
    assert app_names("reward-r", reward_plans(watching), None) == {
        "clip": "reward-r", "embedded-aesthetic": "reward-r-embedded-aesthetic",
    }  # fmt: skip
    assert list(app_names("reward-r", reward_plans(RLHFOptions(reward=TWO)), mix).values()) == [
        "reward-r-clip", "reward-r-embedded-aesthetic",
    ]  # fmt: skip


def test_flags_and_file_say_what_each_reward_is_served_with(tmp_path: Path) -> None:
    file = tmp_path / "rewards.yaml"
    file.write_text(
        "embedded-aesthetic: {model: of/file, replicas: 3, num_threads: 2, num_gpus: 0.25, options: {weights: [2.0]}}\n"
        "clip: {model: of/file, checkpoint: of.file}\n"
        "Patchy:\n  options: {one_in: 7}\n"
    )
    options = RLHFOptions(
        reward=TWO, watch="tests.own_rewards:Patchy", reward_model="clip=ViT-B-32,Patchy=theirs",
        reward_checkpoint="openai", reward_config=str(file), reward_replicas=2,
    )  # fmt: skip
    clip, aesthetic, patchy = reward_plans(options)
    assert (clip.model, clip.checkpoint, clip.replicas, clip.threads, clip.watched) == (
        "ViT-B-32",
        "openai",
        2,
        1,
        False,
    )
    assert (aesthetic.model, aesthetic.checkpoint, aesthetic.replicas, aesthetic.threads) == ("of/file", None, 3, 2)
    assert (patchy.model, patchy.watched, patchy.options) == ("theirs", True, {"one_in": 7})
    app = app_options(aesthetic, "app", cpus=0.5, gpus=1.0)
    assert app.scorer_options() == {"model": "of/file", "device": "cuda", "batch_size": 32, "weights": [2.0]}
    assert (app.reward, app.num_replicas, app.num_threads, app.num_cpus, app.num_gpus) == (
        "embedded-aesthetic", 3, 2, 0.5, 0.25,
    )  # fmt: skip
    assert app_options(clip, "app", 1, 0.0).scorer_options()["checkpoint"] == "openai"
    # Every process of every reward counts where CPUs and GPUs are shared out.
    others = options.num_rollout_actors + options.learner_threads
    assert threads_wanted(options) == others + 2 * 1 + 3 * 2 + 2 * 1
    shared = reserve(options, {"CPU": 4.0, "GPU": 2.0}, gpu=True)
    assert shared.gpus[2] * 7 + shared.gpus[0] * 2 <= 1.0
    assert shared.cpus(2) == pytest.approx(2 * shared.reward, abs=0.02)
    three = reward_plans(RLHFOptions(reward=TWO, reward_checkpoint="embedded-aesthetic=a,b/l=3, c,clip=d"))
    assert [plan.checkpoint for plan in three] == ["d", "a,b/l=3,c"]  # a reward may have several files
    # A path with an equals sign begins with ./ or /; a plain value is the first reward's.
    assert reward_plans(RLHFOptions(reward=TWO, reward_model="./lr=3/model"))[0].model == "./lr=3/model"
    assert [plan.model for plan in reward_plans(RLHFOptions(reward=TWO, reward_model="plain"))] == ["plain", None]


@pytest.mark.parametrize(
    ("changes", "option", "says"),
    [
        ({"reward_model": "clap=x"}, "reward_model", "this job has no reward 'clap'; it has clip, embedded-aesthetic"),
        ({"reward_model": "clip=x,,y"}, "reward_model", "'clip=x,,y' is no NAME=VALUE"),
        ({"reward_model": "clip=x,clip=y"}, "reward_model", "clip is named twice"),
        ({"reward_checkpoint": "clip="}, "reward_checkpoint", "'clip=' is no NAME=VALUE"),
        ({"reward_config": "absent.yaml"}, "reward_config", "cannot read absent.yaml"),
        ({"reward_config": {"clap": {}}}, "reward_config", "this job has no reward 'clap'"),
        ({"reward_config": {"clip": 3}}, "reward_config", "clip has no settings; it may have model, checkpoint"),
        ({"reward_config": {"clip": {"replica": 2}}}, "reward_config", "clip has 'replica', which is no setting"),
        ({"reward_config": {"clip": {"replicas": 0}}}, "reward_config", "replicas of clip: Input should be greater"),
        ({"reward_config": {"clip": {"options": {"device": "x"}}}}, "reward_config", "options of clip: 'device' is no"),
        ({"reward_config": {"clip": {"options": {"api_key": "x"}}}}, "reward_config", "'api_key' of clip looks like a"),
        ({"reward_config": {"clip": {"options": {"a": [{"Authorization": "x"}]}}}}, "reward_config", "'Authorization'"),
        ({"reward_config": {"clip": {"options": {"url": "https://me:pw@host/v1"}}}}, "reward_config", "'url' of clip"),
        ({"reward": "clip", "reward_combine": "ranks"}, "reward_combine", "one reward has no ranks to combine"),
        ({"watch": "clip"}, "watch", "clip is a reward of the training"),
        ({"watch": "absent.module:Mine"}, "watch", "there is no module absent.module"),
        ({"reward": "absent.module:Mine"}, "reward", "there is no module absent.module"),
    ],
)
def test_rewards_that_cannot_be_served_are_refused(changes: dict, option: str, says: str) -> None:
    options = RLHFOptions(**{"reward": TWO} | changes)

    def check() -> None:
        check_terms(options)
        settle_config(options)
        reward_plans(options)

    with pytest.raises(OptionError) as error:
        check()
    assert error.value.option == option
    assert says in str(error.value)


def test_words_that_only_resemble_secrets_pass() -> None:
    harmless = {"clip": {"options": {"max_tokens": 5, "keyframes": 2, "url": "http://127.0.0.1:80/v1", "monkey": 1}}}
    assert settle_config(RewardOptions(reward_config=harmless)) == harmless


def test_the_command_line_names_the_option_and_the_remedy() -> None:
    with pytest.raises(OptionError) as error:
        parse(["--reward", "clip:1,hpsv7"])
    assert str(error.value).startswith("--reward: unknown reward 'hpsv7'; choose one of clip, ")
    with pytest.raises(OptionError, match=r"--watch: 'clip:2' has a weight, .*; pass clip"):
        parse(["--watch", "clip:2"])


def test_the_file_goes_into_the_configuration_and_a_resumed_run_keeps_what_scores_depend_on(tmp_path: Path) -> None:
    def options(settings: dict) -> JobOptions:
        read = RLHFOptions(
            reward=TWO, reward_config=settings, output_dir=str(tmp_path), resume_from_checkpoint="latest"
        )
        return read.model_copy(update={"reward_config": settle_config(read)})

    checkpoint = tmp_path / "checkpoints" / "checkpoint-000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    first = options({"clip": {"replicas": 2, "options": {"weights": [8]}}})
    (tmp_path / "config.json").write_text(json.dumps(first.config()))
    again = parse(["--config", str(tmp_path / "config.json")])
    assert again.reward_config == {"clip": {"replicas": 2, "options": {"weights": [8]}}}
    assert check_resume(options({"clip": {"options": {"weights": [8]}}, "embedded-aesthetic": {"num_gpus": 0.5}}))
    with pytest.raises(OptionError, match="reward_config: differs from that of the run"):
        check_resume(options({"clip": {"options": {"weights": [4]}}}))


def test_the_log_tells_of_replicas_that_die_and_of_applications_that_are_gone() -> None:
    said: list[str] = []
    watch = ReplicaWatch({"a": 2, "b": 1}, 120.0, said.append)
    looks: list[dict[str, int]] = [
        {"a": 2, "b": 1}, {"a": 1, "b": 0}, {"a": 1}, {"a": 1}, {"a": 1, "b": 0}, {"a": 2, "b": 1, "others": 0},
    ]  # fmt: skip
    for running in looks:
        watch.look(running)
    assert said == [
        "1 of 2 replicas of 'a' died; Serve starts as many again",
        "1 of 1 replicas of 'b' died; Serve starts as many again",
        "'b' is not on Serve any more; scoring waits for it, 120 s at most",
        "'a' has all its replicas again",
        "'b' has all its replicas again",
    ]
