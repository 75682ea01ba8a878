"""Printing foreign text: names, paths, errors and what models wrote are shown as they are, never obeyed."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

# Control characters but line feed and tab, with the C1 ones, and what turns the direction of a line round.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text with control characters spelled out: an escape sequence in it moves no cursor and sets no colour."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class _Status(Status):
    def update(self, status: RenderableType | None = None, **options: Any) -> None:
        super().update(None if status is None else without_markup(status), **options)


class Screen(Console):
    """A console that reads no markup, emoji codes or escape sequences in text; styles are given as ``style=``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "markup": False, "emoji": False, "highlight": False})

    def status(self, status: RenderableType, **options: Any) -> Status:
        """As in ``Console``; a text is no markup."""
        return _Status(without_markup(status), console=self, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """A text as it is; spelled out here, it is measured and wrapped as it is shown."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is to be written; control characters that came in another way than as a text are spelled out too."""
        for segment in super().render(renderable, options):
            if segment.control or not _CONTROL.search(segment.text):
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


def without_markup(shown: RenderableType) -> RenderableType:
    """A text as one that holds no markup; anything else is itself."""
    return Text(printable(shown)) if isinstance(shown, str) else shown


def screen(console: Console | None = None, **options: Any) -> Console:
    """A console for foreign text: a new one, or the given one as one that reads no markup.

    Args:
        console: of the caller, who finds there what is written; left as it is.
        **options: of ``rich.console.Console``, for a new one.
    """
    if console is None:
        return Screen(**options)
    if isinstance(console, Screen):
        return console
    made = copy.copy(console)  # it shares the file, the record and the locks
    made._markup = made._emoji = made._highlight = False
    if type(console) is Console:
        made.__class__ = Screen
    return made
