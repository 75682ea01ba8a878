"""Reward functions of the user: matching their arguments, calling them, and checking what they return.

Arguments are matched by name. A function with an argument ``completions`` takes a batch, as in TRL: ``prompts``,
``completions`` and columns are lists, and it returns a list. Any other function is called for each response, with
``prompt``, ``response``, ``row`` (the whole record) and columns. ``**kwargs`` receives every column.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

from .. import user_files as own_files
from ..errors import LimbeckError, nearest, number, shown
from ..limits import OutOfTime, within_seconds
from .base import Unjudged, Verdict, bounded, fault_of, reason_of

SINGLE, BATCH = ("prompt", "response", "row"), ("prompts", "completions")


@dataclass(frozen=True)
class JudgedResponse:
    """A response to be judged, with its prompt and record.

    Attributes:
        id: of the prompt.
        prompt: its text, or its messages if the data holds messages.
        response: the text.
        row: the record as it is in the data.
        columns: the values of the record under the data's names and under our names for them.
    """

    id: str
    prompt: Any
    response: str
    row: Mapping[str, Any]
    columns: Mapping[str, Any]

    @property
    def completion(self) -> Any:
        """The response in TRL's form: a list with a message if the prompt is a list of messages, else the text."""
        if isinstance(self.prompt, str):
            return self.response
        return [{"role": "assistant", "content": self.response}]


@dataclass(frozen=True)
class RewardFunction:
    """A reward function with the arguments that it takes.

    Attributes:
        call: the function.
        name: for messages.
        batch: whether it takes lists.
        asks: the names of its arguments.
        every: whether it takes all columns (``**kwargs``).
    """

    call: Callable[..., Any]
    name: str
    batch: bool
    asks: tuple[str, ...]
    every: bool

    @classmethod
    def of(cls, reward: object, columns: Collection[str]) -> RewardFunction:
        """Check a function against the columns of the data; a string names a function in a file of ``--import``.

        Raises:
            LimbeckError: it cannot be called, or has an argument that is not a column.
        """
        if isinstance(reward, str):
            reward = _imported(reward)
        if not callable(reward) or inspect.isclass(reward):
            raise LimbeckError(f"reward={shown(reward)} is not a function; give one such as reward(prompt, response).")
        name = getattr(reward, "__name__", type(reward).__name__)
        try:
            parameters = list(inspect.signature(reward).parameters.values())
        except (TypeError, ValueError):
            raise LimbeckError(
                f"the arguments of reward {name} cannot be inspected; wrap it in a def of your own."
            ) from None
        batch = any(p.name == "completions" for p in parameters)
        free = {*(BATCH if batch else SINGLE), *columns}
        asks = []
        for p in parameters:
            if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
                continue
            if p.name in free and p.kind is not p.POSITIONAL_ONLY:
                asks.append(p.name)
            elif p.default is p.empty:
                raise LimbeckError(_unfilled(name, p, free, batch))
        if not set(asks) & {"response", "completions"}:
            raise LimbeckError(
                f"reward {name} does not read the response; give it an argument response, or completions (a list)."
            )
        return cls(reward, name, batch, tuple(asks), any(p.kind is p.VAR_KEYWORD for p in parameters))

    def arguments(self, asked: JudgedResponse) -> dict[str, Any]:
        """The arguments for one response."""
        own = {"prompt": asked.prompt, "response": asked.response, "row": dict(asked.row)}
        own = {"prompts": asked.prompt, "completions": asked.completion} if self.batch else own
        free = {**asked.columns, **own}
        given = {name: free.get(name) for name in self.asks}
        return {**{k: v for k, v in asked.row.items() if k not in own}, **given} if self.every else given

    def batch_arguments(self, asked: Sequence[JudgedResponse]) -> dict[str, list[Any]]:
        """The arguments for several responses, each a list."""
        each = [self.arguments(a) for a in asked]
        return {name: [given.get(name) for given in each] for name in dict.fromkeys(k for given in each for k in given)}


def _imported(name: str) -> object:
    found = own_files.imported_value(name)
    if found is None:
        near = nearest(name, own_files.imported_names())
        raise LimbeckError(
            f"reward={name!r} is not defined in a file of --import{near}; add --import FILE.py with its definition."
        )
    return found


def _unfilled(name: str, p: inspect.Parameter, free: Collection[str], batch: bool) -> str:
    if p.kind is p.POSITIONAL_ONLY:
        return (
            f"reward {name} takes {p.name!r} by position only; leave out the /, because arguments are matched by name."
        )
    form = "prompts, completions (lists) and" if batch else "prompt, response, row and"
    columns = ", ".join(sorted(set(free) - {*SINGLE, *BATCH})) or "none"
    return (
        f"reward {name} has the argument {p.name!r}, which is not a column of the data{nearest(p.name, free)}; "
        f"arguments are matched by name: {form} the columns ({columns})."
    )


class Rewards:
    """Reward functions and their weights, used as the verifier of a task.

    Args:
        reward: a function, or several.
        weights: one for each function; default: 1 each, as in TRL.
        correct_at: a response counts as correct from this reward on.
        columns: names that the functions' arguments may have.

    Raises:
        LimbeckError: a function cannot be called with these columns, or the weights do not fit the functions.
    """

    def __init__(self, reward: object, weights: object, correct_at: object, columns: Collection[str]) -> None:
        several = list(reward) if isinstance(reward, list | tuple) else [reward]
        if not several:
            raise LimbeckError("reward=[] holds no function; give one such as reward(prompt, response).")
        self.functions = [RewardFunction.of(one, columns) for one in several]
        self.weights = _weights(weights, len(several))
        number("correct_at", correct_at)
        self.correct_at = float(correct_at)  # type: ignore[arg-type]

    def judge(self, asked: Sequence[JudgedResponse], seconds: float) -> list[Verdict | Unjudged]:
        """Judge several responses; a response that could not be judged gets the reason instead of a verdict.

        Raises:
            LimbeckError: a function returned something other than a reward.
        """
        each = [_values(function, asked, seconds) for function in self.functions]
        return [self._together([values[i] for values in each]) for i in range(len(asked))]

    def _together(self, values: Sequence[Verdict | float | Unjudged | None]) -> Verdict | Unjudged:
        """The weighted sum of the rewards; functions that returned None are left out, as in TRL."""
        failed = next((v for v in values if isinstance(v, Unjudged)), None)
        if failed is not None:
            return failed
        given = [(v, w) for v, w in zip(values, self.weights, strict=True) if isinstance(v, Verdict | float)]
        if not given:
            one = f"reward {self.functions[0].name} returned None"
            return Unjudged(one if len(values) == 1 else "every reward function returned None")
        total = sum(w * (v.reward if isinstance(v, Verdict) else v) for v, w in given)
        said = [v for v, _ in given if isinstance(v, Verdict)]
        correct = all(v.correct for v in said) if said else total >= self.correct_at
        return Verdict(total, correct, "; ".join(v.feedback for v in said if v.feedback) or None)


def _weights(weights: object, n: int) -> list[float]:
    if weights is None:
        return [1.0] * n
    given: list[Any] = list(weights) if isinstance(weights, list | tuple) else [weights]
    if len(given) != n:
        raise LimbeckError(
            f"weights={shown(weights)} has {len(given)} entries for {n} reward functions; give one for each."
        )
    for weight in given:
        number("a weight of the rewards", weight)
    return [float(weight) for weight in given]


# ---------------------------------------------------------------- calling


def _values(
    f: RewardFunction, asked: Sequence[JudgedResponse], seconds: float
) -> list[Verdict | float | Unjudged | None]:
    """The checked results of a function for each response."""
    raw = _of_batch(f, asked, seconds) if f.batch else _of_each(f, asked, seconds)
    return [_checked(f, a, value) for a, value in zip(asked, raw, strict=True)]


def _failed(f: RewardFunction, e: BaseException) -> Unjudged:
    """Why a reward function gave no reward: its name, and the place of the error in the user's code."""
    return Unjudged(f"reward {f.name} {e}" if isinstance(e, OutOfTime) else f"reward {f.name}, {reason_of(e)}")


def _of_batch(f: RewardFunction, asked: Sequence[JudgedResponse], seconds: float) -> list[object]:
    """Judge a batch in one call. If that raises, judge each response alone, so that only the failing ones are lost."""
    try:
        said: object = within_seconds(seconds, partial(f.call, **f.batch_arguments(asked)))
        if inspect.isawaitable(said):
            said = _awaited([said], seconds)[0]
            if isinstance(said, BaseException):
                raise said
    except LimbeckError:
        raise
    except OutOfTime as e:
        return [_failed(f, e) for _ in asked]
    except (Exception, SystemExit) as e:
        if len(asked) == 1:
            return [_failed(f, e)]
        return [value for one in asked for value in _of_batch(f, [one], seconds)]
    listed = said.tolist() if hasattr(said, "tolist") else said
    if not isinstance(listed, list | tuple) or len(listed) != len(asked):
        has = f"{len(listed)} rewards" if isinstance(listed, list | tuple) else shown(said)
        raise LimbeckError(f"reward {f.name} gave {has} for {len(asked)} completions; return a list with one for each.")
    return list(listed)


def _of_each(f: RewardFunction, asked: Sequence[JudgedResponse], seconds: float) -> list[object]:
    """Call the function for each response; coroutines are awaited together."""
    values: list[object] = []
    for one in asked:
        try:
            values.append(within_seconds(seconds, partial(f.call, **f.arguments(one))))
        except LimbeckError:
            raise
        except (Exception, SystemExit, OutOfTime) as e:
            values.append(_failed(f, e))
    waiting = [i for i, value in enumerate(values) if inspect.isawaitable(value)]
    for i, value in zip(waiting, _awaited([values[i] for i in waiting], seconds), strict=True):
        if isinstance(value, LimbeckError):
            raise value
        values[i] = _failed(f, value) if isinstance(value, BaseException) else value
    return values


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """An event loop in its own thread, kept for the life of the process because clients keep connections in it.

    The main thread may have a running loop already, as in a notebook, and must not wait in it.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="limbeck-rewards", daemon=True).start()
    return loop


def _awaited(several: Sequence[Any], seconds: float) -> list[object]:
    """Run coroutines together, each with a time limit, and return their results or exceptions."""
    if not several:
        return []

    async def one(awaitable: Awaitable[object]) -> object:
        try:
            return await asyncio.wait_for(awaitable, seconds)
        except TimeoutError:
            return OutOfTime(seconds)
        except (Exception, asyncio.CancelledError) as e:
            return e

    async def together() -> list[object]:
        return list(await asyncio.gather(*map(one, several)))

    future = asyncio.run_coroutine_threadsafe(together(), _loop())
    try:
        return future.result(seconds + _GRACE)
    except TimeoutError:  # a coroutine that blocks its loop cannot be interrupted
        future.cancel()
        return [OutOfTime(seconds) for _ in several]


_GRACE = 5.0
"""Seconds after the time limit in which the loop can cancel the coroutines (ours)."""


def _checked(f: RewardFunction, asked: JudgedResponse, value: object) -> Verdict | float | Unjudged | None:
    """Check a reward and convert it to a number.

    Raises:
        LimbeckError: it is not a finite number.
    """
    if value is None or isinstance(value, Unjudged):
        return value
    given: Any = value.reward if isinstance(value, Verdict) else value
    if not isinstance(given, Real) and getattr(given, "ndim", None) == 0:  # a scalar of NumPy or PyTorch
        given = given.item()
    if not isinstance(given, Real) or not bounded(given):
        raise LimbeckError(
            f"reward {f.name} gave {shown(given)} to a response to prompt {asked.id!r} ({asked.response[:60]!r}); "
            "return a finite number, or None if it cannot judge."
        )
    if isinstance(value, Verdict) and (why := fault_of(value)):
        raise LimbeckError(
            f"reward {f.name} {why} to a response to prompt {asked.id!r} ({asked.response[:60]!r}); return a Verdict "
            "with a finite reward, a bool and a text."
        )
    return value if isinstance(value, Verdict) else float(given)
