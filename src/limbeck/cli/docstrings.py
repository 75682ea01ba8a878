"""Parse a method's docstring into a summary, formulae, remarks, and a text for every argument."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .latex import inline, readable

SECTION = re.compile(r"^(Args|Returns|Raises|References|Example|Examples|Note|Notes):$", re.MULTILINE)
ARGUMENT = re.compile(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*): *(.*)$")
ITEM = re.compile(r"^\s*(\d+\.|[-*]) ")


@dataclass(frozen=True)
class Block:
    """A paragraph, an item of a list, or a formula, ready to be shown."""

    kind: str
    text: str


@dataclass(frozen=True)
class Doc:
    """A parsed docstring."""

    summary: str
    blocks: tuple[Block, ...]
    arguments: dict[str, str]


def parse_docstring(doc: str) -> Doc:
    """Parse a Google-style docstring with reStructuredText formulae."""
    start = SECTION.search(doc)
    prose = doc[: start.start()] if start else doc
    summary, _, body = prose.strip().partition("\n\n")
    paragraphs = re.split(r"\n\s*\n|\n(?=\.\. math::)", body)  # formulae may follow each other
    blocks = tuple(block for paragraph in paragraphs for block in _blocks(paragraph))
    return Doc(inline(" ".join(summary.split())), blocks, _arguments(doc))


def _blocks(paragraph: str) -> list[Block]:
    """Split a paragraph into a formula, or texts and list items."""
    lines = paragraph.strip("\n").splitlines()
    if lines and lines[0].strip().startswith(".. math::"):
        formula = readable("\n".join([lines[0].strip().removeprefix(".. math::"), *lines[1:]]))
        return [Block("formula", formula)]
    made: list[list[str]] = []
    for line in filter(str.strip, lines):
        if not made or ITEM.match(line):
            made.append([])
        made[-1].append(line.strip())
    return [Block("item" if ITEM.match(x[0]) else "text", inline(" ".join(x))) for x in made]


def _arguments(doc: str) -> dict[str, str]:
    """The text of every argument; arguments that share an entry share its text."""
    _, found, section = doc.partition("\nArgs:\n")
    texts: dict[str, list[str]] = {}
    names: list[str] = []
    for line in section.splitlines() if found else []:
        if line and not line.startswith(" "):
            break  # the next section
        entry = ARGUMENT.match(line)
        if entry:
            names = [n.lstrip("*") for n in entry.group(1).split(", ")]
        for name in names:
            texts.setdefault(name, []).append(entry.group(2) if entry else line.strip())
    return {name: inline(" ".join(" ".join(words).split())) for name, words in texts.items()}
