"""Contexts: what only a reader sees. Text built from what is known of a sequence, put behind the prompt.

A context is a *block* (a Jinja template over evidence). ``reader.given(a, b)`` reads the conversation with the blocks
of a and b behind the last message before the response; the response's tokens are copied, never rendered again, so
every scored token keeps its row. Evidence, by name:

``prompt``    the last message before the response
``reply``     what the sequence itself says (all its turns)
``reward`` ``correct`` ``turns``   its verdict, and how many turns it has
``feedback``  the verifier's text
``sibling``   the first other correct response of the group
``skill``     what a bank of skills chose (state; see ``Bank``)
any other     a privileged field of the prompt (``solution``, ``hint`` ...; ``solution`` falls back to ``answer``), or
              the answer to a question that the context itself asks a model (``ContextQuestion``)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import LimbeckError, nearest

WRITTEN = ("reply", "reward", "correct", "turns", "feedback", "sibling")
"""Evidence that exists only once the sequence is written (and judged)."""


@dataclass(frozen=True)
class ContextQuestion:
    """A question put to a model before the context is built; the answer is evidence under ``name``.

    Attributes:
        name: of the evidence.
        by: role of the model that answers (``teacher``, ``student``, the name of an ``other``).
        question: Jinja template over the evidence known so far.
        number: the last number in the answer becomes a column of that name (a stated confidence); NaN where there is
            none.
        max_tokens: limit of the answer; None takes the run's.
    """

    name: str
    by: str
    question: str
    number: bool = False
    max_tokens: int | None = None


@dataclass(frozen=True)
class Bank:
    """Skills: texts summarised from finished sequences, chosen by UCB (arXiv:2604.10674).

    Attributes:
        explore: c of ``mean + c sqrt(ln N / n)``; sqrt 2 (Skill-SD).
        summary: question, and who answers it, that turns a finished sequence into a skill; None keeps its reply.
        size: skills kept for a prompt; ours.
    """

    explore: float = 2.0**0.5
    summary: ContextQuestion | None = None
    size: int = 8


@dataclass(frozen=True)
class Context:
    """One block of text for a reader.

    Attributes:
        name: how errors, columns and the run's ``contexts`` setting call it.
        block: Jinja template over the evidence.
        reads: evidence it cannot do without.
        enough: ``all`` of ``reads`` must be there, or ``any`` one of them.
        asks: questions that are answered first, in order.
        bank: where ``skill`` comes from.
    """

    name: str
    block: str = ""
    reads: tuple[str, ...] = ()
    enough: str = "all"
    asks: tuple[ContextQuestion, ...] = ()
    bank: Bank | None = None

    def __post_init__(self) -> None:
        if self.enough not in ("all", "any"):
            raise LimbeckError(f"context {self.name!r}: enough={self.enough!r} must be 'all' or 'any'.")

    @property
    def column(self) -> str:
        """The column of a record that says which sequences have it."""
        return f"has {self.name}"

    @property
    def fields(self) -> frozenset[str]:
        """Record fields it is built from, whose source must verify."""
        known = {"sibling": "correct", "reward": "reward", "correct": "correct"}
        return frozenset(known[name] for name in self.reads if name in known) if self.enough == "all" else frozenset()

    @property
    def questions(self) -> tuple[ContextQuestion, ...]:
        """All that it asks models: before it is built, and for its bank."""
        return self.asks if self.bank is None or self.bank.summary is None else (*self.asks, self.bank.summary)

    def saying(self, block: str) -> Context:
        """The same context in other words."""
        return replace(self, block=block)

    def __str__(self) -> str:
        return self.name


plain = Context("plain")
"""The student's own prompt and nothing else: what a reader of a recast record sees instead of the record's prompt."""

solution = Context(
    "solution",
    "Here is a reference solution:\n{{ solution }}\n\nUnderstand it, then solve the problem in your own words.",
    ("solution",),
)
"""OPSD's reference solution."""

hint = Context("hint", "Hint: {{ hint }}", ("hint",))
"""A hint that comes with the problem."""

feedback = Context(
    "feedback",
    "A previous attempt got this feedback:\n{{ feedback }}\n\nCorrectly solve the original question.",
    ("feedback",),
)
"""The verifier's text on the sequence itself."""

sibling_or_feedback = Context(
    "sibling_or_feedback",
    "{% if sibling %}A correct solution:\n{{ sibling }}\n\n"
    "{% else %}Feedback on an earlier attempt:\n{{ feedback }}\n\n{% endif %}"
    "Correctly solve the original question.",
    ("sibling", "feedback"),
    "any",
)
"""SDPO's: the first correct sibling; the environment's feedback only where there is none."""

own_reply = Context("own_reply", "A previous answer:\n{{ reply }}", ("reply",))
"""The sequence's own complete answer (SD-Zero)."""

verdict_phrase = Context(
    "verdict_phrase",
    "{% if correct %}The answer above is right. Rephrase it.{% else %}"
    "The answer above is not correct. Start over and solve the problem.{% endif %}",
    ("correct",),
)
"""SD-Zero's control phrase P_r, chosen by the reward (wording ours)."""

outcome_hint = Context(
    "outcome_hint",
    "{% if correct %}(This approach succeeds.){% else %}(This approach fails; avoid its mistakes.){% endif %}",
    ("correct",),
)
"""TT-OPD's outcome hint (wording ours; the paper's is not published)."""

step_feedback = Context(
    "step_feedback",
    "A critic marked your solution; correct steps are kept word for word, the faulty step is rewritten:\n"
    "{{ step_feedback }}\n\nSolve the problem.",
    ("step_feedback",),
)
"""Step-aligned feedback (arXiv:2606.11173), from a privileged field; ``criticised_by`` has a model write it."""

skill = Context("skill", "Advice from earlier attempts at this task:\n{{ skill }}", ("skill",), bank=Bank())
"""Skill-SD's: the skill that UCB chose."""

draft = Context("draft", "A draft answer:\n{{ reply }}\n\nRewrite it into a correct, complete solution.", ("reply",))
"""TRD's: the student's own draft, to be rewritten."""


tried_again = Context(
    "tried_again",
    "{% if not correct %}{{ feedback or 'That is not right.' }}\nTry again.{% endif %}",
)
"""What is said between two attempts: feedback on a wrong one; silence, which ends the episode, on a right one."""

CONTEXTS = {
    c.name: c
    for c in (
        plain,
        solution,
        hint,
        feedback,
        sibling_or_feedback,
        own_reply,
        verdict_phrase,
        outcome_hint,
        step_feedback,
        skill,
        draft,
    )
}
"""The contexts that a name stands for (and whose words ``contexts.NAME`` replaces, as it does for every other)."""


def as_context(x: Context | str) -> Context:
    """A context from its name.

    Raises:
        LimbeckError: with the nearest name.
    """
    if isinstance(x, Context):
        return x
    if x not in CONTEXTS:
        raise LimbeckError(f"context={x!r}: unknown{nearest(x, CONTEXTS)}; use one of {', '.join(CONTEXTS)}.")
    return CONTEXTS[x]


def summarised_by(role: str) -> Context:
    """Skills that a model of that role writes from the best attempt of a group.

    The three parts are Skill-SD's (success, mistakes, workflow; arXiv:2604.10674); the wording is ours.
    """
    ask = ContextQuestion(
        "skill",
        role,
        "{{ prompt }}\n\nAn attempt, which was {{ 'successful' if correct else 'not successful' }}:\n{{ reply }}\n\n"
        "Write short advice for the next attempt at this task: what worked, which mistakes to avoid, and the steps to "
        "follow. Do not give the answer.",
    )
    return replace(skill, bank=Bank(summary=ask))


def criticised_by(role: str) -> Context:
    """Step-aligned feedback that a model of that role writes from the attempt and the reference solution."""
    ask = ContextQuestion(
        "step_feedback",
        role,
        "{{ prompt }}\n\nAn attempt:\n{{ reply }}\n\nA reference solution:\n{{ solution }}\n\nCopy the attempt's "
        "correct steps word for word and rewrite only the first faulty step. Do not quote the faulty step.",
    )
    return replace(step_feedback, reads=("reply", "solution"), asks=(ask,))


def debate(roles: tuple[str, ...], rounds: int = 2) -> Context:
    """MAD-OPD's debate: each model answers, then revises after reading the others; all state a confidence.

    The last round's confidences are columns ``confidence ROLE`` (0 to 100; NaN where none was stated).
    """
    asks: list[ContextQuestion] = []
    for r in range(rounds):
        for role in roles:
            seen = "".join(f"\n\nAnalyst {other}:\n{{{{ {_said(other, r - 1)} }}}}" for other in roles) if r else ""
            ending = "\n\nAnswer, then state your confidence from 0 to 100 as 'Confidence: N'."
            asks.append(ContextQuestion(_said(role, r), role, "{{ prompt }}" + seen + ending, number=r == rounds - 1))
    transcript = "\n\n".join(f"Analyst {role}:\n{{{{ {_said(role, rounds - 1)} }}}}" for role in roles)
    return Context("debate", f"A debate among analysts:\n{transcript}\n\nNow answer.", asks=tuple(asks))


def _said(role: str, r: int) -> str:
    return f"{role}_{r + 1}"


def confidence_column(role: str, rounds: int = 2) -> str:
    """The column that holds a debater's last stated confidence."""
    return _said(role, rounds - 1)
