"""Any reasoning-gym data set as a task: generated, split, and judged by its own verifier."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

from ..errors import LimbeckError, nearest
from ..types import Prompt
from .answers import describe, extract_answer
from .base import Response, Verdict, whole_number, yes_or_no

# Options of the data set that the task sets itself.
_OURS = ("size", "seed")
_SIZES = ("train_size", "test_size")
_KNOWN = (*_SIZES, "reveal")
# reasoning-gym seeds item i with ``seed + i``, so the seeds of two splits must differ by more than a split is long.
_SEED_STRIDE = 5_000_003
# Draws for each wanted test prompt after which a data set has too few distinct questions.
_DRAWS_PER_TEST_PROMPT = 8
Demonstrate = Callable[[Mapping[str, Any]], str]


def gym_names() -> tuple[str, ...]:
    """Names of all reasoning-gym data sets, sorted."""
    return tuple(sorted(_registry()))


class GymTask:
    """A reasoning-gym data set as a task with disjoint splits.

    Prompts are generated when they are read. The test split is drawn first and has distinct questions; a training item
    whose question is in the test split is replaced by another item of the training stream. Both splits depend on
    ``seed`` alone, and ``train_size`` does not change the test split.

    The task serves ``reward``, ``feedback`` and ``responses``, but no ``responses`` if the data set states no answer
    that its own verifier accepts (``graph_color``, ``rush_hour`` and others with many right answers).

    Args:
        dataset: name in reasoning-gym.
        train_size, test_size: number of prompts of each split, at least 1.
        seed: non-negative.
        name: of the task in reports; default: the name of the data set.
        demonstrate: a function that writes the demonstration of an item (a mapping with ``question``, ``answer``,
            ``metadata``); default: ``<answer>ANSWER</answer>``.
        reveal: whether feedback contains the expected answer, if the data set states one.
        **options: fields of the data set's own configuration.

    Raises:
        LimbeckError: the data set or an option is unknown, the data set refuses a value, or it has too few distinct
            questions (raised when a split is first read).
    """

    def __init__(
        self,
        dataset: str,
        *,
        train_size: int = 2000,
        test_size: int = 200,
        seed: int = 0,
        name: str | None = None,
        demonstrate: Demonstrate | None = None,
        reveal: bool = False,
        **options: Any,
    ) -> None:
        self.name = name or dataset
        self.dataset = dataset
        for field, value, least in (("train_size", train_size, 1), ("test_size", test_size, 1), ("seed", seed, 0)):
            whole_number(self.name, field, value, least)
        check_options(dataset, options)
        self._reveal = yes_or_no(self.name, "reveal", reveal)
        self._demonstrate = demonstrate
        self._test_size = test_size
        self._train_data = _create(dataset, train_size, 2 * seed, options)
        self._test_data = _create(dataset, _DRAWS_PER_TEST_PROMPT * test_size, 2 * seed + 1, options)
        self.serves = frozenset({"reward", "feedback", *(["responses"] if self._states_answers() else [])})
        # Generating an item can take 50 ms (sokoban), and each is read once as a prompt and several times to verify.
        self._item = functools.lru_cache(maxsize=50_000)(self._make_item)
        self.train: Sequence[Prompt] = Lazy(train_size, functools.partial(self._prompt, "train"))
        self.test: Sequence[Prompt] = Lazy(test_size, functools.partial(self._prompt, "test"))

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """Score a response with the data set's own verifier; a full score is correct.

        Raises:
            LimbeckError: the prompt is not one of this task, or the verifier's score is not a finite number.
        """
        item = self.item(prompt)
        answer = extract_answer(text)
        expected = str(item["answer"]) if self._reveal and "responses" in self.serves else None
        try:
            reward = float(self._train_data.score_answer(answer=answer, entry=item))
        except Exception:  # some verifiers raise on answers that they cannot parse
            return Verdict(0.0, False, describe(text, False, expected=expected))
        if not math.isfinite(reward):
            raise LimbeckError(
                f"the verifier of {self.dataset!r} gave reward {reward} to answer {answer!r}, "
                "which is not finite; use another data set or correct its score_answer."
            )
        correct = reward >= 1 - 1e-6
        return Verdict(reward, correct, describe(text, correct, expected=expected))

    def responses(self, prompt: Prompt) -> tuple[Response, ...]:
        """One demonstration, or nothing if the data set states no answers."""
        if "responses" not in self.serves:
            return ()
        item = self.item(prompt)
        if self._demonstrate is not None:
            return (Response(self._demonstrate(item)),)
        return (Response(f"<answer>{item['answer']}</answer>"),)

    def _states_answers(self) -> bool:
        item = self._train_data[0]
        if item["answer"] is None:
            return False
        return float(self._train_data.score_answer(answer=str(item["answer"]), entry=item)) >= 1 - 1e-6

    @functools.cached_property
    def _test_indices(self) -> tuple[dict[str, int], tuple[int, ...]]:
        """Index in the test stream by question, in order, and the indices alone."""
        chosen: dict[str, int] = {}
        for index in range(_DRAWS_PER_TEST_PROMPT * self._test_size):
            chosen.setdefault(self._test_data[index]["question"], index)
            if len(chosen) == self._test_size:
                return chosen, tuple(chosen.values())
        raise LimbeckError(
            f"test_size={self._test_size} is more than the {len(chosen)} distinct questions found in "
            f"{self.dataset!r}; lower test_size or widen the data set's options."
        )

    def _make_item(self, split: str, index: int) -> dict[str, Any]:
        questions, indices = self._test_indices
        if split == "test":
            item: dict[str, Any] = self._test_data[indices[index]]
            return item
        size = len(self.train)
        for shift in range(size):
            item = self._train_data[(index + shift) % size]
            if item["question"] not in questions:
                return item
        raise LimbeckError(
            f"test_size={self._test_size} leaves no question of {self.dataset!r} to train on: "
            "lower test_size or raise train_size."
        )

    def item(self, prompt: Prompt) -> dict[str, Any]:
        """The data set's item of a prompt: ``question``, ``answer`` and ``metadata``.

        Raises:
            LimbeckError: the prompt is not one of this task.
        """
        split, _, number = prompt.id.partition("/")
        size = {"train": len(self.train), "test": len(self.test)}.get(split, 0)
        if not number.isdecimal() or int(number) >= size:
            raise LimbeckError(f"prompt {prompt.id!r} is not one of task {self.name!r}; verify it with its own task.")
        return self._item(split, int(number))

    def _prompt(self, split: str, index: int) -> Prompt:
        item = self._item(split, index)
        return Prompt(
            id=f"{split}/{index}",
            messages=({"role": "user", "content": item["question"]},),
            privileged={"answer": str(item["answer"])} if "responses" in self.serves else {},
            columns=_columns(item["metadata"]),
        )


class Lazy(Sequence[Prompt]):
    """A sequence of prompts that are generated when they are read; slices are lists."""

    def __init__(self, size: int, make: Callable[[int], Prompt]) -> None:
        self._size, self._make = size, make

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self._make(i) for i in range(*index.indices(self._size))]
        if not -self._size <= index < self._size:
            raise IndexError(index)
        return self._make(index % self._size)

    def __iter__(self) -> Iterator[Prompt]:
        return (self._make(i) for i in range(self._size))


def _columns(metadata: Mapping[str, Any]) -> dict[str, float | str]:
    """The numbers in an item's metadata, without its seed and index."""
    return {
        key: float(value)
        for key, value in metadata.items()
        if key not in ("source_index", "seed") and isinstance(value, int | float) and math.isfinite(value)
    }


def check_options(
    dataset: str, options: Mapping[str, Any], task: str | None = None, further: tuple[str, ...] = ()
) -> None:
    """Refuse an unknown data set, and options that its configuration does not have.

    Args:
        dataset: in reasoning-gym.
        options: given by the user.
        task: its name in messages; default: the name of the data set.
        further: options of the caller, which messages list too.

    Raises:
        LimbeckError: naming the nearest known name.
    """
    registry = _registry()
    if dataset not in registry:
        raise LimbeckError(
            f"task {dataset!r} is not a reasoning-gym data set{nearest(dataset, registry)}; see available_tasks()."
        )
    own = {f.name: f for f in dataclasses.fields(registry[dataset][1]) if f.name not in _OURS}
    known = list(own)
    for option in options:
        if option not in known:
            names = (*further, *_KNOWN, *known)
            raise LimbeckError(
                f"option {option!r} is not one of task {task or dataset!r}{nearest(option, names)}; "
                f"it takes {', '.join(names)}."
            )
        default, value = own[option].default, options[option]
        if isinstance(value, bool) and isinstance(default, int | float) and not isinstance(default, bool):
            raise LimbeckError(f"{option} of task {task or dataset!r} is {value}; give a number (as {default}).")


def _create(dataset: str, size: int, stream: int, options: Mapping[str, Any]) -> Any:
    try:
        # numpy, which some data sets use, takes seeds below 2^32
        seed = stream * _SEED_STRIDE % 2**31
        return _gym().create_dataset(dataset, size=size, seed=seed, **options)
    except (AssertionError, ValueError, TypeError) as error:
        raise LimbeckError(
            f"options {dict(options)} are refused by {dataset!r} ({error}); correct them or leave them out."
        ) from error


def _registry() -> Mapping[str, tuple[type, type]]:
    _gym()
    from reasoning_gym.factory import DATASETS

    registry: Mapping[str, tuple[type, type]] = DATASETS
    return registry


@functools.cache
def _gym() -> Any:
    """The package, imported on first use because that takes seconds; warnings of a dependency are suppressed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import reasoning_gym

    return reasoning_gym
