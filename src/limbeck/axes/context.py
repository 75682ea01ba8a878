"""Contexts: text that only a reader sees, such as a reference solution. It is appended to the prompt.

A context is a *block*, a Jinja template over evidence. ``reader.given(a, b)`` reads the conversation with the blocks
of a and b appended to the last message before the response. The tokens of the response are copied and never rendered
again, so every scored token keeps its row. The evidence, by name:

``prompt``    the last message before the response
``reply``     the text of the sequence itself (all its turns)
``reward`` ``correct`` ``turns``   its reward, whether it is correct, and its number of turns
``feedback``  the text of the verifier
``sibling``   the first other correct response of the group
``skill``     the skill that was chosen from a bank (part of the run's state; see ``Bank``)
any other     a privileged field of the prompt (``solution``, ``hint`` ...; ``solution`` falls back to ``answer``), or
              the answer to a question that the context asks a model (``ContextQuestion``)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import LimbeckError, nearest

WRITTEN = ("reply", "reward", "correct", "turns", "feedback", "sibling")
"""Evidence that exists only after the sequence has been written and verified."""


@dataclass(frozen=True)
class ContextQuestion:
    """A question put to a model before the context is built; the answer is evidence under ``name``.

    Attributes:
        name: the name of the evidence.
        by: the role of the model that answers (``teacher``, ``student``, or the name of an ``other``).
        question: Jinja template over the evidence known so far.
        number: whether the last number in the answer becomes a column of that name (a stated confidence); NaN without
            a number.
        max_tokens: the limit of the answer; None takes the run's.
    """

    name: str
    by: str
    question: str
    number: bool = False
    max_tokens: int | None = None


@dataclass(frozen=True)
class Bank:
    """A bank of skills: texts summarised from finished sequences and chosen by UCB (arXiv:2604.10674).

    Attributes:
        explore: c of ``mean + c sqrt(ln N / n)``; sqrt 2 (Skill-SD).
        summary: the question that turns a finished sequence into a skill; None keeps the reply itself.
        size: the number of skills kept for a prompt; 8 (ours).
    """

    explore: float = 2.0**0.5
    summary: ContextQuestion | None = None
    size: int = 8


@dataclass(frozen=True)
class Context:
    """One block of text for a reader.

    Attributes:
        name: its name in errors, columns and the run's ``contexts`` setting.
        block: Jinja template over the evidence.
        reads: the evidence that it requires.
        enough: ``all`` of ``reads`` must exist, or ``any`` one of them.
        asks: questions to models that are answered first, in order.
        bank: the source of ``skill``.
    """

    name: str
    block: str = ""
    reads: tuple[str, ...] = ()
    enough: str = "all"
    asks: tuple[ContextQuestion, ...] = ()
    bank: Bank | None = None

    def __post_init__(self) -> None:
        if self.enough not in ("all", "any"):
            raise LimbeckError(f"context {self.name!r}: enough is {self.enough!r}; give 'all' or 'any'.")

    @property
    def column(self) -> str:
        """The name of the record's column that marks the sequences for which this context exists."""
        return f"has {self.name}"

    @property
    def fields(self) -> frozenset[str]:
        """Record fields that it is built from; their source must verify responses."""
        known = {"sibling": "correct", "reward": "reward", "correct": "correct"}
        return frozenset(known[name] for name in self.reads if name in known) if self.enough == "all" else frozenset()

    @property
    def questions(self) -> tuple[ContextQuestion, ...]:
        """All questions to models: those before it is built, and the one of its bank."""
        return self.asks if self.bank is None or self.bank.summary is None else (*self.asks, self.bank.summary)

    def saying(self, block: str) -> Context:
        """The same context with another template."""
        return replace(self, block=block)

    def __str__(self) -> str:
        return self.name


plain = Context("plain")
"""The student's own prompt and nothing else, for a reader of a recast record, whose prompt is another one."""

solution = Context(
    "solution",
    "Here is a reference solution:\n{{ solution }}\n\nUnderstand it, then solve the problem in your own words.",
    ("solution",),
)
"""The reference solution (OPSD)."""

hint = Context("hint", "Hint: {{ hint }}", ("hint",))
"""A hint that comes with the problem."""

feedback = Context(
    "feedback",
    "A previous attempt got this feedback:\n{{ feedback }}\n\nCorrectly solve the original question.",
    ("feedback",),
)
"""The text of the verifier on the sequence itself."""

sibling_or_feedback = Context(
    "sibling_or_feedback",
    "{% if sibling %}A correct solution:\n{{ sibling }}\n\n"
    "{% else %}Feedback on an earlier attempt:\n{{ feedback }}\n\n{% endif %}"
    "Correctly solve the original question.",
    ("sibling", "feedback"),
    "any",
)
"""The first correct sibling, or the feedback of the environment where there is none (SDPO)."""

own_reply = Context("own_reply", "A previous answer:\n{{ reply }}", ("reply",))
"""The sequence's own complete answer (SD-Zero)."""

verdict_phrase = Context(
    "verdict_phrase",
    "{% if correct %}The answer above is right. Rephrase it.{% else %}"
    "The answer above is not correct. Start over and solve the problem.{% endif %}",
    ("correct",),
)
"""The control phrase P_r of SD-Zero, chosen by the reward (wording ours)."""

outcome_hint = Context(
    "outcome_hint",
    "{% if correct %}(This approach succeeds.){% else %}(This approach fails; avoid its mistakes.){% endif %}",
    ("correct",),
)
"""The outcome hint of TT-OPD (wording ours; the paper's is not published)."""

step_feedback = Context(
    "step_feedback",
    "A critic marked your solution; correct steps are kept word for word, the faulty step is rewritten:\n"
    "{{ step_feedback }}\n\nSolve the problem.",
    ("step_feedback",),
)
"""Step-aligned feedback (arXiv:2606.11173) from a privileged field; with ``criticised_by`` a model writes it."""

skill = Context("skill", "Advice from earlier attempts at this task:\n{{ skill }}", ("skill",), bank=Bank())
"""The skill that UCB chose (Skill-SD)."""

draft = Context("draft", "A draft answer:\n{{ reply }}\n\nRewrite it into a correct, complete solution.", ("reply",))
"""The student's own draft, which is to be rewritten (TRD)."""

tried_again = Context(
    "tried_again",
    "{% if not correct %}{{ feedback or 'That is not right.' }}\nTry again.{% endif %}",
)
"""The message between two attempts: feedback on a wrong one. A right one gets no message, which ends the episode."""

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
"""Contexts that can be given by name. The setting ``contexts.NAME`` replaces their text, and that of any other."""


def as_context(x: Context | str) -> Context:
    """A context from its name; a ``Context`` is returned as it is.

    Raises:
        LimbeckError: for an unknown name, with the nearest one.
    """
    if isinstance(x, Context):
        return x
    if x not in CONTEXTS:
        raise LimbeckError(f"context={x!r} is unknown{nearest(x, CONTEXTS)}; use one of {', '.join(CONTEXTS)}.")
    return CONTEXTS[x]


def summarised_by(role: str) -> Context:
    """The context of a skill that a model of this role writes from the best attempt of a group.

    The three parts (success, mistakes, workflow) are those of Skill-SD (arXiv:2604.10674); the wording is ours.
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
    """Step-aligned feedback that a model of this role writes from the attempt and the reference solution."""
    ask = ContextQuestion(
        "step_feedback",
        role,
        "{{ prompt }}\n\nAn attempt:\n{{ reply }}\n\nA reference solution:\n{{ solution }}\n\nCopy the attempt's "
        "correct steps word for word and rewrite only the first faulty step. Do not quote the faulty step.",
    )
    return replace(step_feedback, reads=("reply", "solution"), asks=(ask,))


def debate(roles: tuple[str, ...], rounds: int = 2) -> Context:
    """The debate of MAD-OPD: each model answers, then revises after reading the others; all state a confidence.

    The confidences of the last round become columns (0 to 100; NaN where none was stated); see ``confidence_column``.
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
    """The name of the column that holds the last stated confidence of a debater."""
    return _said(role, rounds - 1)
