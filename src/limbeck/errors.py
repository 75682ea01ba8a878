"""The exception for mistakes of users, and checks of values that raise it."""

from __future__ import annotations

import difflib
import errno
import inspect
import math
import numbers
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping


class LimbeckError(ValueError):
    """A mistake of the user. The message is one sentence that names the field, the value and the remedy.

    The command line prints the message without a traceback and exits with status 2. Very long words in the message,
    which come from names or values that were given, are shortened.
    """

    def __init__(self, sentence: object = "", *further: object) -> None:
        super().__init__(clipped(str(sentence)), *further)


_LONGEST_WORD, _LONGEST_SENTENCE = 1000, 6000
_LONG = re.compile(rf"\S{{{_LONGEST_WORD},}}")


def clipped(text: str) -> str:
    """The text, with the middle of very long words removed, and the middle of a very long text."""
    text = _LONG.sub(lambda found: f"{found[0][:60]}...{found[0][-20:]}", text)
    if len(text) > _LONGEST_SENTENCE:
        text = f"{text[: _LONGEST_SENTENCE // 2]} ... {text[-_LONGEST_SENTENCE // 2 :]}"
    return text


def quoted(text: object) -> str:
    """The ``repr`` of a name for a message, shortened to 80 characters."""
    whole = repr(text)
    return whole if len(whole) <= 80 else f"{whole[:77]}..."


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk (or quota) caused an error; libraries in C++ and Rust report it only in the message."""
    while error is not None:
        full, text = (errno.ENOSPC, errno.EDQUOT), str(error)
        if isinstance(error, OSError) and error.errno in full:
            return True
        # safetensors gives the system's error as text only: "No space left on device (os error 28)".
        if "No space left on device" in text or any(f"(os error {n})" in text for n in full):
            return True
        error = error.__cause__ or error.__context__
    return False


_ALIKE = 0.65
"""Similarity of two words (``difflib``) from which one is suggested for the other (ours): two letters of three."""


def nearest(word: object, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` with the closest known name, or an empty string if none is close."""
    if not isinstance(word, str) or len(word) > 100:
        return ""
    names = list(known)
    longer = [name for name in names if word.startswith(f"{name}_")]  # prompt_column for prompt
    match = difflib.get_close_matches(word, names, n=1, cutoff=_ALIKE) or sorted(longer, key=len)[-1:]
    return f" (did you mean {match[0]!r}?)" if match else ""


def shown(value: object) -> str:
    """A value for a message: its ``repr`` if that is short, else its type."""
    if inspect.isfunction(value) or inspect.isclass(value):
        return f"the {'function' if inspect.isfunction(value) else 'class'} {value.__name__}"
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"a {type(value).__name__}"


def expect(what: str, value: object, kinds: type | tuple[type, ...], remedy: str) -> None:
    """Raise if a value is not of one of these types; ``remedy`` says what to give.

    Raises:
        LimbeckError: naming the value and the remedy.
    """
    if not isinstance(value, kinds):
        raise LimbeckError(f"{what} is {shown(value)}; {remedy}.")


def number(what: str, value: object, low: float = -math.inf, high: float = math.inf, ends: bool = False) -> None:
    """Raise if a value is not a number between two bounds.

    Args:
        what: name of the value in the message.
        value: to be checked.
        low, high: the bounds.
        ends: whether the bounds themselves are allowed, including infinite ones.
    """
    try:
        x = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # a whole number of hundreds of digits
        x = math.inf
    if not (low <= x <= high if ends else low < x < high):
        infinite = math.isinf(low) or math.isinf(high)
        bounds = "" if infinite else f" between {low:g} and {high:g}"
        bounds = f" {'of at least' if ends else 'above'} {low:g}" if high == math.inf and low > -math.inf else bounds
        raise LimbeckError(f"{what} is {shown(value)}; give a {'' if ends and infinite else 'finite '}number{bounds}.")


LARGEST = 10**15
"""Largest whole number (ours): up to here, every file format of a run stores whole numbers exactly."""


def whole(what: str, value: object, low: int, high: int = LARGEST) -> None:
    """Raise if a value is not a whole number of at least ``low`` and at most ``high``."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < low:
        raise LimbeckError(f"{what} is {shown(value)}; give a whole number of at least {low}.")
    if int(value) > high:
        huge = value if int(value) <= LARGEST else "a whole number of more than 15 digits"
        raise LimbeckError(f"{what} is {huge}; give at most {high:,}.")


_KINDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "none",
    tuple: "a list",
    list: "a list",
}


def _kinds(hint: object) -> tuple[type, ...]:
    """The classes of an annotation; a list is accepted for a tuple, because TOML and JSON have only lists."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kinds = [typing.get_origin(part) or part for part in parts]
    known = tuple(k for kind in kinds for k in ((tuple, list) if kind is tuple else (kind,)) if isinstance(k, type))
    return known or (object,)


def _hints(function: Callable[..., object]) -> dict[str, object]:
    """The annotations of a function; empty if they name types that are only imported for type checkers."""
    try:
        return dict(typing.get_type_hints(function))
    except (NameError, TypeError, AttributeError):
        return {}


def refuse_wrong_types(name: str, function: Callable[..., object], arguments: Mapping[str, object]) -> None:
    """Raise if an argument is not of a type that the function's annotations allow (a whole number is also a number).

    Raises:
        LimbeckError: naming the argument, its value and its default.
    """
    hints, parameters = _hints(function), inspect.signature(function).parameters
    for key, value in arguments.items():
        kinds = _kinds(hints.get(key, object))
        number = isinstance(value, int) and not isinstance(value, bool) and float in kinds
        if not number and (not isinstance(value, kinds) or (isinstance(value, bool) and not {bool, object} & {*kinds})):
            names = " or ".join(dict.fromkeys(_KINDS.get(kind, kind.__name__) for kind in kinds))
            default = parameters[key].default
            remedy = f"give {names}" if default is inspect.Parameter.empty else f"its default is {default}"
            raise LimbeckError(f"{name}: {key}={shown(value)} is not {names}; {remedy}.")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise LimbeckError(f"{name}: {key} is a whole number of more than 15 digits; give a smaller number.")
