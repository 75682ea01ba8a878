"""``limbeck methods``: a list of all methods, by family or by an axis of a survey."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..space import taxonomy
from ..space.method import Method
from ..space.pipeline import PIPELINES
from ..space.registry import REGISTRY, Recipe
from ..terminal import screen
from .docstrings import parse_docstring
from .output import add_row, make_table, print_json, print_line

Facts = dict[str, Any]

TEACHERS = ("dense", "at", "topk", "sampled", "text")
"""What a method may read from a teacher, the most demanding first."""

TEACHER_LEGEND = {
    "dense": "its full next-token distributions",
    "at": "its log-probs at the student's k most likely tokens",
    "topk": "its k most likely tokens with their log-probs",
    "sampled": "its log-prob of each sampled token, which an API can give",
    "text": "text that it generates",
    "self": "no teacher model; the student teaches itself, under another prompt",
}
"""The words of the column ``teacher``, explained below the table."""

_MEANINGS = {
    "feedback": "the kind of signal the student gets (arXiv:2604.00626; the rules are ours, in "
    "limbeck/space/taxonomy.py)",
    "access": "what a teacher must provide: next-token distributions (white-box), or only text and log-probs of "
    "sampled tokens (black-box)",
    "granularity": "what the loss is computed from: values per token, per sequence (or turn, or group), or both",
}


def methods(
    by: Annotated[
        str | None, typer.Option("--by", metavar="AXIS", help="Group by feedback, access or granularity.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    long: Annotated[bool, typer.Option("--long", help="Add a sentence and the arguments of each method.")] = False,
) -> None:
    """List the methods, and what each needs from a teacher and from your task.

    teacher: what the method reads from a teacher model. [cyan]dense[/]: its full
    next-token distributions. [cyan]topk[/]: its k most likely tokens with their
    log-probs. [cyan]at[/]: its log-probs at the student's k most likely tokens.
    [cyan]sampled[/]: its log-prob of each sampled token, which an API can give.
    [cyan]text[/]: text that it generates. [cyan]self[/]: no teacher model; the
    student teaches itself, under another prompt.
    reward: the task must verify answers, or give feedback on them.
    confidence: how sure we are that this is what the paper does.

    [bold]Groups[/]

    Methods are grouped by family. With --by they are grouped by an axis of a
    survey (arXiv:2604.00626), derived from each method's definition:
    [cyan]feedback[/]: logit-based, outcome-based, self-play (the student teaches
    itself, under another prompt), none (plain likelihood).
    [cyan]access[/]: white-box, black-box (only text, or log-probs of the sampled
    tokens), teacher-free.
    [cyan]granularity[/]: token, sequence (also turn or group), hybrid.

    [bold]Examples[/]

    [cyan]limbeck methods[/]
    [cyan]limbeck methods --by access[/]
    [cyan]limbeck methods --json | jq -r '.[] | select(.teacher == "sampled") | .name'[/]
    """
    groups = by_family() if by is None else by_axis(taxonomy.known_axis(by))
    if as_json:
        print_json(_document(by, groups))
        return
    console = screen()
    if by is not None:
        print_line(console, f"{by}: {_MEANINGS[by]}")
        print_line(console)
    if long:
        for f in (f for group in groups.values() for f in group):
            _print_long(console, f)
    else:
        _print_table(console, groups)
        _print_legend(console)
    _print_footer(console)


# ---------------------------------------------------------------- facts about each method


def method_facts(recipe: Recipe) -> Facts:
    """The entry of a method with its default arguments in the list."""
    value = recipe()
    place = taxonomy.place(value)
    return {
        "name": recipe.name,
        "title": recipe.title,
        "paper": recipe.paper,
        "teacher": _teacher(value, place["feedback"]),
        "reads": {role: sorted(abilities) for role, abilities in value.roles.items()},
        "reward": taxonomy.needs_verifier(value),
        "confidence": recipe.confidence,
        "family": family(recipe),
        "feedback": list(place["feedback"]),
        "access": place["access"][0],
        "granularity": place["granularity"][0],
        "summary": parse_docstring(recipe.doc).summary,
        "arguments": {name: default_of(default) for name, default in recipe.arguments.items()},
    }


def _teacher(method: Method, feedback: Sequence[str]) -> str | None:
    """The most demanding thing that is read from any teacher model."""
    asked = taxonomy.asked_of_teachers(method)
    return next((a for a in TEACHERS if a in asked), "self" if "self-play" in feedback else None)


def family(recipe: Recipe) -> str:
    """The family of a method: the first words of the docstring of its module."""
    doc = inspect.getdoc(sys.modules[recipe.factory.__module__]) or ""
    return doc.partition("\n")[0].partition(":")[0].rstrip(".").replace("*", "")


def by_family() -> dict[str, list[Facts]]:
    """Methods by family, in the order of the registry."""
    groups: dict[str, list[Facts]] = {}
    for recipe in REGISTRY.values():
        groups.setdefault(family(recipe), []).append(method_facts(recipe))
    return groups


def by_axis(axis: str) -> dict[str, list[Facts]]:
    """Methods by their values on an axis; each combination of several values is a group of its own."""
    groups: dict[str, list[Facts]] = {}
    for recipe in REGISTRY.values():
        groups.setdefault(" and ".join(taxonomy.on_axis(recipe(), axis)), []).append(method_facts(recipe))
    order = taxonomy.AXES[axis]

    def rank(name: str) -> tuple[int, list[int]]:
        values = [order.index(v) for v in name.split(" and ")]
        return (values[0], values[1:])

    return {name: groups[name] for name in sorted(groups, key=rank)}


def _document(by: str | None, groups: Mapping[str, list[Facts]]) -> Any:
    """The list as JSON: methods in the order of the registry, or groups of their names."""
    if by is None:
        known = {f["name"]: f for group in groups.values() for f in group}
        return [known[name] for name in REGISTRY]
    return {
        "by": by,
        "groups": [
            {"is": name.split(" and "), "methods": [f["name"] for f in group]} for name, group in groups.items()
        ],
    }


def default_of(value: object) -> object:
    """A default as a JSON value: numbers, texts and None as they are, other values by name or as text."""
    return value if value is None or isinstance(value, bool | int | float | str) else str(getattr(value, "name", value))


# ---------------------------------------------------------------- printing


def _print_table(console: Console, groups: Mapping[str, list[Facts]]) -> None:
    """Print one table for each group, with the same column widths in all."""
    every = [f for group in groups.values() for f in group]
    cells = {f["name"]: _cells(f) for f in every}
    names = ("name", "title", "paper", "teacher", "reward", "confidence")
    widths = [max(len(text) for text in (name, *column)) for name, *column in zip(names, *cells.values(), strict=True)]
    taken = sum(widths) - widths[1] + 2 * len(names)
    widths[1] = max(12, min(widths[1], console.width - taken))
    for i, (title, group) in enumerate(groups.items()):
        if i:
            print_line(console)
        print_line(console, title, "bold")
        made = make_table(*names, show_header=not i)
        _hold(made, widths)
        for f in group:
            add_row(made, *cells[f["name"]], style="cyan")
        console.print(made)
    print_line(console)
    for f in every:
        if "/" in f["paper"]:  # a URL is too long for the table
            print_line(console, f"{f['name']}: {f['paper']}", "dim")


def _print_legend(console: Console) -> None:
    """Print the meaning of the words in the columns ``teacher``, ``reward`` and ``confidence``."""
    print_line(console)
    print_line(console, "teacher: what the method reads from a teacher model", "dim")
    for word, meaning in TEACHER_LEGEND.items():
        print_line(console, f"  {word:<9}{meaning}", "dim")
    print_line(console, "reward: the task must verify answers, or give feedback on them", "dim")
    print_line(console, "confidence: how sure we are that this is what the paper does", "dim")


def _hold(made: Table, widths: Sequence[int]) -> None:
    for column, width in zip(made.columns, widths, strict=True):
        column.min_width = column.max_width = width


def _cells(f: Facts) -> tuple[str, ...]:
    reward = "yes" if f["reward"] else "—"
    paper = "see below" if "/" in f["paper"] else f["paper"] or "—"
    return f["name"], f["title"], paper, f["teacher"] or "—", reward, f["confidence"]


def _print_long(console: Console, f: Facts) -> None:
    console.print(Text.assemble((f["name"], "bold cyan"), f"  {f['title']}", (f"  {f['paper']}", "dim")))
    reads = "; ".join(f"{role}: {', '.join(abilities)}" for role, abilities in f["reads"].items())
    words = [f["summary"], f"reads {reads or 'the student only'}{', and a reward' if f['reward'] else ''}"]
    words.append(f"{' and '.join(f['feedback'])} · {f['access']} · {f['granularity']}")
    if f["arguments"]:
        words.append(", ".join(f"{k}={v}" for k, v in f["arguments"].items()))
    console.print(Padding(Text("\n".join(words)), (0, 0, 1, 4)))


def _print_footer(console: Console) -> None:
    print_line(console)
    print_line(console, f"{len(REGISTRY)} methods. `limbeck explain NAME` describes one.", "dim")
    print_line(
        console, f"{len(PIPELINES)} pipelines: {', '.join(PIPELINES)}. `limbeck pipeline` describes them.", "dim"
    )
