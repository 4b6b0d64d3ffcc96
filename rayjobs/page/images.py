"""Sample grids as data URLs, with what they show as text."""

import re
from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from rayjobs.page.contents import PageError
from rayjobs.page.numbers import thinned

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_LOOKS = 24  # grids in the page's slider; all of them are in the folder
LARGEST = 600_000  # bytes of a PNG that goes into the page as it is
WIDEST = 1800  # pixels of one that is packed anew
GRIDS = {
    "samples_compared.png": "before and after, side by side", "samples_before.png": "before training",
    "samples_after.png": "after training",
}  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """A sample grid.

    Attributes:
        name: File name.
        title: What it is.
        url: The picture, as a data URL.
        width: Pixels.
        height: Pixels.
        captions: The prompts, in the order of the cells; empty where the file does not tell them.
        update: Updates made when it was drawn, 0 for the other grids.
        verified: Whether verifiers may have marked facts in it.
    """

    name: str
    title: str
    url: str
    width: int
    height: int
    captions: list[str]
    update: int = 0
    verified: bool = True

    @property
    def alt(self) -> str:
        """What stands for the picture where it is not seen."""
        cells = f"{len(self.captions)} prompts" if self.captions else "prompts"
        marks = "a mark for every verified fact" if self.verified else "its reward"
        return f"Sample grid, {self.title}: {cells}, each image with its prompt and {marks}"


def sample_grids(folder: Path) -> list[Grid]:
    """The grid before and after side by side; of a run that was not evaluated to its end, what there is.

    Args:
        folder: The run folder.

    Returns:
        No or one grid.
    """
    there = [name for name in GRIDS if (folder / name).is_file()]
    return [_grid(folder / name, GRIDS[name]) for name in there[:1]]


def look_grids(folder: Path) -> list[Grid]:
    """Grids of the looks at held-out prompts, by rising update; of very many, some evenly spread ones.

    Args:
        folder: The run folder.

    Returns:
        Grids of the same prompts from the same noise.
    """
    return _by_update(folder, "samples", verified=True)


def own_grids(folder: Path) -> list[Grid]:
    """Grids of the user's own prompts, by rising update, the base model's first; of very many, some evenly spread ones.

    Args:
        folder: The run folder.

    Returns:
        Grids of the same prompts from the same noise.
    """
    return _by_update(folder, "own_prompts", verified=False)


def _by_update(folder: Path, stem: str, verified: bool) -> list[Grid]:
    found = {
        int(match[1]): path
        for path in folder.glob(f"{stem}_*.png")
        if (match := re.fullmatch(rf"{stem}_(\d+)", path.stem))
    }
    updates = sorted(found)
    kept = [updates[place] for place in thinned(len(updates), MOST_LOOKS)]
    return [_grid(found[update], f"after update {update}", update, verified) for update in kept]


def _grid(path: Path, title: str, update: int = 0, verified: bool = True) -> Grid:
    import PIL.Image

    try:
        contents = path.read_bytes()
        with PIL.Image.open(BytesIO(contents)) as picture:
            picture.load()
            told = getattr(picture, "text", {}).get("Description", "")
            kind = "png"
            if len(contents) > LARGEST:
                contents, kind = _packed(picture), "webp"
            url = f"data:image/{kind};base64,{b64encode(contents).decode()}"
            return Grid(path.name, title, url, picture.width, picture.height, told.splitlines(), update, verified)
    except (OSError, SyntaxError, ValueError) as error:
        raise PageError(f"{path} is no whole picture ({error}); move it away to leave it out") from error


def _packed(picture: "Image") -> bytes:
    """A large grid, such as of 1024-pixel images, at a page's width."""
    smaller = picture.convert("RGB")
    smaller.thumbnail((WIDEST, 100 * WIDEST))
    buffer = BytesIO()
    smaller.save(buffer, format="WEBP", quality=85)
    return buffer.getvalue()
