"""The project as a whole: what its layers import, and what its committed files say."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
MEASURED = {  # the set that was found to resolve, import and work together
    "torch": "2.13.0", "torchvision": "0.28.0", "ray": "2.60.0", "deepspeed": "0.19.8", "diffusers": "0.42.1",
    "transformers": "5.23.0", "accelerate": "1.15.0", "open-clip-torch": "3.3.0", "pyarrow": "26.0.1",
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).split(".")[0])
    return found


def locked() -> dict[str, Version]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line.strip()]
    return {r.name: Version(str(r.specifier).removeprefix("==")) for r in requirements}


def test_the_core_imports_neither_ray_nor_deepspeed_nor_the_layers_above():
    files = sorted((ROOT / "sharpening").rglob("*.py"))
    assert len(files) > 20
    foreign = {"ray", "deepspeed", "rayjobs", "reward_servers"}
    assert {str(f.relative_to(ROOT)): found for f in files if (found := imports(f) & foreign)} == {}


def test_the_core_imports_only_what_the_package_declares():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {Requirement(line).name.replace("-", "_") for line in project["dependencies"]}
    declared |= {"PIL", "open_clip", "packaging", "huggingface_hub", "tokenizers"}  # import names, dependencies' own
    extras = {"grader": ROOT / "sharpening" / "rewards" / "grader", "datasets": ROOT / "sharpening" / "data" / "hub.py"}
    for file in (ROOT / "sharpening").rglob("*.py"):
        allowed = set(declared)
        for extra, place in extras.items():
            if file.is_relative_to(place):
                allowed |= {Requirement(line).name for line in project["optional-dependencies"][extra]}
        unknown = imports(file) - allowed - set(sys.stdlib_module_names) - {"sharpening"}
        assert not unknown, f"{file.relative_to(ROOT)} imports {unknown}"


def test_nothing_of_ours_unpickles():
    """Weights are safetensors and messages JSON; what torch reads of our own checkpoints, it reads as tensors alone."""
    for layer in ("sharpening", "rayjobs", "reward_servers"):
        for path in sorted((ROOT / layer).rglob("*.py")):
            assert not imports(path) & {"cloudpickle", "dill", "marshal", "shelve", "joblib"}, path
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                told = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert told.get("allow_pickle", "False") == "False", path
                assert not ast.unparse(node.func).startswith("pickle."), path  # its errors may be caught
                own = (
                    path.relative_to(ROOT).as_posix() == "rayjobs/benchmark/worker.py"
                )  # reads what it has just written
                assert own or ast.unparse(node.func) != "torch.load" or told.get("weights_only") == "True", path


@pytest.mark.parametrize("name", MEASURED)
def test_the_lock_holds_the_measured_set(name: str):
    assert locked()[name] == Version(MEASURED[name])


def test_the_lock_lies_within_the_ranges():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = locked()
    lines = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    for line in lines:
        requirement = Requirement(line)
        name = requirement.name.lower().replace("_", "-")
        assert versions[name] in requirement.specifier, f"{line} against {versions[name]}"


def test_the_lock_names_no_index_and_no_path():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not [mark for mark in ("://", "--", "file:", " @ ", "#") if mark in text]


def test_committed_text_names_no_machine_path_and_no_package_index():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    marks = [str(ROOT).encode() + b"/", str(Path.home()).encode() + b"/", b"index" + b"-url", b'registry = "http']
    found = []
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        if path.suffix in (".safetensors", ".png", ".parquet") or not path.is_file() or path == Path(__file__):
            continue
        contents = path.read_bytes()
        found += [(name, mark) for mark in marks if mark in contents]
    assert found == []
