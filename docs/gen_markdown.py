"""Docstrings as Markdown, and Markdown's tables; ``gen_pages`` builds pages of it."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator

_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Arguments)( \([^)]*\))?:$")
_ENTRY = re.compile(r"^(\*{0,2}[A-Za-z_][\w, *]*?): (.*)$")


def inline(text: str) -> str:
    """Roles and literals of reStructuredText as Markdown."""
    text = re.sub(r":math:`([^`]+)`", r"\\(\1\\)", text)
    text = re.sub(r":(?:func|class|meth|mod):`~?([^`]+)`", lambda m: f"`{m[1].rpartition('.')[2]}`", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def split_doc(doc: str) -> tuple[str, dict[str, dict[str, str]]]:
    """The text of a docstring as Markdown, and its sections: name to {entry: text}."""
    lines = inspect.cleandoc(doc).split("\n")
    first = next((i for i, line in enumerate(lines) if _SECTION.match(line)), len(lines))
    return _body(lines[:first]), dict(_sections(lines[first:]))


def _sections(lines: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    heads = [i for i, line in enumerate(lines) if _SECTION.match(line)]
    for i, after in zip(heads, [*heads, len(lines)][1:], strict=True):
        entries: dict[str, str] = {}
        name = ""
        for line in textwrap.dedent("\n".join(lines[i + 1 : after])).split("\n"):
            entry = _ENTRY.match(line)
            if entry:
                name = entry[1]
                entries[name] = entry[2]
            elif line.strip():
                entries[name] = f"{entries.get(name, '')} {line.strip()}".strip()
        yield _SECTION.match(lines[i])[0].rstrip(":"), {k: inline(v) for k, v in entries.items()}  # type: ignore[index]


def _body(lines: list[str]) -> str:
    """Paragraphs, formulas, literal blocks, tables of signs and doctests."""
    out: list[str] = []
    i = 0
    while i < len(lines):
        line = lines[i]
        if line.startswith(".. math::"):
            block, i = _indented(lines, i + 1)
            formula = " ".join(part.strip() for part in [line.removeprefix(".. math::"), *block]).strip()
            out += ["", rf"\[{formula}\]", ""]
        elif line.endswith("::"):
            block, i = _indented(lines, i + 1)
            out += [inline(line[:-1]), "", "```text", *textwrap.dedent("\n".join(block)).strip("\n").split("\n"), "```"]
        elif re.match(r"^=+ +=", line):  # a simple table: from its first rule to its third
            rules = [j for j in range(i, len(lines)) if re.match(r"^=+ +=", lines[j])]
            last = rules[2] if len(rules) > 2 and lines[rules[1] - 1] == lines[i] else rules[-1]
            out += ["```text", *lines[i : last + 1], "```"]
            i = last + 1
        elif line.startswith(">>>"):
            end = next((j for j in range(i, len(lines)) if not lines[j].strip()), len(lines))
            out += ["```text", *lines[i:end], "```"]
            i = end
        else:
            out.append(inline(line))
            i += 1
    return "\n".join(_spaced(out)).strip()


def _indented(lines: list[str], i: int) -> tuple[list[str], int]:
    """The indented block from line i on, and where it ends."""
    end = i
    while end < len(lines) and (not lines[end].strip() or lines[end].startswith(" ")):
        end += 1
    return lines[i:end], end


def _spaced(lines: list[str]) -> Iterator[str]:
    """Markdown wants an empty line before a list; reStructuredText does not."""
    before, fenced = "", False
    for line in lines:
        fenced ^= line.startswith("```")
        if not fenced and re.match(r"^(\* |\d+\. )", line) and before.strip() and not _in_list(before):
            yield ""
        yield line
        before = line


def _in_list(line: str) -> bool:
    return bool(re.match(r"^(\* |\d+\. | )", line))


def cell(text: str) -> str:
    """A table's cell: a bar would end it."""
    return re.sub(r"(?<!\\)\|", r"\|", text.replace("\n", " "))


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell(c) for c in line)} |" for line in lines)
