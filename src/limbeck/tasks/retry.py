"""Retry: turn any task that verifies single responses into several attempts with feedback."""

from __future__ import annotations

import string
from collections.abc import Sequence

from ..errors import LimbeckError
from ..types import Prompt
from .base import Observation, Response, Task, Verdict, judge_response, refuse_if_over, whole_number

_DEFAULT = "that is not right"


class Retry:
    """A task in which a wrong answer gets feedback and another turn.

    An episode ends with a correct answer or after ``turns`` answers. The last answer gets the verifier's reward and
    earlier answers get 0, so the return of an episode is the reward of its last answer. The student is shown the
    verdict's feedback, or "that is not right" if there is none.

    ``verify`` and ``responses`` are those of the inner task.

    Args:
        task: serves ``reward`` and has a single turn.
        turns: number of answers, at least 1; 2 is ours.
        template: the message after a wrong answer; must contain ``{feedback}``.

    Raises:
        LimbeckError: the task or an option cannot be used.
    """

    def __init__(self, task: Task, *, turns: int = 2, template: str = "{feedback}\nTry again.") -> None:
        if "reward" not in task.serves or "episodes" in task.serves:
            why = "already has several turns" if "episodes" in task.serves else "has no verifier"
            raise LimbeckError(f"task {task.name!r} {why}; retry a task that verifies single responses.")
        self.name = f"retry({task.name})"
        self.inner = task
        self.turns = whole_number("retry", "turns", turns, 1)
        self.template = _checked(template)
        self.serves = task.serves | {"episodes", "feedback"}
        self.train: Sequence[Prompt] = task.train
        self.test: Sequence[Prompt] = task.test

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """The inner task's verdict on one response."""
        return self.inner.verify(prompt, text)

    def responses(self, prompt: Prompt) -> tuple[Response, ...]:
        """The inner task's responses."""
        return self.inner.responses(prompt)

    def open(self, prompt: Prompt) -> Attempts:
        """Start an episode."""
        return Attempts(self, prompt)


class Attempts:
    """One episode of :class:`Retry`."""

    def __init__(self, task: Retry, prompt: Prompt) -> None:
        self._task, self._prompt, self._left = task, prompt, task.turns

    def step(self, text: str) -> Observation:
        """Judge an answer.

        Raises:
            LimbeckError: the inner task refuses the response.
            Unjudged: its verifier raised, took too long or gave no reward.
        """
        refuse_if_over(self._left == 0)
        verdict = judge_response(self._task.inner, self._prompt, text)
        self._left = 0 if verdict.correct else self._left - 1
        feedback = verdict.feedback or (None if verdict.correct else _DEFAULT)
        message = self._task.template.replace("{feedback}", _sentence(feedback or "")) if self._left else feedback or ""
        done = self._left == 0
        return Observation(message, done, verdict.reward if done else 0.0, verdict.correct, feedback)

    def close(self) -> None:
        """Do nothing; the episode holds no resources."""


def _checked(template: object) -> str:
    """Refuse a template whose only field is not ``{feedback}``."""
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(str(template)) if field is not None}
    except ValueError:
        fields = set()
    if not isinstance(template, str) or fields != {"feedback"}:
        raise LimbeckError(f"template of task 'retry' is {template!r}; give a text whose only field is {{feedback}}.")
    return template


def _sentence(text: str) -> str:
    """The text with a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
