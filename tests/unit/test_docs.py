"""What the pages show is what the code does: every command is one that works, every block of Python is run."""

import ast
import importlib.util
import json
import re
import tarfile
import tomllib
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from rayjobs.errors import OptionError
from rayjobs.mirror.address import normal
from tests import pages
from tests.openai_server import openai_server, score_of
from tests.pages import ROOT, Block, Command

JOBS = {"rlhf": ("rlhf",), "sft": ("sft",), "finetune": None}  # and the methods that each may be told
BLOCKS = [block for page in pages.PAGES for block in pages.blocks(page)]
COMMANDS = [command for block in BLOCKS for command in pages.commands(block)]
RUN_ELSEWHERE = {
    "docs/extending.md": "tests/unit/test_extending.py",
    "docs/rewards.md": "tests/unit/test_own_reward.py",
    "docs/serving.md": "tests/integration/test_reward_serve.py",
}
"""Pages whose Python needs more than this file has, and where it is run."""
FOREIGN = {"dist", "generate", "head", "labels", "name"}  # of pytest, Ray and Serve; theirs have hyphens otherwise
OURS = {"json", "count", "output", "write"}  # of scripts without a model of their options


def understood(name: str, words: Sequence[str]) -> None:
    """Read a job's command line as the job does, up to where it would look for files."""
    from rayjobs.command_line import parse, read
    from sharpening.methods import METHODS

    given = [word for word in words if word != "--help"]
    while "--config" in given:  # a file of the reader's
        at = given.index("--config")
        del given[at : at + 2]
    if name in JOBS and "rwr" not in given:  # the method that docs/extending.md adds
        parse(given, f"{name}.py", JOBS[name] or tuple(METHODS))
    elif name in JOBS:
        assert given == ["--method", "rwr"]
    elif name == "search":
        from rayjobs.options.search import SearchJobOptions

        read(SearchJobOptions, given, "search.py")
    elif name == "compare":
        from rayjobs.comparison.options import CompareOptions

        read(CompareOptions, given, "compare.py")
    elif name == "trials":
        from rayjobs.comparison.options import TrialsOptions

        read(TrialsOptions, given, "trials.py")
    elif name == "capacity":
        from rayjobs.simulation.options import CapacityOptions

        read(CapacityOptions, ["--run", *given] if given and not given[0].startswith("-") else given, "capacity.py")
    elif name == "sweep" and "--resume" not in given:
        from rayjobs.sweep import read_sweep

        read_sweep(given)
    elif name == "sweep":
        from rayjobs.sweeping.options import SweepOptions

        read(SweepOptions, given, "sweep.py")
    elif name == "upload":
        assert len(given) == 2
        assert normal("address", given[1]) == given[1]
    elif name == "report":
        assert not [word for word in given if word.startswith("-") and word != "--output"]
    elif name in ("bench", "bench_rewards"):
        read_options = importlib.import_module(f"rayjobs.{name}").read_options
        read_options([word for word in given if word])
    else:
        pytest.fail(f"there is no rayjobs/{name}.py")


def check_python(words: Sequence[str]) -> None:
    """A script of ours with its options, a module, or a line of code."""
    script, *rest = words
    if script.startswith("rayjobs/"):
        understood(Path(script).stem, rest)
    elif words[:2] == ["-m", "pytest"]:
        assert all((ROOT / word).exists() for word in rest[1:] if not word.startswith("-"))
    elif script == "-m":
        assert importlib.util.find_spec(rest[0]), f"there is no module {rest[0]}"
    elif script == "-c":
        ast.parse(rest[0])
    else:
        pytest.fail(f"neither a script nor a module: {script}")


def check_make(words: Sequence[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            assert word in targets
        elif name == "ARGS":
            job = words[0].replace("-", "_") if words[0].startswith("bench") else "rlhf"
            understood(job, value.replace("docs/", f"{ROOT}/docs/").split())


def check_serve(words: Sequence[str]) -> None:
    (what,) = [word for word in words[1:] if ":" in word or word.endswith(".yaml")]
    if what.endswith(".yaml"):
        assert yaml.safe_load((ROOT / what).read_text())["applications"]
    else:
        module, name = what.split(":")
        assert getattr(importlib.import_module(module), name)


def check_ray(words: Sequence[str]) -> None:
    if words[:2] == ["job", "submit"]:
        script, *rest = words[words.index("--") + 1 :]
        assert script == "python"
        check_python([word.replace("$PWD", ".") for word in rest])
    elif words[0] in ("up", "dashboard", "down", "attach"):
        assert (ROOT / words[1]).is_file()


def check_files(words: Sequence[str]) -> None:
    """Files of ours that another program is given."""
    for word in words:
        if word.startswith("cluster/"):
            assert (ROOT / word).is_file()


def check_sbatch(words: Sequence[str]) -> None:
    check_files(words[:1])
    understood("rlhf", [word.replace("$PWD", ".") for word in words[1:]])


CHECKS: dict[str, Callable[[Sequence[str]], None]] = {
    "python": check_python, "make": check_make, "serve": check_serve, "ray": check_ray, "sbatch": check_sbatch,
}  # fmt: skip


def test_the_pages_have_commands() -> None:
    """Or the next test would say nothing."""
    assert len(COMMANDS) > 70
    assert set(JOBS) | {"search", "compare", "trials", "sweep", "capacity", "report"} <= {
        Path(word).stem for command in COMMANDS for word in command.words if word.startswith("rayjobs/")
    }


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_understood(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a sweep makes its folder
    words = command.words
    name = pages.program(words[0])
    assert name, f"what is {words[0]}?"
    said = ""
    try:
        CHECKS.get(name, check_files)(words[1:])
    except OptionError as error:
        said = f"{Path(words[1]).stem}: error: {error}"
    assert [said] * bool(said) == [line for line in command.shown if ": error: " in line]


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in ("yaml", "toml", "json")], ids=str)
def test_a_file_is_one(block: Block, tmp_path: Path) -> None:
    if block.language == "yaml":
        assert yaml.safe_load(block.code)
    elif block.language == "json":
        assert json.loads(block.code if block.code.startswith("{") else f"{{{block.code}}}")
    else:
        from rayjobs.command_line import parse

        assert tomllib.loads(block.code)
        (tmp_path / "run.toml").write_text(block.code)
        parse(["--config", str(tmp_path / "run.toml")])


def option_names() -> set[str]:
    """Every flag that some job of ours takes, or names when it refuses it."""
    from rayjobs.bench_rewards import BenchRewardsOptions
    from rayjobs.comparison.options import CompareOptions
    from rayjobs.options import options_class
    from rayjobs.options.search import SearchJobOptions
    from rayjobs.simulation.options import CapacityOptions
    from rayjobs.sweeping.options import SweepOptions
    from sharpening.methods import METHODS

    models = [options_class(method) for method in METHODS]
    models += [SearchJobOptions, CompareOptions, SweepOptions, CapacityOptions, BenchRewardsOptions]
    return {name for model in models for name in model.model_fields} | {"method", "config", "help"}


def test_flags_in_the_text_exist() -> None:
    known = option_names()
    absent = {
        f"{block}: --{flag}"
        for block in BLOCKS if block.language is None and block.page.name != "coming-from-diffusers.md"
        for flag in re.findall(r"(?<![\w-])--([a-z][\w-]*)", block.code)
        if flag not in known | FOREIGN | OURS and "-" not in flag
    }  # fmt: skip
    assert not absent, "\n".join(sorted(absent))


def python_of(*names: str) -> str:
    """The Python of these pages, which must be a single block each and the same."""
    found = {block.code for block in BLOCKS if block.language == "python" and block.page.name in names}
    assert len(found) == 1, f"{names} have other Python than this test runs"
    return found.pop()


def execute(code: str, **given: Any) -> dict[str, Any]:
    """Run a block as a reader would who has these names."""
    names = dict(given)
    exec(compile(code, "<a page>", "exec"), names)
    return names


def test_every_block_of_python_is_run_somewhere() -> None:
    """Here or elsewhere; a page that is not in the list needs a test."""
    here = {"README.md", "docs/getting-started.md", "docs/training.md", "docs/grader.md", "docs/several-rewards.md",
            "docs/data.md", "docs/families.md"}  # fmt: skip
    found = {str(block.page.relative_to(ROOT)) for block in BLOCKS if block.language == "python"}
    assert found == here | RUN_ELSEWHERE.keys()
    for page, test in RUN_ELSEWHERE.items():
        assert Path(page).name in (ROOT / test).read_text()


@pytest.mark.parametrize("page", ["README.md", "getting-started.md"])
def test_the_sharpened_pipeline_loads(
    page: str, pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "pipeline").symlink_to(pipeline_folder)
    pipeline = execute(python_of(page).replace("<run>", "first"))["pipeline"]
    assert pipeline.unet.config.in_channels == 8


def test_adapters_load(policy: Any, pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "the-model-it-came-from").symlink_to(pipeline_folder)
    policy.add_adapter(rank=2)
    policy.save_adapter(tmp_path / "runs" / "<run>")
    pipeline = execute(python_of("training.md"))["pipeline"]
    assert pipeline.get_active_adapters()


def test_the_grader_grades(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    with openai_server() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        names = execute(python_of("grader.md").replace("docs/images", f"{ROOT}/docs/images"))
    assert names["scores"].values[0] == pytest.approx(
        score_of(server.received[0].image, "a red circle left of a blue square"), abs=1e-3
    )
    assert capsys.readouterr().out.splitlines()[-1] == "0.000258"  # as on the page: two images of 700 and 40 tokens


def test_several_rewards_train_in_process(policy: Any) -> None:
    from sharpening.data.source import PromptSource
    from sharpening.methods import load_method, options_class
    from sharpening.options import TrainingOptions

    method = load_method("rlhf", options_class("rlhf")(rollout_steps=2, branches=2, timesteps_per_rollout=1))
    options = TrainingOptions(updates=1, prompts_per_update=2, rollout_batch_size=2, train_batch_size=2)
    source = PromptSource(["a red circle", "a blue square"])
    names = execute(
        python_of("several-rewards.md"), policy=policy, method=method, source=source, options=options
    )  # fmt: skip
    assert tuple(names["score"].mix.names) == ("clip", "embedded-aesthetic")


def test_images_of_several_shapes_train_in_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The page's block, with fewer images and one update."""
    monkeypatch.chdir(tmp_path)
    with tarfile.open("shapes-000000.tar", "w") as tar:
        for number in range(24):
            height, width = ((72, 56), (64, 64), (48, 80))[number % 3]
            picture = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
            image = BytesIO()
            Image.fromarray(picture).save(image, "PNG")
            for suffix, contents in (("png", image.getvalue()), ("txt", b"a red circle")):
                entry = tarfile.TarInfo(f"{number:04d}.{suffix}")
                entry.size = len(contents)
                tar.addfile(entry, BytesIO(contents))
    code = python_of("data.md")
    assert "updates=8," in code
    execute(code.replace("updates=8,", "updates=1,"))
    first, second = capsys.readouterr().out.splitlines()
    assert first == "[((72, 56), 8), ((64, 64), 8), ((48, 80), 8)] 0 left out"
    assert re.fullmatch(r"0 loss \d\.\d{4} \{\}", second)


def test_the_sketch_of_a_family_is_what_families_are() -> None:
    from diffusers import StableDiffusionPipeline

    from sharpening.policies.base import Condition
    from sharpening.policies.latent import LatentPolicy
    from sharpening.policies.sd import SDPolicy

    sketch = execute(
        python_of("families.md"), LatentPolicy=LatentPolicy, Condition=Condition, MyPipeline=StableDiffusionPipeline
    )["MyPolicy"]
    written = {name for name in vars(sketch) if not name.startswith("_")}
    assert written <= {name for name in dir(SDPolicy) if not name.startswith("_")}
    for name in ("embed", "denoise"):
        assert name in vars(SDPolicy) or name in vars(LatentPolicy)
