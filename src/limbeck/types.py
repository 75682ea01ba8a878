"""The records that flow: Prompt, Rollout, View, Scores.

Shape legend (used in every name of the package)::

    L  all tokens of a record          N  scored tokens (a loss may look at them)
    U  turns                           B  sequences           G  groups
    V  vocabulary                      K  top-k support       H  hidden width
    B1 offsets, B + 1 entries

Records are *ragged*: flat axes joined by integer maps, so there is no padding that could leak into a loss.
Stages write new records and never change old ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from .lazy_torch import Tensor, torch

DATA, STUDENT, TEACHER = -1, 0, 1
"""Values of ``Rollout.author_N``: who wrote a token."""

AUTHORS = {"data": DATA, "student": STUDENT, "teacher": TEACHER}
"""The same by name."""


@dataclass(frozen=True)
class Prompt:
    """One problem as a task states it.

    Attributes:
        id: unique within a task and split.
        messages: chat messages (``{"role": ..., "content": ...}`` and whatever else the template writes, such as
            ``tool_calls``), rendered by the student's chat template.
        privileged: text that only a verifier or a privileged reader may see (``answer``, ``solution``, ``hint``).
        columns: numbers or strings that come with the problem (difficulty, domain).
        chat_template_kwargs: further variables of the chat template (``tools``, ``documents``, ``enable_thinking``).
        where: the file and line it was read from, for messages; empty where a task made it.
    """

    id: str
    messages: tuple[Mapping[str, Any], ...]
    privileged: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, float | str] = field(default_factory=dict)
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False)

    @property
    def at(self) -> str:
        """``FILE, line N: `` in front of a message, or nothing."""
        return f"{self.where}: " if self.where else ""


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a chat message: its content, or its text parts one behind the other; empty for null content."""
    content = message.get("content")
    if isinstance(content, list | tuple):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return str(content or "")


@dataclass(frozen=True)
class Rollout:
    """What was written, by whom, and how it was judged. Frozen and storable.

    Attributes:
        ids_L: int64, prompt and response tokens in reading order, sequences back to back.
        start_B1: int64 offsets of the sequences in ``ids_L``; ``start_B1[-1] == L``.
        root_B: int64, tokens of each sequence's prompt: what the student is conditioned on before anything is written,
            and what a reader with a context reads another prompt in place of.
        pos_N: int64, strictly increasing position in ``ids_L`` of each scored token; never the first of its sequence.
        turn_N: int64, the turn of each scored token.
        seq_U: int64, the sequence of each turn (every sequence has at least one turn, also when it is empty).
        group_B: int64, the group of each sequence; groups are contiguous and numbered from 0.
        author_N: int8, who wrote the token (``DATA``, ``STUDENT``, ``TEACHER``).
        rollout_logp_N: float32 nats, log-prob under the law that wrote the token; NaN for data.
        origin_B: int64 index into ``sources``.
        sources: names of the sources of this record.
        reward_U: float32 reward units, the shaped total; NaN where nothing verified the turn.
        correct_B: bool, kept apart from the reward (masks are keyed on correctness); False where nothing verified.
        truncated_B: bool, the response was cut at the token limit.
        label_B: float32 preference, list target or rank; NaN where the data has none.
        columns_B, columns_N: further numbers per sequence or token, by name.
        prompts: one Prompt per sequence, or empty for records made from plain tensors.
        feedback: one text or None per sequence, or empty.
        drafts: what each sequence was refined from (empty text: nothing), or empty.
    """

    ids_L: Tensor
    start_B1: Tensor
    root_B: Tensor
    pos_N: Tensor
    turn_N: Tensor
    seq_U: Tensor
    group_B: Tensor
    author_N: Tensor
    rollout_logp_N: Tensor
    origin_B: Tensor
    reward_U: Tensor
    correct_B: Tensor
    truncated_B: Tensor
    label_B: Tensor
    sources: tuple[str, ...] = ("main",)
    columns_B: Mapping[str, Tensor] = field(default_factory=dict)
    columns_N: Mapping[str, Tensor] = field(default_factory=dict)
    prompts: tuple[Prompt, ...] = ()
    feedback: tuple[str | None, ...] = ()
    drafts: tuple[str, ...] = ()

    @property
    def n_tokens(self) -> int:
        """N, the number of scored tokens."""
        return self.pos_N.numel()

    @property
    def n_turns(self) -> int:
        """U."""
        return self.seq_U.numel()

    @property
    def n_sequences(self) -> int:
        """B."""
        return self.group_B.numel()

    @property
    def n_groups(self) -> int:
        """G."""
        return int(self.group_B[-1]) + 1 if self.group_B.numel() else 0

    @property
    def token_N(self) -> Tensor:
        """The scored tokens themselves, int64 ``[N]``."""
        return self.ids_L[self.pos_N]

    @property
    def seq_N(self) -> Tensor:
        """Sequence of each scored token, int64 ``[N]``."""
        return self.seq_U[self.turn_N]

    @property
    def length_B(self) -> Tensor:
        """Scored tokens per sequence, int64 ``[B]``."""
        return torch.bincount(self.seq_N, minlength=self.n_sequences)

    def to(self, device: torch.device | str) -> Rollout:
        """The same record with its tensors on ``device``."""
        moved: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, torch.Tensor):
                moved[f.name] = value.to(device)
            elif isinstance(value, Mapping):
                moved[f.name] = {k: v.to(device) for k, v in value.items()}
        return replace(self, **moved)

    def check(self) -> Rollout:
        """Assert the invariants of the record and return it.

        Raises:
            ValueError: naming the field that breaks its promise.
        """
        problems = {
            "start_B1 must rise from 0 to L": int(self.start_B1[0]) == 0
            and int(self.start_B1[-1]) == self.ids_L.numel()
            and bool((self.start_B1.diff() >= 0).all()),
            "pos_N must be strictly increasing": bool((self.pos_N.diff() > 0).all()),
            "pos_N must not name the first token of a sequence": not bool(
                torch.isin(self.pos_N, self.start_B1[:-1]).any()
            ),
            "turn_N must map every scored token to its own sequence": bool(
                (torch.searchsorted(self.start_B1, self.pos_N, right=True) - 1 == self.seq_N).all()
            ),
            "root_B must be tokens of the sequence, before the first scored one": bool(
                ((self.root_B >= 0) & (self.root_B <= self.start_B1.diff())).all()
                and (self.pos_N - self.start_B1[:-1][self.seq_N] >= self.root_B[self.seq_N]).all()
            ),
            "seq_U must name every sequence at least once, in order": bool((self.seq_U.diff() >= 0).all())
            and torch.unique(self.seq_U).numel() == self.n_sequences,
            "group_B must number contiguous groups from 0": torch.equal(
                torch.unique_consecutive(self.group_B), torch.arange(self.n_groups, device=self.group_B.device)
            ),
        }
        for promise, holds in problems.items():
            if not holds:
                raise ValueError(f"broken Rollout: {promise}")
        return self

    def cuts(self, tokens: int) -> Iterator[tuple[int, int]]:
        """Ranges of whole groups with at most ``tokens`` tokens each, prompts included (a larger group stays whole)."""
        size_G = torch.zeros(self.n_groups, dtype=torch.int64)
        size_G.index_add_(0, self.group_B.cpu(), self.start_B1.diff().cpu())
        first = held = 0
        for g, size in enumerate(size_G.tolist()):
            if g > first and held + size > tokens:
                yield first, g
                first, held = g, 0
            held += size
        if self.n_groups:
            yield first, self.n_groups

    def groups(self, first: int, last: int) -> tuple[Rollout, dict[str, slice]]:
        """The sub-record of groups ``first <= g < last``, and where its units lie in this record.

        Returns:
            The sub-record and slices of the parent's axes under the keys ``"N"``, ``"U"``, ``"B"`` and ``"L"``.
        """
        b0, b1 = (int(x) for x in torch.searchsorted(self.group_B, torch.tensor([first, last]).to(self.group_B)))
        u0, u1 = (int(x) for x in torch.searchsorted(self.seq_U, torch.tensor([b0, b1]).to(self.seq_U)))
        n0, n1 = (int(x) for x in torch.searchsorted(self.turn_N, torch.tensor([u0, u1]).to(self.turn_N)))
        l0, l1 = int(self.start_B1[b0]), int(self.start_B1[b1])
        n, u, b = slice(n0, n1), slice(u0, u1), slice(b0, b1)
        part = Rollout(
            ids_L=self.ids_L[l0:l1],
            start_B1=self.start_B1[b0 : b1 + 1] - l0,
            root_B=self.root_B[b],
            pos_N=self.pos_N[n] - l0,
            turn_N=self.turn_N[n] - u0,
            seq_U=self.seq_U[u] - b0,
            group_B=self.group_B[b] - first,
            author_N=self.author_N[n],
            rollout_logp_N=self.rollout_logp_N[n],
            origin_B=self.origin_B[b],
            reward_U=self.reward_U[u],
            correct_B=self.correct_B[b],
            truncated_B=self.truncated_B[b],
            label_B=self.label_B[b],
            sources=self.sources,
            columns_B={k: v[b] for k, v in self.columns_B.items()},
            columns_N={k: v[n] for k, v in self.columns_N.items()},
            prompts=self.prompts[b],
            feedback=self.feedback[b],
            drafts=self.drafts[b],
        )
        return part, {"N": n, "U": u, "B": b, "L": slice(l0, l1)}


def concatenate(records: Sequence[Rollout]) -> Rollout:
    """One record from several; groups, turns and sequences keep their order, sources are merged by name."""
    names = tuple(dict.fromkeys(name for r in records for name in r.sources))
    tokens = turns = sequences = groups = 0
    parts: dict[str, list[Tensor]] = {}
    for r in records:
        renamed = torch.tensor([names.index(s) for s in r.sources], device=r.origin_B.device)
        shifted = {
            "ids_L": r.ids_L,
            "start_B1": r.start_B1[:-1] + tokens,
            "pos_N": r.pos_N + tokens,
            "turn_N": r.turn_N + turns,
            "seq_U": r.seq_U + sequences,
            "group_B": r.group_B + groups,
            "origin_B": renamed[r.origin_B],
        }
        for f in fields(Rollout):
            value = shifted.get(f.name, getattr(r, f.name))
            if isinstance(value, torch.Tensor):
                parts.setdefault(f.name, []).append(value)
        tokens, turns = tokens + r.ids_L.numel(), turns + r.n_turns
        sequences, groups = sequences + r.n_sequences, groups + r.n_groups
    parts["start_B1"].append(torch.tensor([tokens], device=records[0].start_B1.device))
    columns: dict[str, Any] = {axis: _columns(records, axis) for axis in ("columns_B", "columns_N")}
    joined: dict[str, Any] = {k: torch.cat(v) for k, v in parts.items()}
    return Rollout(
        **joined,
        **columns,
        sources=names,
        prompts=tuple(p for r in records for p in r.prompts),
        feedback=tuple(f for r in records for f in r.feedback),
        drafts=tuple(d for r in records for d in r.drafts),
    )


def _columns(records: Sequence[Rollout], axis: str) -> dict[str, Tensor]:
    """Every column of some record; NaN where a record has none of that name."""
    names = dict.fromkeys(name for r in records for name in getattr(r, axis))
    size = {"columns_B": lambda r: r.n_sequences, "columns_N": lambda r: r.n_tokens}[axis]

    def column(r: Rollout, name: str) -> Tensor:
        have: Mapping[str, Tensor] = getattr(r, axis)
        return have[name] if name in have else torch.full((size(r),), torch.nan, device=r.pos_N.device)

    return {name: torch.cat([column(r, name) for r in records]) for name in names}


# ---------------------------------------------------------------- what a reader reports about a record


@dataclass(frozen=True)
class Head:
    """The last linear map of a language model: ``logits = scale * (h @ weight.T + bias)``, soft-capped if asked.

    Attributes:
        weight_VH: float, rows are vocabulary entries.
        bias_V: or None.
        scale: multiplies the logits (Cohere, Granite); 1 for most models.
        softcap: ``c * tanh(logits / c)`` (Gemma 2); None for most models.
    """

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True)
class Sampled:
    """Log-probs of the scored tokens only. Serves ``logp``."""

    logp_N: Tensor


@dataclass(frozen=True)
class TopK:
    """The reader's own k likeliest ids, log-probs normalised over the full vocabulary; the rest is one tail bucket."""

    ids_NK: Tensor
    logp_NK: Tensor


@dataclass(frozen=True)
class Dense:
    """Full logits, one row a scored token: row n predicts ``token_N[n]``."""

    logits_NV: Tensor


@dataclass(frozen=True)
class Hidden:
    """Hidden states with the head that turns them into logits; full ``[N, V]`` logits never exist at once."""

    hidden_NH: Tensor
    head: Head


@dataclass(frozen=True)
class Mixture:
    """A law made of others, row by row; built from views when a loss is taken, never stored.

    Attributes:
        space: ``prob`` adds probabilities, ``log`` adds log-probs (then normalises, so the weights need no sum).
        parts: carriers of full rows, each with its weight and its temperature; a single one is a law at a temperature.
    """

    space: str
    parts: tuple[tuple[Dense | Hidden, float, float], ...]


Carrier = Sampled | TopK | Dense | Hidden


def width_of(carrier: Carrier) -> int | None:
    """The vocabulary of full rows; None where a carrier has only some log-probs."""
    if isinstance(carrier, Dense):
        return carrier.logits_NV.shape[-1]
    return carrier.head.weight_VH.shape[0] if isinstance(carrier, Hidden) else None


@dataclass(frozen=True)
class View:
    """A reader applied to a record: one payload, aligned with the scored tokens (row n scores ``token_N[n]``)."""

    carrier: Carrier
    temperature: float = 1.0
