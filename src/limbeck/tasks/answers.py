"""Extract the answer from a response and compare it with the expected answer."""

from __future__ import annotations

import functools
import re
import threading
from typing import Any

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_BOXED = "\\boxed{"
# Signs that a text is not mathematics, once LaTeX commands and names of functions are removed: words, and characters
# of sentences, dates or times.
_NAMES = re.compile(r"\\[a-zA-Z]+|\b(?:sqrt|sin|cos|tan|log|ln|exp|pi)\b")
_NOT_MATHS = re.compile(r"[a-zA-Z]{2,}|[:;?!@#&_\"']|\d-\d+-\d|[^\x00-\x7f]")
# Longer texts are not compared as mathematics, which bounds the parser's work where no alarm can stop it.
_LONGEST_EXPRESSION = 200
_PARSE_SECONDS = 5
# Characters of a wrong answer that feedback quotes.
_LONGEST_QUOTE = 80
# Limit of the product of all numbers in exponents, which bounds towers of powers in any notation.
_LARGEST_POWER = 10_000
_POWER = re.compile(r"\^|\*\*")
# Factorials, sums, products, binomials and huge exponents, which can take forever to compute.
_EXPENSIVE = re.compile(r"[\d)}\]]\s*!|\\(?:d|t)?binom|\\(?:sum|prod)|\d\s*[eE]\s*[+-]?\s*\d{5,}")


def extract_answer(text: str, boxed: bool = False) -> str:
    """The answer in a response, stripped.

    The last ``<answer>...</answer>`` is taken; without one, if ``boxed``, the last ``\\boxed{...}`` whose braces close;
    else the text after the last ``####``; else the whole text.
    """
    marked = marked_answer(text, boxed)
    return text.strip() if marked is None else marked


def marked_answer(text: str, boxed: bool = False) -> str | None:
    """The answer in a response, stripped, if a tag, a box or ``####`` marks it; else None."""
    tagged = _TAGGED.findall(text)
    if tagged:
        return str(tagged[-1]).strip()
    inside = last_boxed(text) if boxed else None
    if inside is None and "####" in text:
        inside = text.rpartition("####")[2]
    return None if inside is None else inside.strip()


def describe(text: str, correct: bool, boxed: bool = False, expected: str | None = None) -> str:
    """Feedback on a response: its answer, and whether that is right.

    Args:
        text: the response.
        correct: the verdict.
        boxed: as in :func:`extract_answer`.
        expected: the expected answer, to be included; None leaves it out.
    """
    marked = marked_answer(text, boxed)
    if correct:
        feedback = f"got {_short(extract_answer(text, boxed))}, which is right"
    elif marked is None:
        feedback = "no <answer>...</answer> was found, and the whole text is not the answer"
    else:
        feedback = f"got {_short(marked) or 'an empty answer'}, which is not right"
    return feedback if expected is None else f"{feedback}; expected {expected}"


def _short(answer: str) -> str:
    """The answer on one line, shortened, because a model may write any text between the tags."""
    line = " ".join(answer.split())
    return line if len(line) <= _LONGEST_QUOTE else f"{line[: _LONGEST_QUOTE - 3]}..."


def last_boxed(text: str) -> str | None:
    """The content of the last ``\\boxed{...}``, with balanced braces; None if there is none or it never closes."""
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
    """Whether computing an expression could take very long; such an answer counts as wrong."""
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
    """The exponent that begins at position ``start``, and the text after it."""
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
    """Parse a text into sympy objects: an expression as LaTeX, or the last expression of a sentence."""
    from math_verify import parse

    text = text[-_LONGEST_EXPRESSION:]
    latex = f"${text}$" if "$" not in text and is_mathematical(text) else text
    return list(parse(latex, parsing_timeout=seconds))


@functools.lru_cache(maxsize=10_000)
def _parse_gold(text: str, seconds: int | None) -> tuple[Any, ...]:
    return tuple(_parse(text, seconds))


def _seconds() -> int | None:
    """Time limit for math-verify, which uses an alarm signal; None outside the main thread, which cannot set one."""
    return _PARSE_SECONDS if threading.current_thread() is threading.main_thread() else None
