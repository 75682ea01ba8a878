"""Arithmetic with a tool: the assistant may have a calculator compute before it answers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import LimbeckError, nearest
from ..types import Prompt
from .base import EpisodeDied, Observation, Response, Verdict, refuse_if_over, whole_number
from .guard import Guarded, Limits, Pool
from .gym import GymTask, Lazy, check_options

_DATASETS = ("chain_sum", "basic_arithmetic")
_ROLES = ("user", "tool")
_OWN = ("dataset", "max_turns", "role")
_CALL = re.compile(r"<calc>(.*?)</calc>", re.DOTALL)
_INSTRUCTIONS = (
    "You have a calculator: write <calc>EXPRESSION</calc>, for instance <calc>3 * (4 + 5)</calc>, and end your turn; "
    "you are told the value. Call it once a turn. Then give the result as <answer>NUMBER</answer>."
)
# One calculation; the checks of the calculator itself answer in microseconds.
_LIMITS = Limits(step_s=5.0, start_s=60.0, memory_mb=512, output_chars=2000, episodes=64)


class CalculatorTask:
    """Arithmetic problems of reasoning-gym with a calculator as a tool.

    A turn with ``<calc>EXPRESSION</calc>`` is answered with the value, or with what is wrong with the expression
    (also given as feedback). A turn without one is the answer: the data set's own verifier judges it and the episode
    ends. The reward is that verdict's, and 0 for every turn before. After ``max_turns`` turns without an answer the
    episode ends with reward 0.

    The calculator runs in a worker process with limits on time, memory and output; an expression that it does not
    survive is answered as an error, and the episode goes on.

    Args:
        dataset: ``chain_sum`` or ``basic_arithmetic``.
        train_size, test_size, seed, reveal: as in :class:`~limbeck.tasks.gym.GymTask`.
        max_turns: at least 1.
        role: of the calculator's messages: ``"user"``, which every chat template renders, or ``"tool"`` for a template
            that renders it without a preceding structured call.
        **options: fields of the data set's configuration.

    Raises:
        LimbeckError: an option that cannot be used.
    """

    name = "calculator"
    serves = frozenset({"reward", "feedback", "episodes", "expert"})

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
                    f"{field} of task {self.name!r} is {value!r}{nearest(str(value), known)}: give {words}."
                )
        check_options(dataset, options, self.name, _OWN)
        self.max_turns = whole_number(self.name, "max_turns", max_turns, 1)
        self.role = role
        self.problems = GymTask(
            dataset, train_size=train_size, test_size=test_size, seed=seed, name=self.name, reveal=reveal, **options
        )
        self._pool: Pool | None = None
        self.train: Sequence[Prompt] = Lazy(train_size, lambda i: self._with_tool(self.problems.train[i]))
        self.test: Sequence[Prompt] = Lazy(test_size, lambda i: self._with_tool(self.problems.test[i]))

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """The data set's verdict on an answer, as if no tool were there."""
        return self.problems.verify(prompt, text)

    def responses(self, prompt: Prompt) -> tuple[Response, ...]:  # noqa: ARG002
        """Nothing: see :meth:`expert`."""
        return ()

    def expert(self, prompt: Prompt) -> tuple[str, ...]:
        """One call with the whole expression, then the answer."""
        item = self.problems.item(prompt)
        return f"<calc>{_expression(item)}</calc>", f"<answer>{item['answer']}</answer>"

    def open(self, prompt: Prompt) -> Reckoning:
        """A fresh episode; the calculator's process starts with the first call."""
        return Reckoning(self, prompt)

    def _with_tool(self, prompt: Prompt) -> Prompt:
        """The data set's prompt with the instructions, and with a solution in words."""
        item = self.problems.item(prompt)
        call, answer = _expression(item), item["answer"]
        return dataclasses.replace(
            prompt,
            messages=({"role": "user", "content": f"{_INSTRUCTIONS}\n\n{item['question']}"},),
            privileged={
                "answer": str(answer),
                "solution": f"Write <calc>{call}</calc>. The calculator says {answer}. "
                f"Then write <answer>{answer}</answer>.",
            },
        )

    def pool(self) -> Pool:
        """The calculator's workers."""
        if self._pool is None:
            self._pool = Pool(f"{Path(__file__).with_name('arithmetic.py')}:Calculator", _LIMITS)
        return self._pool


class Reckoning:
    """One episode of :class:`CalculatorTask`."""

    def __init__(self, task: CalculatorTask, prompt: Prompt) -> None:
        self._task, self._prompt, self._left = task, prompt, task.max_turns
        self._calculator: Guarded | None = None

    def step(self, text: str) -> Observation:
        """Calculate, or judge the answer.

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
        said = self._calculate(calls[0]) if len(calls) == 1 else _mistake("call the calculator once a turn")
        if not self._left:
            ran_out = f"no answer was given in {self._task.max_turns} turns"
            said = dataclasses.replace(said, done=True, feedback=said.feedback or ran_out)
        return dataclasses.replace(said, role=self._task.role)

    def _calculate(self, expression: str) -> Observation:
        try:
            if self._calculator is None:
                self._calculator = self._task.pool().open()
            return self._calculator.step(expression)
        except EpisodeDied:
            # What died is the calculator, which has no memory: the next call gets a fresh one.
            self._calculator = None
            return _mistake("the calculation took too long or too much memory")

    def close(self) -> None:
        """Give the calculator back."""
        self._left = 0
        if self._calculator is not None:
            self._calculator.close()
            self._calculator = None


def _mistake(what: str) -> Observation:
    return Observation(f"error: {what}", feedback=what)


def _expression(item: Mapping[str, Any]) -> str:
    return str(item["metadata"]["expression"])
