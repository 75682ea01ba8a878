"""``limbeck methods``: every method in one list, by family or by an axis of the survey."""

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
from .docstrings import read
from .out import plain, print_json, row, table

Facts = dict[str, Any]

TEACHERS = ("dense", "at", "topk", "sampled", "text")
"""What a teacher may be asked for, the most demanding first."""

_MEANINGS = {
    "feedback": "what the student is told (arXiv:2604.00626; the rules are ours, in limbeck/taxonomy.py)",
    "access": "what a teacher has to serve: laws (white-box), or only text and log-probs of sampled tokens (black-box)",
    "granularity": "of what the loss is made: numbers per token, per sequence (or turn, or group), or both",
}


def methods(
    by: Annotated[
        str | None, typer.Option("--by", metavar="AXIS", help="Group by feedback, access or granularity.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    long: Annotated[bool, typer.Option("--long", help="With a sentence and the arguments of each.")] = False,
) -> None:
    """List the methods, and what each asks of its teacher and of your task.

    The column teacher says what a method reads from one. [cyan]dense[/]: its
    weights, or whole distributions. [cyan]at[/]: its log-probabilities at the
    entries that the student chose (the student's top k). [cyan]sampled[/]: those
    of the tokens that were written, which an API can give. [cyan]self[/]: there
    is none, the student teaches itself.
    reward: the task must verify answers, or say what is wrong with them.
    confidence: how sure we are that this is what the paper does.

    [bold]Groups[/]

    Without --by, methods stand by family. --by takes the axes of a survey
    (arXiv:2604.00626), derived from each method's value:
    [cyan]feedback[/]: logit-based, outcome-based, self-play (the student under
    another prompt teaches itself), none (plain likelihood).
    [cyan]access[/]: white-box, black-box (only text, or log-probs of the sampled
    tokens), teacher-free.
    [cyan]granularity[/]: token, sequence (a turn or a group too), hybrid.

    [bold]Examples[/]

    [cyan]limbeck methods[/]
    [cyan]limbeck methods --by access[/]
    [cyan]limbeck methods --json | jq -r '.[] | select(.teacher == "sampled") | .name'[/]
    """
    from .. import methods as filled

    del filled  # importing it fills the registry
    groups = by_family() if by is None else by_axis(taxonomy.known_axis(by))
    if as_json:
        print_json(_document(by, groups))
        return
    console = screen()
    if by is not None:
        plain(console, f"{by}: {_MEANINGS[by]}")
        plain(console)
    if long:
        for f in (f for group in groups.values() for f in group):
            _print_long(console, f)
    else:
        _print_table(console, groups)
    _print_footer(console)


# ---------------------------------------------------------------- what is known of each


def facts(recipe: Recipe) -> Facts:
    """What the list says of a method with its defaults."""
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
        "summary": read(recipe.doc).summary,
        "arguments": {name: default_of(default) for name, default in recipe.arguments.items()},
    }


def _teacher(method: Method, feedback: Sequence[str]) -> str | None:
    """The most demanding thing that is asked of a teacher, under whatever name it goes."""
    asked = taxonomy.asked_of_teachers(method)
    return next((a for a in TEACHERS if a in asked), "self" if "self-play" in feedback else None)


def family(recipe: Recipe) -> str:
    """What the file says of itself in which the method is written."""
    doc = inspect.getdoc(sys.modules[recipe.factory.__module__]) or ""
    return doc.partition("\n")[0].partition(":")[0].rstrip(".").replace("*", "")


def by_family() -> dict[str, list[Facts]]:
    """Families of methods, in the registry's order."""
    groups: dict[str, list[Facts]] = {}
    for recipe in REGISTRY.values():
        groups.setdefault(family(recipe), []).append(facts(recipe))
    return groups


def by_axis(axis: str) -> dict[str, list[Facts]]:
    """Methods by their values on an axis; those with several make a group of their own."""
    groups: dict[str, list[Facts]] = {}
    for recipe in REGISTRY.values():
        groups.setdefault(" and ".join(taxonomy.on_axis(recipe(), axis)), []).append(facts(recipe))
    order = taxonomy.AXES[axis]

    def rank(name: str) -> tuple[int, list[int]]:
        values = [order.index(v) for v in name.split(" and ")]
        return (values[0], values[1:])

    return {name: groups[name] for name in sorted(groups, key=rank)}


def _document(by: str | None, groups: Mapping[str, list[Facts]]) -> Any:
    """The list as JSON: methods in the registry's order, or groups of them."""
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
    """A default as JSON and readers like it."""
    return value if value is None or isinstance(value, bool | int | float | str) else str(getattr(value, "name", value))


# ---------------------------------------------------------------- how it is shown


def _print_table(console: Console, groups: Mapping[str, list[Facts]]) -> None:
    """One table a group, their columns in line."""
    everybody = [f for group in groups.values() for f in group]
    cells = {f["name"]: _cells(f) for f in everybody}
    names = ("name", "title", "paper", "teacher", "reward", "confidence")
    widths = [max(len(text) for text in (name, *column)) for name, *column in zip(names, *cells.values(), strict=True)]
    taken = sum(widths) - widths[1] + 2 * len(names)
    widths[1] = max(12, min(widths[1], console.width - taken))
    for i, (title, group) in enumerate(groups.items()):
        if i:
            plain(console)
        plain(console, title, "bold")
        made = table(*names, show_header=not i)
        _hold(made, widths)
        for f in group:
            row(made, *cells[f["name"]], style="cyan")
        console.print(made)
    plain(console)
    for f in everybody:
        if "/" in f["paper"]:  # an address, which the table has no room for
            plain(console, f"{f['name']}: {f['paper']}", "dim")


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
    words = [f["summary"], f"reads {reads or 'nobody but the student'}{', and a reward' if f['reward'] else ''}"]
    words.append(f"{' and '.join(f['feedback'])} · {f['access']} · {f['granularity']}")
    if f["arguments"]:
        words.append(", ".join(f"{k}={v}" for k, v in f["arguments"].items()))
    console.print(Padding(Text("\n".join(words)), (0, 0, 1, 4)))


def _print_footer(console: Console) -> None:
    plain(console)
    plain(console, f"{len(REGISTRY)} methods. `limbeck explain NAME` tells more of one.", "dim")
    plain(console, f"{len(PIPELINES)} pipelines: {', '.join(PIPELINES)}. `limbeck pipeline` tells more.", "dim")
