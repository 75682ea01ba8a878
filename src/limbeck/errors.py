"""The one exception a user's mistake raises."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping


class LimbeckError(ValueError):
    """A user's mistake, told in one sentence that names the field, the value and the remedy.

    The command line prints the sentence without a traceback and exits with status 2.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest known name, or an empty string."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "none"}


def refuse_wrong_types(name: str, function: Callable[..., object], arguments: Mapping[str, object]) -> None:
    """Raise where an argument is not of a type that the function's annotations allow (a whole number is a number).

    Raises:
        LimbeckError: naming the argument, its value and its default.
    """
    hints, parameters = typing.get_type_hints(function), inspect.signature(function).parameters
    for key, value in arguments.items():
        kinds = typing.get_args(hints[key]) or (hints[key],)
        number = isinstance(value, int) and not isinstance(value, bool) and float in kinds
        if not number and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            names = " or ".join(_KINDS.get(kind, kind.__name__) for kind in kinds)
            raise LimbeckError(f"{name}: {key}={value!r} is not {names}; its default is {parameters[key].default}.")
