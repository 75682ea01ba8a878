"""The answer in a response: where it stands, and whether it equals the expected one."""

from __future__ import annotations

import functools
import re
import threading
from typing import Any

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_BOXED = "\\boxed{"
# What remains of an expression when LaTeX commands and the names of functions are taken out: no word is left in it,
# and no sign that belongs to text, dates or times.
_NAMES = re.compile(r"\\[a-zA-Z]+|\b(?:sqrt|sin|cos|tan|log|ln|exp|pi)\b")
_NOT_MATHS = re.compile(r"[a-zA-Z]{2,}|[:;?!@#&_\"']|\d-\d+-\d|[^\x00-\x7f]")
# Longer than any expression worth comparing; keeps the parser's work small where no alarm can stop it.
_LONGEST_EXPRESSION = 200
_PARSE_SECONDS = 5
# Of a wrong answer in feedback, in characters.
_LONGEST_QUOTE = 80
# Of the product of all numbers in exponents: what a tower of powers, however it is written, may multiply out to.
_LARGEST_POWER = 10_000
_POWER = re.compile(r"\^|\*\*")
# Factorials, and sums, products and binomials up to a large number: computing them takes forever.
_EXPENSIVE = re.compile(r"[\d)}\]]\s*!|\\(?:d|t)?binom|\\(?:sum|prod)|\d\s*[eE]\s*[+-]?\s*\d{5,}")


def extract_answer(text: str, boxed: bool = False) -> str:
    """The answer in a response, stripped.

    The last ``<answer>...</answer>`` wins; then, if ``boxed``, the last ``\\boxed{...}`` whose braces close; then what
    follows the last ``####``; then the whole text.
    """
    marked = marked_answer(text, boxed)
    return text.strip() if marked is None else marked


def marked_answer(text: str, boxed: bool = False) -> str | None:
    """The answer in a response, stripped, where something marks it; None where only the whole text could be meant."""
    tagged = _TAGGED.findall(text)
    if tagged:
        return str(tagged[-1]).strip()
    inside = last_boxed(text) if boxed else None
    if inside is None and "####" in text:
        inside = text.rpartition("####")[2]
    return None if inside is None else inside.strip()


def describe(text: str, correct: bool, boxed: bool = False, expected: str | None = None) -> str:
    """Feedback on a response: what came and whether it is right.

    Args:
        text: the response.
        correct: the verifier's word.
        boxed: as in :func:`extract_answer`.
        expected: told as well; None keeps it from whoever reads the feedback.
    """
    marked = marked_answer(text, boxed)
    if correct:
        said = f"got {_short(extract_answer(text, boxed))}, which is right"
    elif marked is None:
        said = "no <answer>...</answer> was found, and the whole text is not the answer"
    else:
        said = f"got {_short(marked) or 'an empty answer'}, which is not right"
    return said if expected is None else f"{said}; expected {expected}"


def _short(answer: str) -> str:
    """On one line, for a model may have written anything between its tags."""
    line = " ".join(answer.split())
    return line if len(line) <= _LONGEST_QUOTE else f"{line[: _LONGEST_QUOTE - 3]}..."


def last_boxed(text: str) -> str | None:
    """What stands in the last ``\\boxed{...}``, braces counted; None if there is none or it never closes."""
    start = text.rfind(_BOXED)
    if start < 0:
        return None
    first = start + len(_BOXED)
    depth = 1
    for i in range(first, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[first:i]
    return None


def is_mathematical(text: str) -> bool:
    """Whether an expected answer is a number or an expression, rather than a word, a letter, a date or a sentence."""
    if "\\text" in text or "\\mathrm" in text or not re.search(r"\d|\\[a-zA-Z]|[+*/^=]", text):
        return False
    return len(text) <= _LONGEST_EXPRESSION and not _NOT_MATHS.search(_NAMES.sub(" ", text))


def same_answer(expected: str, given: str) -> bool:
    """Whether two extracted answers are equal: as text after stripping, or as mathematics.

    Mathematics is compared by math-verify (``0.5`` equals ``\\frac{1}{2}``) and only where the expected answer is a
    number or an expression; words are compared letter by letter. An answer with a power of a power, exponents that
    multiply out to more than 10,000, a factorial, a binomial, a sum or a product is never equal, except as text.
    """
    expected, given = expected.strip(), given.strip()
    if expected == given:
        return True
    if not given or not is_mathematical(expected) or is_expensive(given) or is_expensive(expected):
        return False
    gold = _parse_gold(expected, _seconds())
    if not gold:
        return False
    from math_verify import verify

    return bool(verify(list(gold), _parse(given, _seconds()), timeout_seconds=_seconds()))


def is_expensive(text: str) -> bool:
    """Whether computing an expression could take forever; a model that writes one is wrong."""
    if _EXPENSIVE.search(text):
        return True
    most = 1
    for found in _POWER.finditer(text):
        exponent, behind = _exponent(text, found.end())
        if _POWER.search(exponent) or _POWER.match(behind):
            return True
        for number in re.findall(r"\d+", exponent):
            most *= max(1, int(number)) if len(number) < 6 else _LARGEST_POWER + 1
    return most > _LARGEST_POWER


def _exponent(text: str, start: int) -> tuple[str, str]:
    """The exponent that begins at a place, and what follows it."""
    text = text[start:].lstrip()
    if text[:1] not in ("{", "("):
        found = re.match(r"[+-]?(?:\d+|.)?", text, re.DOTALL)
        end = found.end() if found else 0
        return text[:end], text[end:].lstrip()
    depth = 0
    for i, sign in enumerate(text):
        depth += {"{": 1, "(": 1, "}": -1, ")": -1}.get(sign, 0)
        if depth == 0:
            return text[1:i], text[i + 1 :].lstrip()
    return text[1:], ""


def _parse(text: str, seconds: int | None) -> list[Any]:
    """Text to sympy objects; an expression is read as LaTeX, in a sentence the last expression is looked for."""
    from math_verify import parse

    text = text[-_LONGEST_EXPRESSION:]
    latex = f"${text}$" if "$" not in text and is_mathematical(text) else text
    return list(parse(latex, parsing_timeout=seconds))


@functools.lru_cache(maxsize=10_000)
def _parse_gold(text: str, seconds: int | None) -> tuple[Any, ...]:
    return tuple(_parse(text, seconds))


def _seconds() -> int | None:
    """math-verify stops itself by an alarm signal, which only the main thread may set."""
    return _PARSE_SECONDS if threading.current_thread() is threading.main_thread() else None
