"""A task made of the user's own data, with the built-in verifier for answers or with reward functions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

from ..errors import LimbeckError, expect, nearest, shown
from ..limits import VERIFY_SECONDS
from ..types import Prompt
from .base import Unjudged, Verdict, judge_response
from .records import (
    KEYS,
    PRIVILEGED,
    PROBLEM,
    Record,
    RecordTask,
    check_columns,
    left_out,
    parse_record,
    say_left_out,
)
from .rewards import JudgedResponse, Rewards
from .sources import DataSource, Rows, is_local, open_source
from .split import check_size
from .split import split as split_rows

TEST_SIZE = 0.1
"""Share of the problems that are held out if the data has no test split (ours)."""

_TEXTS = ("prompt", *PRIVILEGED, "response", "chosen", "rejected", "id")


_P = ParamSpec("_P")

_OF_TRL = {
    "train_dataset": "dataset",
    "eval_dataset": "test",
    "reward_funcs": "reward",
    "reward_weights": "weights",
}
"""Arguments of TRL's trainers that are arguments of :class:`DatasetTask` with another name."""


def _refuses_unknown(init: Callable[_P, None]) -> Callable[_P, None]:
    """The same ``__init__``, which raises a LimbeckError for arguments that it does not have."""
    known = tuple(inspect.signature(init).parameters)[2:]  # without self and dataset

    @functools.wraps(init)
    def checked(*given: _P.args, **named: _P.kwargs) -> None:
        _check_arguments(given[1:], named, known)
        init(*given, **named)

    return checked


def _check_arguments(given: Sequence[object], named: Collection[str], known: Sequence[str]) -> None:
    """Raise for an unknown argument, for a second argument by position, and where there is no data."""
    for name in named:
        if name not in (*known, "dataset"):
            ours = _OF_TRL.get(name)
            near = f" (did you mean {ours!r}?)" if ours else nearest(name, known)
            raise LimbeckError(f"lb.task has no argument {name!r}{near}; help(lb.task) lists its arguments.")
    if len(given) > 1:
        example = f"reward={getattr(given[1], '__name__', 'function')}" if callable(given[1]) else "prompt='question'"
        raise LimbeckError(
            f"lb.task got {shown(given[1])} by position; name every argument behind the data, for instance "
            f"lb.task(dataset, {example})."
        )
    if not given and "dataset" not in named:
        raise LimbeckError("lb.task got no data; give it first, for instance lb.task(dataset, reward=function).")


class DatasetTask(RecordTask):
    """A task from a data set, a file or a list of problems. ``lb.task`` is another name for this class.

    For example, ``lb.task("problems.jsonl")`` uses the built-in verifier, and
    ``lb.task(my_dataset, reward=my_function, prompt="question")`` uses a reward function of your own.

    Every row needs a problem (``prompt``). It may also have an ``answer`` for the built-in verifier; a ``response`` (a
    demonstration), or ``chosen`` and ``rejected`` (a pair); ``solution``, ``hint`` and ``step_feedback`` for privileged
    teachers; ``id``; and ``tools``, ``documents`` and ``chat_template_kwargs`` for the chat template. The task serves
    what all of its rows have.

    Args:
        dataset: a ``datasets.Dataset`` or ``DatasetDict``, a list of dictionaries, a ``.jsonl``, ``.parquet`` or
            ``.csv`` file, a folder written by ``save_to_disk``, or the name of a data set on the hub (read from the
            local cache if the hub cannot be reached).
        reward: a function, or a list of functions, used instead of the built-in verifier. Its arguments are matched by
            name: ``prompt``, ``response``, ``row`` and the columns. A function with an argument ``completions`` takes
            lists, as in TRL. It may be a coroutine. If it raises or returns None, the response is not judged. A string
            names a function in a file of ``--import``.
        weights: one for each of several rewards, 1 by default; the task's reward is the weighted sum.
        correct_at: a response counts as correct, for accuracy and for masks, from this reward on; 0.5 is ours.
        prompt: the column with the problem, a text or a list of chat messages; default: ``prompt``, else ``messages``.
        answer: the column with the expected answer; default: ``answer``, if there is one.
        response: the column with a demonstration, a text or a list of chat messages; default: ``response``.
        chosen, rejected: the columns of a preference pair; default: these names.
        columns: column names for other keys, for instance ``{"solution": "proof"}``.
        split: the split to train on; default: ``train``, or the only one. For hub data also ``train[:500]``.
        config: the configuration of a data set on the hub.
        test: held-out problems: the name of a split of the same data, or any data that ``dataset`` accepts. Training
            problems that are also in ``test`` are left out, with a warning. Default: the split ``test``, if there is
            one and ``test_size`` is not given.
        test_size: share (0.2) or number (200) of the problems to hold out if there is no ``test``; default 0.1 (ours).
            Problems are chosen by a hash of their text, so with a share, adding rows moves no row to the other side.
        seed: of that choice; another seed holds out other problems.
        name: of the task in reports; default: the name of the file or data set.
        reveal: whether the feedback of the built-in verifier contains the expected answer.
        per_turn: cut every trajectory into one prompt for each assistant turn, with all earlier turns before it
            (step-level sampling, OPAD, arXiv:2605.01347). The cut prompts serve responses and no reward.

    Attributes:
        code: the reward functions; a run records them.

    Raises:
        LimbeckError: an option or a row is wrong; the message names the option, or the file and row.
    """

    @_refuses_unknown
    def __init__(
        self,
        dataset: Any,
        *,
        reward: Callable[..., Any] | str | Sequence[Callable[..., Any] | str] | None = None,
        weights: Sequence[float] | None = None,
        correct_at: float = 0.5,
        prompt: str | None = None,
        answer: str | None = None,
        response: str | None = None,
        chosen: str | None = None,
        rejected: str | None = None,
        columns: Mapping[str, str] | None = None,
        split: str | None = None,
        config: str | None = None,
        test: Any = None,
        test_size: float | None = None,
        seed: int = 0,
        name: str | None = None,
        reveal: bool = False,
        per_turn: bool = False,
    ) -> None:
        check_columns(columns)
        own = {"prompt": prompt, "answer": answer, "response": response, "chosen": chosen, "rejected": rejected}
        self._names = _renamings(own, columns or {})
        _check_texts(split=split, config=config, name=name)
        expect("seed", seed, int, "give a whole number")
        if test_size is not None:
            check_size(test_size)
        if reward is None and weights is not None:
            raise LimbeckError(f"weights={weights!r} are given without reward functions; give reward=[...] as well.")
        if reward is not None and per_turn is True:
            raise LimbeckError("per_turn makes prompts without a reward; leave out reward or per_turn.")
        train, held_out, source = _rows(dataset, split, config, test, test_size, self._texts())
        has = dict.fromkeys(key for _, row in (*train, *(held_out or ())) if isinstance(row, Mapping) for key in row)
        _check_names(self._names, has, source.where)
        # Checked before the records are parsed, because this is faster.
        self._rewards = Rewards(reward, weights, correct_at, {*has, *self._names}) if reward is not None else None
        self._rows = dict((*train, *(held_out or ()))) if self._rewards else {}
        self.code = tuple(f.call for f in self._rewards.functions) if self._rewards else ()
        records = self._parsed(train)
        others = None if held_out is None else self._parsed(held_out)
        size = TEST_SIZE if test_size is None else test_size
        sides = split_rows(records, others, source.where, test_size=size, per_turn=per_turn, seed=seed)
        super().__init__(name or source.name, *sides, reveal)
        if self._rewards:
            self.serves = (self.serves | {"reward"}) - {"feedback"}
            self.lacking.pop("reward", None)

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """Judge a response with the reward functions, or with the built-in verifier if there are none.

        Raises:
            Unjudged: a function raised, took too long, or gave no reward.
            LimbeckError: the prompt has no answer, or a function returned something other than a reward.
        """
        if self._rewards is None:
            return super().verify(prompt, text)
        said = self._rewards.judge([self._asked(prompt, text)], VERIFY_SECONDS)[0]
        if isinstance(said, Unjudged):
            raise said
        return said

    def verify_all(self, prompts: Sequence[Prompt], texts: Sequence[str], seconds: float) -> list[Verdict | Unjudged]:
        """Judge several responses at once; batches and coroutines run together.

        Args:
            prompts: of this task, one for each response.
            texts: the responses.
            seconds: time limit for one response, or for one call of a function that takes a batch.
        """
        both = zip(prompts, texts, strict=True)
        if self._rewards is None or type(self).verify is not DatasetTask.verify:  # a subclass judges by itself
            return [self._alone(p, t, seconds) for p, t in both]
        return self._rewards.judge([self._asked(p, t) for p, t in both], seconds)

    def _alone(self, prompt: Prompt, text: str, seconds: float) -> Verdict | Unjudged:
        try:
            return judge_response(self, prompt, text, seconds)
        except Unjudged as e:
            return e

    def _asked(self, prompt: Prompt, text: str) -> JudgedResponse:
        row = self._rows.get(prompt.where, {})
        columns = {**{ours: row[theirs] for ours, theirs in self._names.items() if theirs in row}, **row}
        messages = [dict(message) for message in prompt.messages]
        problem = row.get(self._names.get("prompt", "prompt"))
        return JudgedResponse(prompt.id, problem if isinstance(problem, str) else messages, text, row, columns)

    def _texts(self) -> tuple[str, ...]:
        """The columns that are read as text."""
        return tuple(self._names.get(key, key) for key in _TEXTS)

    def _parsed(self, rows: Rows) -> list[Record]:
        records, unread = [], set()
        for at, row in rows:
            raw = self._without_odd(row) if self._rewards and isinstance(row, Mapping) else row
            records.append(parse_record(raw, at, self._names))
            if not self._rewards and isinstance(row, Mapping):
                unread |= left_out(row) - set(self._names.values())
        say_left_out(unread, rows[0][0].rpartition(", ")[0])
        return records

    def _without_odd(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row without answers and similar keys that are not text; only a reward function can use those."""
        keys = {key: self._names.get(key, key) for key in PRIVILEGED}
        odd = {
            theirs
            for key, theirs in keys.items()
            if not isinstance(row.get(theirs), str | int | float if key == "answer" else str)
        }
        return {key: value for key, value in row.items() if key not in odd}


def _renamings(own: Mapping[str, object], columns: Mapping[str, str]) -> dict[str, str]:
    """The column name of every key whose column has another name."""
    names = dict(columns)
    for key, theirs in own.items():
        if theirs is None:
            continue
        expect(key, theirs, str, "give the name of a column of your data")
        if key in columns:
            raise LimbeckError(
                f"{key}={theirs!r} and columns.{key}={columns[key]!r} name the same column twice; keep one."
            )
        names[key] = str(theirs)
    return names


def _check_texts(**values: object) -> None:
    for option, value in values.items():
        if value is not None and (not isinstance(value, str) or not value):
            raise LimbeckError(f"{option} is {value!r}; give a text.")


def _check_names(names: Mapping[str, str], has: Mapping[str, None], where: str) -> None:
    """Refuse columns that no row has, and data without a problem column."""
    listed = ", ".join(map(repr, has)) or "nothing"
    for ours, theirs in names.items():
        if theirs not in has:
            raise LimbeckError(f"{where} has no column {theirs!r} for {ours!r}{nearest(theirs, has)}; it has {listed}.")
    if has and not {*PROBLEM} & {*has, *names}:
        near = next((near for key in has if key not in KEYS and (near := nearest(key, PROBLEM))), "")
        example = next((key for key in has if key not in KEYS), "question")
        raise LimbeckError(
            f"{where} has neither 'prompt' nor 'messages', only {listed}{near}; name the column of the problem, for "
            f"instance prompt={example!r} (--set task_options.prompt={example})."
        )


def _rows(
    dataset: object, split: str | None, config: str | None, test: object, test_size: float | None, texts: Sequence[str]
) -> tuple[Rows, Rows | None, DataSource]:
    """Training rows, held-out rows if they were named, and the source of the data."""
    source = open_source(dataset, "the task's data" if not isinstance(dataset, str | Path) else "task", config, texts)
    chosen = source.training(split)
    train = source.rows(chosen, "split")
    if test is None:
        own = "test" in source.splits and chosen.partition("[")[0] != "test" and test_size is None
        return train, source.rows("test", "test") if own else None, source
    if test_size is not None:
        raise LimbeckError(f"test and test_size={test_size!r} are both given; keep one.")
    if isinstance(test, str) and not is_local(test) and (any(source.splits) or "/" not in test):
        if test == chosen:
            raise LimbeckError(f"test={test!r} is the split to train on; name another split, or give test_size=0.1.")
        return train, source.rows(test, "test"), source
    other = open_source(test, "the held-out data" if not isinstance(test, str | Path) else "test", None, texts)
    name = "test" if "test" in other.splits else next(iter(other.splits))
    if len(other.splits) > 1 and name != "test":
        raise LimbeckError(f"test={other.where} has several splits ({', '.join(other.splits)}); give one of them.")
    return train, other.rows(name, "test"), source
