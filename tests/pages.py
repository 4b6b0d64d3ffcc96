"""Code blocks and commands of the documentation, for tests that hold the pages against the code."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = (
    "python", "make", "serve", "ray", "kubectl", "sbatch", "source", "export", "ollama", "vllm", "prometheus",
    "grafana", "curl", "echo", "rm",
)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block, or what stands between backticks in the text (language `None`)."""

    page: Path
    line: int
    language: str | None
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command that a page shows, and the lines that it shows beneath."""

    block: Block
    words: tuple[str, ...]
    shown: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.block} {shlex.join(self.words)[:60]}"


def blocks(page: Path) -> Iterator[Block]:
    """All code on a page, in order."""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
        line = (token.map or [0])[0] + 1
        if token.type == "fence":
            yield Block(page, line, (token.info.split() or [""])[0], token.content)
        for child in token.children or ():
            if child.type == "code_inline":
                yield Block(page, line, None, child.content)


def program(line: str) -> str | None:
    """The program that a line calls, where it calls one that we know."""
    line = re.sub(r"^([A-Z_]+=\S+ )+", "", line)  # variables before it
    word = line.split(maxsplit=1)[0].removeprefix(".venv/bin/") if line.split() else ""
    return word if word in PROGRAMS else None


def commands(block: Block) -> Iterator[Command]:
    """The commands of a block.

    Where a line begins with `$ `, the lines without it are output. Where none does, a block that begins with a command
    consists of commands, but for what a job (`rlhf: …`) or Ray (`INFO …`) says.
    """
    if block.language not in (None, "", "bash"):
        return
    lines = block.code.replace("\\\n", " ").splitlines()
    prompted = any(line.startswith("$ ") for line in lines)
    if not prompted and not (lines and program(lines[0])):
        return
    if block.language is None and not re.search(r"[/.=:]|^make \S", lines[0]):  # a program's name, as in `ray up`
        return
    found: list[tuple[str, list[str]]] = []
    for line in lines:
        output = re.match(r"[a-z_]+: |\.\.\.|INFO ", line) or not line.strip()
        called = line.startswith("$ ") if prompted else not output
        if called:
            found.append((line.removeprefix("$ "), []))
        elif found and line.strip():
            found[-1][1].append(line)
    for text, shown in found:
        words = shlex.split(re.sub(r"<[^<>]*>", "placeholder", text.replace("…", "")), comments=True)
        while re.match(r"[A-Z_]+=", words[0]):  # variables for this command
            words.pop(0)
        yield Command(block, tuple(words), tuple(shown))
