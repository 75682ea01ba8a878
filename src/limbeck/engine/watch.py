"""Faults that keep a run from learning, found in its metrics and reported at once, with a count, and at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..axes.comparisons import compared
from ..space.method import Method

EQUAL = 1e-6
"""Nats a token below which a student counts as equal to its target (ours): rounding of float32 is smaller."""

OFTEN = 0.1
"""Share of the steps from which the last sentence of a run names a fault (ours)."""

Numbers = Mapping[str, Any]


@dataclass(frozen=True)
class Fault:
    """A fault that the metrics of a step can show.

    Attributes:
        what: its key in ``run.json``.
        found: whether a step's metrics show it.
        sentence: the fault and the remedy.
        short: the fault as a clause after "in 3 of 40 steps".
    """

    what: str
    found: Callable[[Numbers], bool]
    sentence: str
    short: str


def _is(key: str, value: float) -> Callable[[Numbers], bool]:
    return lambda numbers: numbers.get(key) == value


FAULTS = (
    Fault(
        "zero_gradient",
        _is("grad_norm", 0.0),
        "the gradient is exactly zero, so the step changes nothing; check that rewards differ among the responses of a "
        "prompt, that the method's masks keep some tokens, and that the student differs from its target.",
        "the gradient was exactly zero",
    ),
    Fault(
        "no_signal",
        _is("groups_with_signal", 0.0),
        "all responses of each prompt got the same reward, so all advantages are 0 and there is no gradient; "
        "take more responses a prompt, easier tasks (harder ones where all responses are right), or a better student.",
        "the rewards were equal in every group",
    ),
    Fault(
        "equal_to_target",
        lambda numbers: any(abs(numbers.get(k, 1.0)) <= EQUAL for k in ("kl_reverse", "kl_forward")),
        "the student equals its teacher (a KL of 0), so there is nothing to distil; name another teacher.",
        "the student was equal to its teacher",
    ),
    Fault(
        "all_truncated",
        _is("truncated", 1.0),
        "every response was cut at the limit of tokens, so no answer was finished; raise max_tokens, or ask for "
        "shorter answers.",
        "every response was cut at the limit",
    ),
    Fault(
        "none_ended",
        lambda numbers: numbers.get("ended") == 0.0,
        "no response ended with an end token, so the student does not learn where to stop; raise max_tokens, and check "
        "that student and teacher use the same chat template.",
        "no response ended with an end token",
    ),
)


@dataclass
class Seen:
    """Number of steps with a fault, and the first of them."""

    first: int
    steps: int = 0


@dataclass
class Watch:
    """Finds faults in each step's metrics. Its state is a function of the lines of ``metrics.jsonl``.

    Attributes:
        rewards: whether the method compares rewards within groups; only then are equal rewards a fault.
        seen: faults by their key.
        steps: number of steps so far.
    """

    rewards: bool
    seen: dict[str, Seen] = field(default_factory=dict)
    steps: int = 0

    def after(self, metrics: Numbers) -> list[str]:
        """Sentences to print after a step: about faults that were found for the 1st, 10th, 100th ... time."""
        self.steps += 1
        messages = []
        for fault in self._found(metrics):
            seen = self.seen.setdefault(fault.what, Seen(int(metrics.get("step", self.steps - 1))))
            seen.steps += 1
            if seen.steps == 1:
                if not (fault.what == "none_ended" and metrics.get("truncated") == 1.0):  # all_truncated says the same
                    messages.append(f"note: step {seen.first}: {fault.sentence}")
            elif str(seen.steps).strip("0") == "1":
                messages.append(f"note: in {seen.steps:,} of {self.steps:,} steps {fault.short}; {_remedy(fault)}")
        return messages

    def recall(self, rows: Iterable[Numbers]) -> None:
        """Restore the state from the metrics of earlier steps."""
        for row in rows:
            self.after(row)

    def _found(self, metrics: Numbers) -> list[Fault]:
        return [f for f in FAULTS if f.found(metrics) and (self.rewards or f.what != "no_signal")]

    @property
    def warnings(self) -> list[dict[str, Any]]:
        """For ``run.json``."""
        known = {f.what: f for f in FAULTS}
        return [
            {"what": what, "sentence": known[what].sentence, "first_step": seen.first, "steps": seen.steps}
            for what, seen in self.seen.items()
        ]

    @property
    def last(self) -> str:
        """A sentence about the faults of the whole run; empty where none was frequent."""
        if not self.steps:
            return ""
        often = [f for f in FAULTS if f.what in self.seen and self.seen[f.what].steps >= OFTEN * self.steps]
        if not often:
            return ""
        counts = {f.what: self.seen[f.what].steps for f in often}
        always = counts.get("zero_gradient") == self.steps
        if counts.get("none_ended") == counts.get("all_truncated"):  # a response that is cut has no end token
            often = [f for f in often if f.what != "none_ended"]
        causes = [f for f in often if f.what != "zero_gradient"]
        clauses = [
            f"{self._when(f)} {f.short}" + (f" ({_remedy(f).rstrip('.')})" if f in causes or not causes else "")
            for f in often
        ]
        opening = "The student has not learnt anything" if always else "Not all went well"
        return f"{opening}: {'; '.join(clauses)}."

    def _when(self, fault: Fault) -> str:
        n = self.seen[fault.what].steps
        return f"in all {n:,} steps" if n == self.steps else f"in {n:,} of {self.steps:,} steps"


def _remedy(fault: Fault) -> str:
    return fault.sentence.partition("; ")[2]


def compares_rewards(method: Method) -> bool:
    """Whether some term compares the rewards of one prompt's responses."""
    return any(node.fields & {"reward", "correct"} for _, t in method.parts for v in t.exprs for node in compared(v))
