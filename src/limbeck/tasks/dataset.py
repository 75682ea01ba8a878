"""A task made of the user's own data, with a verifier for answers or with reward functions of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import LimbeckError, expect, nearest
from ..limits import VERIFY_SECONDS
from ..types import Prompt
from .base import Unjudged, Verdict, judged
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
from .rewards import Asked, Rewards
from .sources import Rows, Source, is_local, open_source
from .split import check_size
from .split import split as split_rows

TEST_SIZE = 0.1
"""Share of the problems that are held out where the data has no test split; ours."""

_TEXTS = ("prompt", *PRIVILEGED, "response", "chosen", "rejected", "id")


class DatasetTask(RecordTask):
    """Problems from a data set, a file or a list; ``lb.task`` is this class.

    A row has a problem (``prompt``) and whatever else there is: an ``answer`` for the built-in verifier, a
    ``response`` (a demonstration) or ``chosen`` and ``rejected`` (a pair), ``solution``, ``hint`` and
    ``step_feedback`` (for privileged readers), ``id``, ``tools``, ``documents`` and ``chat_template_kwargs`` (for the
    chat template). The task serves what all of its rows have.

    Args:
        dataset: a ``datasets.Dataset`` or ``DatasetDict``, a list of dictionaries, a ``.jsonl``, ``.parquet`` or
            ``.csv`` file, a folder that ``save_to_disk`` wrote, or the name of a data set on the hub (from the local
            cache where the hub cannot be reached).
        reward: a function, or a list of them, instead of the built-in verifier. Arguments are filled by name:
            ``prompt``, ``response``, ``row`` and columns; a function with ``completions`` takes lists, as in TRL. It
            may be a coroutine. A response for which it raises or returns None is not judged. A text names a function
            in a file of ``--import``.
        weights: of several rewards, 1 each by default; the task's reward is their weighted sum.
        correct_at: reward from which a response counts as correct, for accuracy and for masks; ours.
        prompt: the column with the problem, a text or a list of chat messages; default: ``prompt``, else ``messages``.
        answer: the column with the expected answer; default: ``answer``, where there is one.
        response: the column with a demonstration, a text or a list of chat messages; default: ``response``.
        chosen, rejected: the columns of a preference pair; default: these names.
        columns: the data's name of any other key, for instance ``{"solution": "proof"}``.
        split: the split to train on; default: ``train``, or the only one. Of the hub also ``train[:500]``.
        config: the configuration of a data set on the hub.
        test: held-out problems: a split of the same data by name, or data of any kind that ``dataset`` may be.
            Training problems that are among them are left out, with a warning. Default: the split ``test``, where there
            is one and ``test_size`` is not given.
        test_size: share (0.2) or number (200) of the problems to hold out where there is no ``test``; default 0.1.
            They are chosen by a hash of their text, so that with a share, rows that are added later move none.
        seed: of that choice; another one holds out other problems.
        name: what reports call the task; default: the file's or data set's.
        reveal: whether the built-in verifier's feedback names the expected answer.
        per_turn: cut every trajectory into one prompt for each of its assistant's turns, with the earlier ones before
            it (step-level sampling, OPAD). The cut prompts serve responses and no reward.

    Attributes:
        code: the reward functions, which a run records.

    Raises:
        LimbeckError: naming the option, or the file and row.
    """

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
            raise LimbeckError(f"weights={weights!r} are given without reward functions; give reward=[...] too.")
        if reward is not None and per_turn is True:
            raise LimbeckError("per_turn cuts prompts that serve no reward; leave reward or per_turn out.")
        train, held_out, source = _rows(dataset, split, config, test, test_size, self._texts())
        has = dict.fromkeys(key for _, row in (*train, *(held_out or ())) if isinstance(row, Mapping) for key in row)
        _check_names(self._names, has, source.where)
        # Before the records are parsed: what is wrong with a function is cheaper to find.
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
        """The verdict of the reward functions, or of the built-in verifier where none is given.

        Raises:
            Unjudged: a function raised, took too long, or gave no reward.
            LimbeckError: the prompt has no answer, or a function gave what is no reward.
        """
        if self._rewards is None:
            return super().verify(prompt, text)
        said = self._rewards.judge([self._asked(prompt, text)], VERIFY_SECONDS)[0]
        if isinstance(said, Unjudged):
            raise said
        return said

    def verify_all(self, prompts: Sequence[Prompt], texts: Sequence[str], seconds: float) -> list[Verdict | Unjudged]:
        """Verdicts on several responses at once; batches and coroutines run together.

        Args:
            prompts: of this task, one for each response.
            texts: the responses.
            seconds: for one response, or for one call of a function that takes a batch.
        """
        both = zip(prompts, texts, strict=True)
        if self._rewards is None or type(self).verify is not DatasetTask.verify:  # a subclass judges by itself
            return [self._alone(p, t, seconds) for p, t in both]
        return self._rewards.judge([self._asked(p, t) for p, t in both], seconds)

    def _alone(self, prompt: Prompt, text: str, seconds: float) -> Verdict | Unjudged:
        try:
            return judged(self, prompt, text, seconds)
        except Unjudged as e:
            return e

    def _asked(self, prompt: Prompt, text: str) -> Asked:
        row = self._rows.get(prompt.where, {})
        columns = {**{ours: row[theirs] for ours, theirs in self._names.items() if theirs in row}, **row}
        messages = [dict(message) for message in prompt.messages]
        problem = row.get(self._names.get("prompt", "prompt"))
        return Asked(prompt.id, problem if isinstance(problem, str) else messages, text, row, columns)

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
        """A row without answers and the like that are no text: a reward function reads them, and nothing else could."""
        keys = {key: self._names.get(key, key) for key in PRIVILEGED}
        odd = {
            theirs
            for key, theirs in keys.items()
            if not isinstance(row.get(theirs), str | int | float if key == "answer" else str)
        }
        return {key: value for key, value in row.items() if key not in odd}


def _renamings(own: Mapping[str, object], columns: Mapping[str, str]) -> dict[str, str]:
    """The data's name of every key that has another there."""
    names = dict(columns)
    for key, theirs in own.items():
        if theirs is None:
            continue
        expect(key, theirs, str, "give the name of a column of your data")
        if key in columns:
            raise LimbeckError(f"{key}={theirs!r} and columns.{key}={columns[key]!r} name it twice; keep one.")
        names[key] = str(theirs)
    return names


def _check_texts(**values: object) -> None:
    for option, value in values.items():
        if value is not None and (not isinstance(value, str) or not value):
            raise LimbeckError(f"{option} is {value!r}; give a text.")


def _check_names(names: Mapping[str, str], has: Mapping[str, None], where: str) -> None:
    """Refuse columns that no row has, and data that lacks a problem."""
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
) -> tuple[Rows, Rows | None, Source]:
    """Rows to train on, rows held out where they are named, and where they come from."""
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
