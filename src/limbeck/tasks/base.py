"""The interface of a task: prompts, and optionally a verifier, written responses or an environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from ..errors import LARGEST, LimbeckError, expect, shown, whole
from ..limits import VERIFY_SECONDS, OutOfTime, within_seconds
from ..types import Prompt, text_of
from ..user_files import place_of


def found(path: str | Path, kind: Literal["file", "folder"]) -> Path | None:
    """The path with ``~`` expanded if it is an existing file or folder, else None; impossible names give None."""
    try:
        there = Path(path).expanduser()
        return there if (there.is_file() if kind == "file" else there.is_dir()) else None
    except (OSError, RuntimeError, ValueError):  # the name is too long, the user is unknown, or it has a zero byte
        return None


def half_character(text: str) -> str | None:
    """The first lone surrogate of a text (half a character, which UTF-8 cannot encode), or None."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start]
    return None


@dataclass(frozen=True)
class Verdict:
    """The judgement of a verifier on one response.

    Attributes:
        reward: reward units, finite; usually 0 to 1.
        correct: whether the answer is right (masks are keyed on this, not on the reward).
        feedback: text that a student or a teacher may be shown: what the answer was and what is wrong with it. It
            contains the expected answer only if the task's option ``reveal`` is set. None if there is no feedback.
    """

    reward: float
    correct: bool
    feedback: str | None = None


class Unjudged(Exception):
    """A verifier gave no verdict on a response: it raised, took too long, or returned None.

    Attributes:
        reason: one clause for the log.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


MOST_REWARD = 1e30
"""Largest absolute value of a reward (ours): float32 statistics of larger ones are infinite."""


def judge_response(task: Task, prompt: Prompt, text: str, seconds: float = VERIFY_SECONDS) -> Verdict:
    """Judge a response with a task's verifier, and check the verdict.

    Args:
        task: serves ``reward``.
        prompt: of the task.
        text: the response.
        seconds: time limit of the verifier.

    Raises:
        Unjudged: the verifier raised, took too long, or gave no reward (None).
        LimbeckError: it returned something other than a verdict, or the task itself refuses.
    """
    try:
        said: object = within_seconds(seconds, lambda: task.verify(prompt, text))
    except (LimbeckError, Unjudged):
        raise
    except (Exception, SystemExit, OutOfTime) as e:  # an exception in user code leaves out this response only
        raise Unjudged(reason_of(e)) from None
    return _checked(task, prompt, text, said)


def judge_responses(
    task: Task, prompts: Sequence[Prompt], texts: Sequence[str], seconds: float = VERIFY_SECONDS
) -> list[Verdict | Unjudged]:
    """Judge several responses with a task's verifier; a response without a verdict gets ``Unjudged``.

    If the task has ``verify_all(prompts, texts, seconds)`` (:class:`~limbeck.tasks.DatasetTask`), it is called once
    with all responses; otherwise ``verify`` is called for each.

    Args:
        task: serves ``reward``.
        prompts: of the task, one for each response.
        texts: the responses.
        seconds: time limit of the verifier for one response.

    Raises:
        LimbeckError: a verdict has the wrong form, or the task itself refuses.
    """
    several = getattr(task, "verify_all", None)
    if several is None:
        return [_or_unjudged(partial(judge_response, task, p, t, seconds)) for p, t in zip(prompts, texts, strict=True)]
    said = several(prompts, texts, seconds)
    return [
        s if isinstance(s, Unjudged) else _or_unjudged(partial(_checked, task, p, t, s))
        for p, t, s in zip(prompts, texts, said, strict=True)
    ]


def _or_unjudged(call: Callable[[], Verdict]) -> Verdict | Unjudged:
    try:
        return call()
    except Unjudged as e:
        return e


def reason_of(e: BaseException) -> str:
    """Why user code failed, as one clause for the log, with its file and line where they are known."""
    if isinstance(e, OutOfTime):
        return f"it {e}"
    first = str(e).strip().split("\n")[0][:200]
    said = f"{type(e).__name__}: {first}" if first else type(e).__name__
    place = place_of(e)
    return f"{place}: {said}" if place else said


def _checked(task: Task, prompt: Prompt, text: str, said: object) -> Verdict:
    """Check the return value of a verifier.

    Raises:
        Unjudged: it has no reward (None).
        LimbeckError: it is not a verdict.
    """
    if said is None or (isinstance(said, Verdict) and said.reward is None):
        raise Unjudged("it returned None")
    wrong = fault_of(said)
    if wrong:
        raise LimbeckError(
            f"the verifier of {shown(task.name)} {wrong} to a response to prompt {shown(prompt.id)} "
            f"({text[:60]!r}); have it return Verdict(reward, correct), with a finite number and true or false, or "
            "None if it cannot judge."
        )
    assert isinstance(said, Verdict)
    return Verdict(float(said.reward), bool(said.correct), said.feedback)


def bounded(reward: Any) -> bool:
    """Whether a reward is below ``MOST_REWARD`` in absolute value; it may be an integer too large for a float."""
    return bool(-MOST_REWARD < reward < MOST_REWARD)


def fault_of(said: object) -> str:
    """A clause that says why something is not a valid verdict; empty if it is one."""
    if not isinstance(said, Verdict):
        return f"gave {shown(said)}"
    reward: object = said.reward
    if not isinstance(reward, Real) or not bounded(reward):
        return f"gave reward {shown(reward)}"
    if not isinstance(said.correct, bool | np.bool_):
        return f"gave correct={shown(said.correct)}"
    feedback: object = said.feedback
    if feedback is not None and (not isinstance(feedback, str) or half_character(feedback) is not None):
        return f"gave feedback {shown(feedback)}"
    return ""


@dataclass(frozen=True)
class Response:
    """A response in the task's data: a demonstration or half of a pair.

    Attributes:
        text: the assistant's text.
        label: NaN for a demonstration; 1 and 0 for the chosen and the rejected response of a pair.
        further: other keys of the assistant's message (``tool_calls``, ``reasoning_content``), and ``content`` if
            that is null or a list of parts.
    """

    text: str
    label: float = float("nan")
    further: Mapping[str, Any] = field(default_factory=dict)

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message, in the form that a chat template takes."""
        return {"role": "assistant", "content": self.text, **self.further}

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Response:
        """A demonstration from an assistant's message."""
        content = message.get("content")
        further = {k: v for k, v in message.items() if k not in ("role", "content")}
        return cls(text_of(message), further=further if isinstance(content, str) else {"content": content, **further})


@dataclass(frozen=True)
class Observation:
    """The reply of an environment to an action.

    Attributes:
        text: appended to the conversation as a message of ``role``, unless ``done``.
        done: the episode is over.
        reward: reward units for the action just taken, finite.
        correct: whether the goal has been reached.
        feedback: text that says what was wrong with the action, or None.
        role: of the message; ``"user"`` works with every chat template.
    """

    text: str
    done: bool = False
    reward: float = 0.0
    correct: bool = False
    feedback: str | None = None
    role: str = "user"


class EpisodeDied(Exception):
    """The environment of an episode failed: it hung, crashed or gave a reward that is not finite.

    The engine ends this episode (reward 0, not correct) and continues with the others.

    Attributes:
        reason: one clause for the log, for instance ``"a step took longer than 10 s"``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Episode(Protocol):
    """One conversation with an environment; the replies must depend on the prompt and the actions alone."""

    def step(self, text: str) -> Observation:
        """Take the assistant's whole turn as an action, and return the reply.

        Raises:
            EpisodeDied: the environment failed.
            RuntimeError: the episode is already over.
        """
        ...

    def close(self) -> None:
        """Release what the episode holds. May be called at any time and more than once."""
        ...


class Task(Protocol):
    """Prompts in two disjoint splits, with the services that the task provides for them.

    Attributes:
        name: used in reports and messages.
        serves: what the task provides in addition to prompts, a subset of ``{"reward", "feedback", "responses",
            "pairs", "episodes"}``. With ``"feedback"``, verdicts or observations carry feedback. With ``"episodes"``,
            the task is an :class:`Environment`, and its rewards are those of its observations.
        train, test: prompts; no prompt of ``test`` occurs in ``train``.
    """

    name: str
    serves: frozenset[str]
    train: Sequence[Prompt]
    test: Sequence[Prompt]

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """Judge a response. Only called if ``"reward"`` is in ``serves`` and ``"episodes"`` is not.

        Return None if the response cannot be judged; it is then left out of the batch, as if this raised.
        """
        ...

    def responses(self, prompt: Prompt) -> tuple[Response, ...]:
        """The responses in the data: one demonstration, or a pair (chosen, rejected), or nothing."""
        ...


class Environment(Task, Protocol):
    """A task in several turns. ``prompt.messages`` contains the instructions and the first observation.

    ``verify`` judges a single response if the task defines that, and refuses otherwise (:class:`Turns`).
    """

    def open(self, prompt: Prompt) -> Episode:
        """Start an episode. Only called if ``"episodes"`` is in ``serves``.

        Raises:
            EpisodeDied: the environment could not be started.
        """
        ...


class Turns:
    """Base class of environments that have no verdict on a single response and no written responses.

    Attributes:
        name: of the task.
    """

    name: str

    def verify(self, prompt: Prompt, text: str) -> Verdict:  # noqa: ARG002
        """Refuse, because one response is not an episode.

        Raises:
            LimbeckError: always.
        """
        raise LimbeckError(f"task {self.name!r} is played in turns and has no verdict on one text; use open(prompt).")

    def responses(self, prompt: Prompt) -> tuple[Response, ...]:  # noqa: ARG002
        """Return nothing."""
        return ()


def refuse_if_over(over: bool) -> None:
    """Raise RuntimeError if an episode is over: the caller has ignored ``done``."""
    if over:
        raise RuntimeError("the episode is over; open another one")


LARGEST_COUNT = 10_000_000
"""Upper limit of options that count problems or turns (ours): an order of so many fits into memory."""


def whole_number(task: str, field: str, value: Any, least: int) -> int:
    """Check and return an option that counts something, or a seed.

    Raises:
        LimbeckError: the value is not a whole number of at least ``least``, or too large.
    """
    whole(f"{field} of task {task!r}", value, least, LARGEST if field == "seed" else LARGEST_COUNT)
    return int(value)


def yes_or_no(task: str, field: str, value: Any) -> bool:
    """Check and return an option that is true or false.

    Raises:
        LimbeckError: the value is neither true nor false.
    """
    expect(f"{field} of task {task!r}", value, bool, "give true or false")
    return bool(value)
