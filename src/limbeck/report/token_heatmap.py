"""The sample rollouts of a report, with each token shaded by the divergence of student and teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.report.numbers import DASH, format_number, format_percent
from limbeck.report.run_data import Row, as_number

SHOWN = 1200
"""Tokens of one rollout on the page (ours); longer rollouts are cut, with a note."""

WORST = 5
"""Number of tokens in the list below each rollout."""

# Control characters are not allowed in HTML; Unicode has a symbol for each.
_PICTURES = {c: 0x2400 + c for c in range(32) if chr(c) not in "\n\t"} | {0x7F: 0x2421}


@dataclass(frozen=True)
class Token:
    """One token on the page.

    Attributes:
        text: as shown; a line break gets a visible sign, a token without text is a dot.
        heat: shade in [0, 1], or None if there is no value.
        hint: the numbers as text.
        position: 1 for the first token of the response.
        value: in nats, shown by the shade; NaN if unknown.
        student, teacher: probability of the token, as text.
        between: text of the environment before this token, between two turns.
    """

    text: str
    heat: float | None
    hint: str
    position: int
    value: float
    student: str
    teacher: str
    between: str = ""


@dataclass(frozen=True)
class ScoredSample:
    """One rollout on the page; ``worst`` are the tokens with the largest values, largest first."""

    prompt: str
    response: str
    verdict: str
    correct: bool | None
    reward: str
    answer: str | None
    mean: str
    tokens: tuple[Token, ...]
    worst: tuple[Token, ...]
    hidden: int


@dataclass(frozen=True)
class Heat:
    """All samples, shaded on one scale.

    Attributes:
        samples: the rollouts.
        what: the quantity that the shade shows, or an empty string if there is none.
        top: value in nats at which the shade is full.
    """

    samples: tuple[ScoredSample, ...]
    what: str
    top: float


def heat(samples: Sequence[Row]) -> Heat:
    """Shade the tokens of all samples on one scale, so that two rollouts can be compared.

    The shade shows the recorded ``kl``; without it, the absolute difference of the two log-probs; without a teacher,
    the student's entropy. It grows with the square root of the value, so that small divergences stay visible. It is
    full at the 98th percentile, at least 0.1 nats, so that one outlier does not make all other shades faint.
    """
    for what, read in (
        ("divergence between student and teacher", _disagreement),
        ("entropy of the student (no teacher was recorded)", lambda row: _list(row, "entropy")),
    ):
        values = [read(row) for row in samples]
        known = sorted(v for row in values for v in row if not math.isnan(v))
        if known:
            top = max(0.1, known[math.ceil(0.98 * len(known)) - 1])
            return Heat(tuple(_sample(r, v, top) for r, v in zip(samples, values, strict=True)), what, top)
    return Heat(tuple(_sample(row, [], 1.0) for row in samples), "", 1.0)


def visible(text: object) -> str:
    """Text with control characters replaced by visible symbols; line breaks and tabs stay."""
    return str(text if text is not None else "").replace("\r\n", "\n").translate(_PICTURES)


def _sample(row: Row, values: Sequence[float], top: float) -> ScoredSample:
    """One rollout with its tokens shaded."""
    written = row.get("tokens")
    texts = [str(text) for text in written] if isinstance(written, list) else []
    student, teacher, entropy = (_list(row, key) for key in ("student_logp", "teacher_logp", "entropy"))
    between = _between(row)
    tokens = tuple(
        _token(i, text, _at(values, i), top, _at(student, i), _at(teacher, i), _at(entropy, i), between.get(i, ""))
        for i, text in enumerate(texts)
    )
    known = [token for token in tokens if token.heat is not None]
    correct = row.get("correct") if isinstance(row.get("correct"), bool) else None
    return ScoredSample(
        prompt=visible(row.get("prompt")),
        response=visible(row.get("response")),
        verdict="not judged" if correct is None else "correct" if correct else "wrong",
        correct=correct,
        reward=format_number(as_number(row.get("reward"))),
        answer=None if row.get("answer") is None else visible(row["answer"]),
        mean=format_number(sum(t.value for t in known) / len(known)) if known else DASH,
        tokens=tokens[:SHOWN],
        worst=tuple(sorted((t for t in known if t.value > 0), key=lambda t: -t.value)[:WORST]),
        hidden=max(0, len(tokens) - SHOWN),
    )


def _between(row: Row) -> dict[int, str]:
    """For the first token of each turn after the first: the turn, the last reward and the environment's text."""
    turns, rewards, said = (row.get(key) for key in ("turn", "rewards", "said"))
    if not isinstance(turns, list) or not isinstance(said, list):
        return {}
    starts = [i for i in range(1, len(turns)) if turns[i] != turns[i - 1]]
    out = {}
    for i in starts:
        k = as_number(turns[i])
        last = int(k) - 2 if k is not None and 2 <= k <= len(said) + 1 else None
        earned = (
            as_number(rewards[last]) if last is not None and isinstance(rewards, list) and last < len(rewards) else None
        )
        parts = [f"turn {int(k)}" if k is not None else "next turn"]
        parts += [f"reward {format_number(earned)}"] if earned else []
        text = visible(said[last]).strip() if last is not None else ""
        out[i] = f"{', '.join(parts)}{': ' + text if text else ''}"
    return out


def _token(
    i: int, text: str, value: float, top: float, student: float, teacher: float, entropy: float, between: str
) -> Token:
    """One token with its shade and its numbers."""
    facts = [f"token {i + 1}", f"{format_number(value)} nats" if not math.isnan(value) else "not scored"]
    facts += [
        f"{who} {_chance(logp)}" for who, logp in (("student", student), ("teacher", teacher)) if not math.isnan(logp)
    ]
    facts += [f"entropy {format_number(entropy)} nats"] if not math.isnan(entropy) else []
    shade = None if math.isnan(value) else round(math.sqrt(min(max(value, 0.0) / top, 1.0)), 2)
    shown = visible(text).replace("\n", "↵\n") or "·"
    return Token(shown, shade, ", ".join(facts), i + 1, value, _chance(student), _chance(teacher), between)


def _disagreement(row: Row) -> list[float]:
    """The recorded divergence of each token; if it is missing, the absolute difference of the log-probs."""
    pairs = zip(_list(row, "student_logp"), _list(row, "teacher_logp"), strict=False)
    distance = [abs(s - t) for s, t in pairs]
    recorded = _list(row, "kl")
    return [
        _at(distance, i) if math.isnan(_at(recorded, i)) else recorded[i]
        for i in range(max(len(recorded), len(distance)))
    ]


def _list(row: Row, key: str) -> list[float]:
    """A list of floats, NaN where an entry is not a finite number; empty if the key holds no list."""
    entries = row.get(key)
    if not isinstance(entries, list):
        return []
    return [math.nan if (value := as_number(entry)) is None else value for entry in entries]


def _at(values: Sequence[float], i: int) -> float:
    """``values[i]``, or NaN beyond the end."""
    return values[i] if i < len(values) else math.nan


def _chance(logp: float) -> str:
    """A log-prob as a percentage; a dash for NaN."""
    if math.isnan(logp):
        return DASH
    chance = math.exp(min(logp, 0.0))
    return format_percent(chance) if chance >= 0.001 else f"{100 * chance:.1e}%"
