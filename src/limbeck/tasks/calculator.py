"""Arithmetic with a tool: the assistant may call a calculator before it answers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from ..errors import LimbeckError, nearest
from ..types import Prompt
from .arithmetic import Mistake, calculate
from .base import Observation, Response, Verdict, refuse_if_over, whole_number
from .gym import GymTask, Lazy, check_options

_DATASETS = ("chain_sum", "basic_arithmetic")
_ROLES = ("user", "tool")
_OWN = ("dataset", "max_turns", "role")
_CALL = re.compile(r"<calc>(.*?)</calc>", re.DOTALL)
_INSTRUCTIONS = (
    "You have a calculator: write <calc>EXPRESSION</calc>, for instance <calc>3 * (4 + 5)</calc>, and end your turn; "
    "you are told the value. Call it once a turn. Then give the result as <answer>NUMBER</answer>."
)


class CalculatorTask:
    """Arithmetic problems of reasoning-gym with a calculator as a tool.

    The reply to a turn with ``<calc>EXPRESSION</calc>`` is the value, or an error message, which is also the feedback.
    A turn without a call is the answer: the data set's own verifier judges it, and the episode ends. The verdict gives
    the reward; all earlier turns have reward 0. After ``max_turns`` turns without an answer the episode ends with
    reward 0.

    Expressions are evaluated without ``eval``, and their length and the size of every intermediate value are bounded.

    Args:
        dataset: ``chain_sum`` or ``basic_arithmetic``.
        train_size, test_size, seed, reveal: as in :class:`~limbeck.tasks.gym.GymTask`.
        max_turns: at least 1.
        role: of the calculator's messages: ``"user"``, which every chat template renders, or ``"tool"`` for a template
            that renders it without a preceding structured call.
        **options: fields of the data set's configuration.

    Raises:
        LimbeckError: an option has a wrong value.
    """

    name = "calculator"
    serves = frozenset({"reward", "feedback", "episodes"})

    def __init__(
        self,
        *,
        dataset: str = "chain_sum",
        train_size: int = 2000,
        test_size: int = 200,
        max_turns: int = 4,
        role: str = "user",
        reveal: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> None:
        for field, value, known in (("dataset", dataset, _DATASETS), ("role", role, _ROLES)):
            if value not in known:
                words = " or ".join(known)
                raise LimbeckError(
                    f"{field} of task {self.name!r} is {value!r}{nearest(str(value), known)}; give {words}."
                )
        check_options(dataset, options, self.name, _OWN)
        self.max_turns = whole_number(self.name, "max_turns", max_turns, 1)
        self.role = role
        self.problems = GymTask(
            dataset, train_size=train_size, test_size=test_size, seed=seed, name=self.name, reveal=reveal, **options
        )
        self.train: Sequence[Prompt] = Lazy(train_size, lambda i: self._with_tool(self.problems.train[i]))
        self.test: Sequence[Prompt] = Lazy(test_size, lambda i: self._with_tool(self.problems.test[i]))

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """The data set's verdict on an answer; calls are not evaluated."""
        return self.problems.verify(prompt, text)

    def responses(self, prompt: Prompt) -> tuple[Response, ...]:  # noqa: ARG002
        """Return nothing; ``prompt.privileged["solution"]`` describes the call and the answer."""
        return ()

    def open(self, prompt: Prompt) -> CalculatorEpisode:
        """Start an episode."""
        return CalculatorEpisode(self, prompt)

    def _with_tool(self, prompt: Prompt) -> Prompt:
        """The data set's prompt with the instructions, and with a written solution."""
        item = self.problems.item(prompt)
        call, answer = item["metadata"]["expression"], item["answer"]
        return dataclasses.replace(
            prompt,
            messages=({"role": "user", "content": f"{_INSTRUCTIONS}\n\n{item['question']}"},),
            privileged={
                "answer": str(answer),
                "solution": f"Write <calc>{call}</calc>. The calculator says {answer}. "
                f"Then write <answer>{answer}</answer>.",
            },
        )


class CalculatorEpisode:
    """One episode of :class:`CalculatorTask`."""

    def __init__(self, task: CalculatorTask, prompt: Prompt) -> None:
        self._task, self._prompt, self._left = task, prompt, task.max_turns

    def step(self, text: str) -> Observation:
        """Evaluate a call, or judge the answer.

        Raises:
            LimbeckError: the prompt is not one of this task.
        """
        refuse_if_over(self._left == 0)
        calls = _CALL.findall(text)
        if not calls:
            self._left = 0
            verdict = self._task.verify(self._prompt, text)
            return Observation("", True, verdict.reward, verdict.correct, verdict.feedback, self._task.role)
        self._left -= 1
        observation = _evaluated(calls[0]) if len(calls) == 1 else _mistake("call the calculator once a turn")
        if not self._left:
            ran_out = f"no answer was given in {self._task.max_turns} turns"
            observation = dataclasses.replace(observation, done=True, feedback=observation.feedback or ran_out)
        return dataclasses.replace(observation, role=self._task.role)

    def close(self) -> None:
        """End the episode."""
        self._left = 0


def _evaluated(expression: str) -> Observation:
    try:
        return Observation(calculate(expression))
    except Mistake as mistake:
        return _mistake(str(mistake))


def _mistake(what: str) -> Observation:
    return Observation(f"error: {what}", feedback=what)
