"""Templates of contexts: read from a file or a text, checked before a model is loaded, and filled with evidence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, TemplateError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ...axes.context import WRITTEN, Context
from ...errors import LimbeckError, nearest
from ...limits import rendered
from ..models.template_variables import asked_for

Evidence = dict[str, Any]
"""Facts about one sequence, by the names that ``axes.context`` lists."""

LONGEST = 1_000_000
"""Most characters of a block (ours): more take minutes to tokenize, and no model reads them."""

_SUFFIXES = (".jinja", ".jinja2", ".j2", ".txt", ".md", ".tmpl")

_JINJA = ImmutableSandboxedEnvironment(undefined=ChainableUndefined, keep_trailing_newline=True)


def fill(template: str, evidence: Mapping[str, Any], name: str) -> str:
    """The text of a filled template.

    Raises:
        LimbeckError: where the template cannot be rendered, or its text is too long.
    """
    try:
        made = _JINJA.from_string(template)
        return rendered(lambda: made.render(**evidence), LONGEST)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError, MemoryError) as e:
        raise _unrenderable(name, e) from None


def block(context: Context, known: Evidence, blocks: Mapping[str, str]) -> str | None:
    """A context's text from the evidence of a sequence; None where required evidence is missing or the text is empty.

    Args:
        context: the names of its evidence, and its template.
        known: evidence by name.
        blocks: templates that replace those of contexts, by name.
    """
    # A verdict is evidence even if it is false.
    there = [name in ("correct", "reward", "turns") or bool(known.get(name)) for name in context.reads]
    if there and not (all(there) if context.enough == "all" else any(there)):
        return None
    template = blocks.get(context.name, context.block)
    text = fill(template, known, context.name)
    return text if text.strip() or not template.strip() else None


def read_template(name: str, text: str) -> str:
    """The template that the setting ``contexts.NAME`` holds: a file where there is one of that name, else the text.

    Raises:
        LimbeckError: an empty template, a file that is missing or cannot be read.
    """
    named = len(text) < 200 and "{" not in text and not any(c.isspace() for c in text.strip())
    path = Path(text).expanduser() if named else None
    if path is not None and path.is_dir():
        raise LimbeckError(f"contexts.{name}={text!r} is a folder; give a Jinja file, or the text itself.")
    if path is not None and path.is_file():
        try:
            template = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as e:
            raise LimbeckError(
                f"contexts.{name}={text!r}: it cannot be read ({e}); give a Jinja file in UTF-8."
            ) from None
    elif path is not None and (path.suffix in _SUFFIXES or "/" in text):
        raise LimbeckError(f"contexts.{name}={text!r}: there is no such file; give a Jinja file, or the text itself.")
    else:
        template = text
    if not template.strip():
        raise LimbeckError(
            f"contexts.{name} is empty, so the teacher would see only what the student sees; give a Jinja file or a "
            "text."
        )
    return template


def check_names(contexts: Iterable[Context], given: Mapping[str, str], method: str) -> None:
    """Refuse a setting ``contexts.NAME`` for a context that the method does not use.

    Raises:
        LimbeckError: with the nearest name.
    """
    used = sorted({c.name for c in contexts if c.block})
    for name in given:
        if name not in used:
            uses = f"it uses {', '.join(used)}" if used else "it uses no context"
            raise LimbeckError(
                f"contexts.{name}: {method} has no such context{nearest(name, used)}; {uses}, so leave it out."
            )


def check_template(context: Context, template: str, problem: Callable[[], Collection[str]]) -> None:
    """Refuse a template with the name of unknown evidence, which would be empty on every sequence.

    Args:
        context: that the template belongs to.
        template: its own, or the one that the settings give.
        problem: returns the names of the problem's own evidence; called only if it is needed.

    Raises:
        LimbeckError: with the nearest name, or where it is no template.
    """
    always = {"id", "prompt", "solution", *WRITTEN, *context.reads, *(ask.name for ask in context.questions)}
    for unknown in sorted(_named(template, context.name) - always):
        if unknown not in problem():
            known = {*always, *problem()}
            raise LimbeckError(
                f"the template of context {context.name!r} names {unknown!r}{nearest(unknown, known)}, which is not "
                f"known of a sequence; use some of {', '.join(sorted(known))}, or let the task give it as privileged "
                "text."
            )


def check_says_something(context: Context, template: str) -> None:
    """Refuse a template whose text is empty for all evidence.

    Raises:
        LimbeckError: naming the context.
    """
    for verdict in (True, False):
        known = dict.fromkeys([*_named(template, context.name), *context.reads], "x") | {"correct": verdict}
        if fill(template, known, context.name).strip():
            return
    raise LimbeckError(
        f"contexts.{context.name} renders to an empty text for all evidence, so the teacher would see only what the "
        "student sees; fix the template."
    )


def says_the_same(context: Context, template: str) -> bool:
    """Whether a template has the same text for every problem."""
    return bool(template.strip()) and not _named(template, context.name)


def _named(template: str, name: str) -> set[str]:
    try:
        tree = _JINJA.parse(template)
        return set(meta.find_undeclared_variables(tree)) - _guarded(tree)
    except (TemplateError, RecursionError) as e:
        raise _unrenderable(name, e) from None


def _guarded(tree: nodes.Template) -> set[str]:
    """Names that a template allows to be absent (``default``, ``is defined``), or sets itself."""
    own = {n.name for n in tree.find_all(nodes.Name) if n.ctx in ("store", "param")}
    return own | asked_for(tree)


def _unrenderable(name: str, e: Exception) -> LimbeckError:
    first = next(iter(str(e).strip().splitlines()), "")
    return LimbeckError(
        f"the template of context {name!r} cannot be rendered ({type(e).__name__}: {first}); fix it in "
        f"contexts.{name}, or leave that out for the default."
    )
