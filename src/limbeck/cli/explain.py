"""``limbeck explain`` and ``limbeck diff``: describe a method, and how two methods differ."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..errors import LimbeckError, shown
from ..space.explain import axes, cite, denominators
from ..space.explain import diff as differences
from ..space.method import Method
from ..space.registry import Recipe, get
from ..terminal import printable, screen
from ..user_files import typed
from .docstrings import Doc, parse_docstring
from .methods import default_of
from .options import Json
from .output import add_row, make_table, print_json, print_line
from .settings import build

NameOf = Annotated[str, typer.Argument(metavar="NAME", help="The method; `limbeck methods` lists them.")]


# ---------------------------------------------------------------- explain


def explain(
    name: NameOf,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An argument of the method; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Explain a method: its formula, which models it reads, its arguments, its paper.

    The formula under "As it runs here" is printed from the same object that
    `limbeck train` runs, so the two cannot differ.

    [bold]Examples[/]

    [cyan]limbeck explain kdrl[/]
    [cyan]limbeck explain kdrl --set coef=0 --set group=16[/]
    """
    recipe = get(name)
    given = _given(settings)
    value = build(name, given)
    doc = parse_docstring(recipe.doc)
    if as_json:
        print_json(_explained(recipe, value, doc, given))
        return
    screen().print(_page(recipe, value, doc, given))


def _given(settings: list[str] | None) -> dict[str, Any]:
    """The method's arguments that ``--set`` gives."""
    if not settings:
        return {}
    from ..engine.config import parse_settings

    given = parse_settings(settings)
    table = given.pop("arguments", {})
    if not isinstance(table, dict):
        raise LimbeckError(
            f"arguments={shown(table)}: it is a table of the method's arguments; write arguments.name=value."
        )
    return {**table, **given}


def _explained(recipe: Recipe, value: Method, doc: Doc, given: dict[str, Any]) -> dict[str, Any]:
    arguments = [
        {"name": n, "default": default_of(d), "value": default_of(given.get(n, d)), "help": doc.arguments.get(n)}
        for n, d in recipe.arguments.items()
    ]
    return {
        "name": recipe.name,
        "title": recipe.title,
        "paper": recipe.paper,
        "citation": cite(value),
        "confidence": recipe.confidence,
        "summary": doc.summary,
        "published": [b.text for b in doc.blocks if b.kind == "formula"],
        "remarks": [b.text for b in doc.blocks if b.kind != "formula"],
        "formula": str(value.terms),
        "axes": {label.strip(): text for label, text in axes(value).items()},
        "denominators": denominators(value),
        "reads": value.roles,
        "arguments": arguments,
    }


def _page(recipe: Recipe, value: Method, doc: Doc, given: dict[str, Any]) -> Group:
    parts: list[Any] = [
        Text.assemble((recipe.name, "bold cyan"), " — ", (cite(value), "bold")),
        Text(doc.summary),
        Text(),
    ]
    for block, behind in zip(doc.blocks, (*doc.blocks[1:], None), strict=False):  # the last block has no successor
        indent = {"formula": 4, "item": 2, "text": 0}[block.kind]
        within = block.kind == "item" and behind is not None and behind.kind == "item"
        style = "green" if block.kind == "formula" else ""
        parts.append(Padding(Text(block.text, style=style), (0, 0, int(not within), indent)))
    parts += [Text("As it runs here", style="bold"), Padding(Text(f"L = {value.terms}", style="green"), (0, 0, 1, 4))]
    parts.append(Padding(_axes_table(value), (0, 0, 1, 2)))
    if recipe.arguments:
        parts += [Text("Arguments", style="bold"), Padding(_argument_table(recipe, doc, given), (0, 0, 1, 2))]
    teacher = " --teacher TEACHER" if "teacher" in value.roles else ""
    sets = "".join(f" --set {k}={v}" for k, v in given.items())
    sets += "".join(f" --set others.{role}=MODEL" for role in value.others)
    command = f"limbeck train {recipe.name}{typed()} --student STUDENT{teacher} --task TASK{sets}"
    parts.append(Text(printable(command), style="cyan"))
    return Group(*parts)


def _axes_table(value: Method) -> Table:
    made = make_table("", "", show_header=False)
    made.columns[0].no_wrap = True
    for label, text in axes(value).items():
        add_row(made, label, text, style="dim")
    return made


def _argument_table(recipe: Recipe, doc: Doc, given: dict[str, Any]) -> Table:
    made = make_table("name", "value", "")
    made.columns[0].no_wrap = True
    for name, default in recipe.arguments.items():
        shown = str(default_of(default))
        if name in given:
            shown = f"{given[name]} (default {shown})"
        add_row(made, name, shown, doc.arguments.get(name, ""), style="cyan")
    return made


# ---------------------------------------------------------------- diff


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A method.")],
    b: Annotated[str | None, typer.Argument(metavar="B", help="Another method.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Show how two methods differ, axis by axis; axes that are not shown are the same.

    [bold]Examples[/]

    [cyan]limbeck diff gkd kdrl[/]
    [cyan]limbeck diff grpo dr_grpo[/]
    """
    left = get(a)()
    if b is None:
        raise LimbeckError(f"diff compares two methods, and only {a} was named; write `limbeck diff {a} OTHER`.")
    right = get(b)()
    found = [(axis.strip(), x, y) for axis, x, y in differences(left, right)]
    if as_json:
        print_json({"a": a, "b": b, "differences": [{"axis": axis, "a": x, "b": y} for axis, x, y in found]})
        return
    console = screen()
    if not found:
        print_line(console, f"{a} and {b} are the same objective.")
        return
    made = make_table("axis", a, b, show_lines=False)
    made.columns[0].no_wrap = True
    for axis, x, y in found:
        add_row(made, axis, x, y, style="dim")
    console.print(made)
