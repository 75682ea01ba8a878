"""What a task is: prompts with a verifier, written responses or an environment to act in, where it has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np

from ..errors import LimbeckError, shown
from ..limits import VERIFY_SECONDS, OutOfTime, within_seconds
from ..types import Prompt, text_of


def found(path: str | Path, kind: Literal["file", "folder"]) -> Path | None:
    """The path with ``~`` expanded where such a file or folder is there; what no file system can name is not there."""
    try:
        there = Path(path).expanduser()
        return there if (there.is_file() if kind == "file" else there.is_dir()) else None
    except (OSError, RuntimeError, ValueError):  # a name too long, an unknown user, a zero byte
        return None


def half_character(text: str) -> str | None:
    """The first lone surrogate of a text: half a character, which no tokenizer reads and no file holds."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start]
    return None


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one response.

    Attributes:
        reward: reward units, finite; usually 0 to 1.
        correct: whether the answer is right (masks are keyed on this, not on the reward).
        feedback: text a student may be told and a teacher may read: what came and what is wrong with it. It does not
            hold the expected answer unless the task's option ``reveal`` is set. None where there is nothing to say.
    """

    reward: float
    correct: bool
    feedback: str | None = None


class Unjudged(Exception):
    """A verifier said nothing of a response: it raised, took too long, or returned None.

    Attributes:
        reason: one clause for the log.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


MOST_REWARD = 1e30
"""Absolute value from which float32 statistics of a reward are infinite."""


def judged(task: Task, prompt: Prompt, text: str, seconds: float = VERIFY_SECONDS) -> Verdict:
    """A task's verdict on a response, checked.

    Args:
        task: serves ``reward``.
        prompt: of the task.
        text: the response.
        seconds: that the verifier may take.

    Raises:
        Unjudged: the verifier raised, took too long, or gave no reward (None).
        LimbeckError: it gave something that is no verdict, or the task itself refuses.
    """
    try:
        said: object = within_seconds(seconds, lambda: task.verify(prompt, text))
    except (LimbeckError, Unjudged):
        raise
    except (Exception, SystemExit, OutOfTime) as e:  # whatever foreign code does costs its response and no more
        raise Unjudged(reason_of(e)) from None
    return _checked(task, prompt, text, said)


def judged_all(
    task: Task, prompts: Sequence[Prompt], texts: Sequence[str], seconds: float = VERIFY_SECONDS
) -> list[Verdict | Unjudged]:
    """A task's verdicts on several responses, each checked, and ``Unjudged`` in place of those it did not give.

    A task with ``verify_all(prompts, texts, seconds)`` (:class:`~limbeck.tasks.DatasetTask`) gets all of them at once;
    of any other, ``verify`` is called for each.

    Args:
        task: serves ``reward``.
        prompts: of the task, one for each response.
        texts: the responses.
        seconds: that the verifier may take for one response.

    Raises:
        LimbeckError: something that is no verdict, or the task itself refuses.
    """
    several = getattr(task, "verify_all", None)
    if several is None:
        return [_or_unjudged(partial(judged, task, p, t, seconds)) for p, t in zip(prompts, texts, strict=True)]
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
    """Why foreign code gave nothing, as one clause for the log."""
    if isinstance(e, OutOfTime):
        return f"it {e}"
    first = str(e).strip().split("\n")[0][:200]
    return f"{type(e).__name__}: {first}" if first else type(e).__name__


def _checked(task: Task, prompt: Prompt, text: str, said: object) -> Verdict:
    """What a verifier gave, as a verdict.

    Raises:
        Unjudged: it gave no reward (None).
        LimbeckError: it gave something that is no verdict.
    """
    if said is None or (isinstance(said, Verdict) and said.reward is None):
        raise Unjudged("it returned None")
    wrong = _wrong(said)
    if wrong:
        raise LimbeckError(
            f"the verifier of {shown(task.name)} {wrong} to a response to prompt {shown(prompt.id)} "
            f"({text[:60]!r}); have it return Verdict(reward, correct), with a finite number and true or false, or "
            "None where it cannot judge."
        )
    assert isinstance(said, Verdict)
    return Verdict(float(said.reward), bool(said.correct), said.feedback)


def bounded(reward: Any) -> bool:
    """Whether a reward is a number that training can compute with; compared as it is, because 10**400 is no float."""
    return bool(-MOST_REWARD < reward < MOST_REWARD)


def _wrong(said: object) -> str:
    """What keeps something from being a verdict, as a clause; empty where nothing does."""
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
    """A response that the task's data holds.

    Attributes:
        text: the assistant's text.
        label: NaN for a plain demonstration; 1 and 0 for the chosen and the rejected one of a pair.
        further: what else the assistant's message holds (``tool_calls``, ``reasoning_content``), and ``content`` where
            that is null or a list of parts.
    """

    text: str
    label: float = float("nan")
    further: Mapping[str, Any] = field(default_factory=dict)

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message, as a chat template reads it."""
        return {"role": "assistant", "content": self.text, **self.further}

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Response:
        """The demonstration that an assistant's message is."""
        content = message.get("content")
        further = {k: v for k, v in message.items() if k not in ("role", "content")}
        return cls(text_of(message), further=further if isinstance(content, str) else {"content": content, **further})


@dataclass(frozen=True)
class Observation:
    """What an environment says after an action.

    Attributes:
        text: appended to the conversation as a message of ``role``; not appended where ``done``.
        done: the episode is over.
        reward: reward units for the action just taken, finite.
        correct: whether the goal has been reached.
        feedback: what was wrong with the action, or None.
        role: of the message, ``"user"`` unless the student's chat template knows a better one.
    """

    text: str
    done: bool = False
    reward: float = 0.0
    correct: bool = False
    feedback: str | None = None
    role: str = "user"


class EpisodeDied(Exception):
    """An episode broke off through no fault of the run: its environment hung, crashed or gave no finite reward.

    Whoever plays ends that one episode (reward 0, not correct) and goes on with the others.

    Attributes:
        reason: one clause for the log, for instance ``"a step took longer than 10 s"``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Episode(Protocol):
    """One conversation with an environment: a deterministic function of the prompt and the actions."""

    def step(self, text: str) -> Observation:
        """Act with the assistant's whole turn.

        Raises:
            EpisodeDied: the environment broke.
            RuntimeError: the episode is already over.
        """
        ...

    def close(self) -> None:
        """Give back what the episode holds. May be called at any time and more than once."""
        ...


class Task(Protocol):
    """Prompts of two disjoint splits and what can be done with them.

    Attributes:
        name: how users and reports call it.
        serves: what it offers besides prompts, a subset of ``{"reward", "feedback", "responses", "pairs",
            "episodes", "expert"}``. With ``"feedback"``, verdicts or observations carry feedback; with
            ``"episodes"``, the task is an :class:`Environment`, and ``"reward"`` is then what its observations hold;
            with ``"expert"``, it also has :meth:`Environment.expert`.
        train, test: prompts; no prompt of ``test`` occurs in ``train``.
    """

    name: str
    serves: frozenset[str]
    train: Sequence[Prompt]
    test: Sequence[Prompt]

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """Judge a response. Only called where ``"reward" in serves`` and ``"episodes"`` is not.

        None says that it cannot be judged: the response is then left out of the batch, as where this raises.
        """
        ...

    def responses(self, prompt: Prompt) -> tuple[Response, ...]:
        """Written responses, best first: one demonstration, or a pair (chosen, rejected)."""
        ...


class Environment(Task, Protocol):
    """A task that is played in turns. ``prompt.messages`` already holds the instructions and the first observation.

    ``verify`` judges a single response where that means something, and refuses otherwise (:class:`Turns`).
    """

    def open(self, prompt: Prompt) -> Episode:
        """A fresh episode. Only called where ``"episodes" in serves``.

        Raises:
            EpisodeDied: the environment could not be started.
        """
        ...

    def expert(self, prompt: Prompt) -> tuple[str, ...]:
        """The assistant's turns that reach the goal. Only called where ``"expert" in serves``."""
        ...


class Turns:
    """What an environment without single responses says to those who ask for them.

    Attributes:
        name: of the task.
    """

    name: str

    def verify(self, prompt: Prompt, text: str) -> Verdict:  # noqa: ARG002
        """Refuse: one response is not an episode.

        Raises:
            LimbeckError: always.
        """
        raise LimbeckError(f"task {self.name!r} is played in turns and has no verdict on one text: use open(prompt).")

    def responses(self, prompt: Prompt) -> tuple[Response, ...]:  # noqa: ARG002
        """Nothing."""
        return ()


def open_episode(task: Task, prompt: Prompt) -> Episode:
    """A fresh episode of a task that serves them.

    Raises:
        LimbeckError: it does not.
        EpisodeDied: the environment could not be started.
    """
    if "episodes" not in task.serves:
        raise LimbeckError(
            f"task {task.name!r} serves no episodes: give an environment, or wrap it as limbeck.tasks.Retry(task)."
        )
    return cast(Environment, task).open(prompt)


def refuse_if_over(over: bool) -> None:
    """What every episode says to an action after its end: the caller ignored ``done``."""
    if over:
        raise RuntimeError("the episode is over: open another one")


LARGEST_COUNT = 10_000_000
"""Of problems, turns and the like: their order is held in memory, and a file of as many is none that we make."""


def whole_number(task: str, field: str, value: object, least: int) -> int:
    """The value of an option that counts something.

    Raises:
        LimbeckError: not a whole number of at least ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise LimbeckError(f"{field} of task {task!r} is {shown(value)}, give a whole number of at least {least}.")
    if field != "seed" and value > LARGEST_COUNT:
        raise LimbeckError(f"{field} of task {task!r} is {value:,}, give at most {LARGEST_COUNT:,}.")
    return value


def yes_or_no(task: str, field: str, value: object) -> bool:
    """The value of an option that is on or off.

    Raises:
        LimbeckError: neither true nor false.
    """
    if not isinstance(value, bool):
        raise LimbeckError(f"{field} of task {task!r} is {shown(value)}, give true or false.")
    return value
