"""Print untrusted text (names, paths, errors, responses of models) without markup or escape sequences taking effect."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

# Control characters except line feed and tab, including C1, and characters that change the direction of text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text with control characters spelled out, so that escape sequences in it have no effect."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class _Status(Status):
    def update(self, status: RenderableType | None = None, **options: Any) -> None:
        super().update(None if status is None else without_markup(status), **options)


class Screen(Console):
    """A console that ignores markup, emoji codes and escape sequences in text; styles are given as ``style=``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "markup": False, "emoji": False, "highlight": False})

    def status(self, status: RenderableType, **options: Any) -> Status:
        """As in ``Console``, but text is not read as markup."""
        return _Status(without_markup(status), console=self, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Spell out control characters before the text is measured and wrapped."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render to segments; control characters in segments that did not come from text are spelled out too."""
        for segment in super().render(renderable, options):
            if segment.control or not _CONTROL.search(segment.text):
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


def without_markup(shown: RenderableType) -> RenderableType:
    """Convert a string to a ``Text``, which is not read as markup; other values are returned as they are."""
    return Text(printable(shown)) if isinstance(shown, str) else shown


def screen(console: Console | None = None, **options: Any) -> Console:
    """A console for untrusted text: a new one, or a copy of the given one that ignores markup.

    Args:
        console: of the caller; it is not changed, and the copy writes to the same file.
        **options: of ``rich.console.Console``, for a new one.
    """
    if console is None:
        return Screen(**options)
    if isinstance(console, Screen):
        return console
    made = copy.copy(console)  # the copy shares the file, the record and the locks
    made._markup = made._emoji = made._highlight = False
    if type(console) is Console:
        made.__class__ = Screen
    return made
