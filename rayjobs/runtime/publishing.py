"""What happens to a pipeline once it is saved: its model card, and its way to the hub."""

import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rayjobs.commands import program
from rayjobs.options import EMBEDDED, PLACES, JobOptions
from rayjobs.runtime.state import last_line
from rayjobs.sharing import repository
from rayjobs.tracking.secrets import scrub
from sharpening.evaluation.model_card import ADAPTERS, Card, write_card
from sharpening.evaluation.run_folder import RunFolder

if TYPE_CHECKING:
    from huggingface_hub import HfApi

GRIDS = ("samples_compared.png", "samples_after.png")
NOT_FOUND = 404
CONFIG = "training_config.json"  # in the pipeline's folder; `config.json` there would be a model's


def publish(folder: RunFolder, options: JobOptions, asked: JobOptions, say: Callable[[str], None]) -> None:
    """Write the pipeline's model card and, where it is asked for, push it to the hub.

    Nothing that goes wrong here harms the run: it is told, with what to do.

    Args:
        folder: The run folder, with pipeline and summary.
        options: The run's options.
        asked: The options as they were asked for.
        say: Shows a line to the user.
    """
    try:
        write_run_card(folder, options, asked)
    except Exception as error:
        say(f"the model card was not written ({scrub(last_line(error))}); the pipeline is whole without it")
    if not options.push_to_hub:
        return
    name = repository(options)
    try:
        say(f"the pipeline is at {push(folder.pipeline, name)}")
    except Exception as error:
        again = f"hf upload {shlex.quote(name)} {shlex.quote(str(folder.pipeline))}"
        said = scrub(last_line(error)).rstrip(".")
        say(f"the pipeline was not pushed to {name} ({said}); the run is whole, and pushed later with: {again}")


def write_run_card(folder: RunFolder, options: JobOptions, asked: JobOptions) -> Path:
    """Write the model card into the pipeline's folder, with the run's adapters, grids and configuration beside it.

    Args:
        folder: The run folder, with pipeline and summary.
        options: The run's options.
        asked: The options as they were asked for.

    Returns:
        The card.
    """
    grids = []
    for name in GRIDS[:1] if (folder.path / GRIDS[0]).is_file() else GRIDS[1:]:
        if (folder.path / name).is_file():
            shutil.copyfile(folder.path / name, folder.pipeline / name)
            grids.append(name)
    for name in ADAPTERS:
        if (folder.path / name).is_file():
            shutil.copyfile(folder.path / name, folder.pipeline / name)
    shutil.copyfile(folder.path / "config.json", folder.pipeline / CONFIG)
    base = options.pretrained_model_name_or_path
    card = Card(
        name=repository(options) if options.push_to_hub else folder.path.name, base=None if base == EMBEDDED else base,
        about=type(options).about, command=command(asked), reward=options.reward, grids=tuple(grids), config=CONFIG,
    )  # fmt: skip
    return write_card(folder, card)


def command(asked: JobOptions) -> str:
    """The command line that asks for some options.

    Args:
        asked: The options.

    Returns:
        The job and every option that differs from its default, but those that say where a run is.
    """
    file = program(asked.method)
    words = ["python", f"rayjobs/{file}", *(["--method", asked.method] if file == "finetune.py" else [])]
    for name, field in type(asked).model_fields.items():
        value = getattr(asked, name)
        if value == field.default or name in PLACES or value is None:
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, dict):  # what a file said, which has no flag of its own
            return f"python rayjobs/{file} --config {CONFIG}"
        else:
            words += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return shlex.join(words)


def push(pipeline: Path, name: str) -> str:
    """Upload a pipeline, with the token that `HF_TOKEN` holds.

    Args:
        pipeline: Its folder.
        name: The repository; made where there is none.

    Returns:
        The repository's address.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ["HF_TOKEN"])
    repo = api.create_repo(name, repo_type="model", exist_ok=True)
    with _storage_that_is_offered(api, repo.repo_id):
        api.upload_folder(
            repo_id=repo.repo_id, folder_path=pipeline, repo_type="model", commit_message="Sharpened pipeline"
        )  # fmt: skip
    return str(repo)


@contextmanager
def _storage_that_is_offered(api: "HfApi", repo_id: str) -> Iterator[None]:
    """Have large files uploaded through Git LFS while a block runs, if the hub has no Xet storage.

    huggingface_hub takes Xet wherever its package is installed; a hub of one's own (`HF_ENDPOINT`) may have none.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session

    before = constants.HF_HUB_DISABLE_XET
    address = f"{api.endpoint}/api/models/{repo_id}/xet-write-token/main"
    answer = get_session().get(address, headers=build_hf_headers(token=api.token))
    constants.HF_HUB_DISABLE_XET = before or answer.status_code == NOT_FOUND
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before
