"""Problems and the responses to them, as ragged records: flat axes joined by integer maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from ..lazy_torch import Tensor, torch

DATA, STUDENT, TEACHER = -1, 0, 1
"""Values of ``Rollout.author_N``: the author of a token."""

AUTHORS = {"data": DATA, "student": STUDENT, "teacher": TEACHER}
"""The same by name."""


@dataclass(frozen=True)
class Prompt:
    """One problem as a task states it.

    Attributes:
        id: unique within a task and split.
        messages: chat messages (``{"role": ..., "content": ...}`` and other keys that the template reads, such as
            ``tool_calls``), rendered by the student's chat template.
        privileged: text that only a verifier or a privileged teacher may see (``answer``, ``solution``, ``hint``).
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


POINTS_TO = {"pos_N": "L", "turn_N": "U", "seq_U": "B", "group_B": "G"}
"""Fields of ``Rollout`` whose values are places on another axis: they move when a record is cut or joined."""


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a chat message: its content, or its text parts joined; empty for null content."""
    content = message.get("content")
    if isinstance(content, list | tuple):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return str(content or "")


@dataclass(frozen=True)
class Rollout:
    """Responses with their authors, log-probs and rewards. Frozen and storable.

    The suffix of a field is its axis. Cutting, selecting, joining, storing and moving to a device go by the suffix, so
    that a new field is declared here and nowhere else.

    Attributes:
        ids_L: int64, prompt and response tokens in reading order, sequences back to back.
        start_B1: int64 offsets of the sequences in ``ids_L``; ``start_B1[-1] == L``.
        root_B: int64, tokens of each sequence's prompt as the student reads it. A reader with a context reads another
            prompt in its place.
        pos_N: int64, strictly increasing position in ``ids_L`` of each scored token; never the first of its sequence.
        turn_N: int64, the turn of each scored token.
        seq_U: int64, the sequence of each turn (every sequence has at least one turn, which may be empty).
        group_B: int64, the group of each sequence; groups are contiguous and numbered from 0.
        author_N: int8, the author of the token (``DATA``, ``STUDENT``, ``TEACHER``).
        rollout_logp_N: float32 nats, log-prob under the behaviour policy that sampled the token; NaN for data.
        origin_B: int64 index into ``sources``.
        reward_U: float32 reward units, the shaped total; NaN where nothing verified the turn.
        correct_B: bool, kept apart from the reward (masks are keyed on correctness); False where nothing verified.
        truncated_B: bool, the response was cut at the token limit.
        label_B: float32 preference, list target or rank; NaN where the data has none.
        sources: names of the sources of this record.
        columns_B, columns_N: further numbers per sequence or token, by name.
        prompts_B: one Prompt per sequence, or empty for records made from plain tensors.
        feedback_B: the verifier's text or None per sequence, or empty.
        drafts_B: the text that each sequence was refined from (empty text: none), or empty.
        said_U: the environment's message after each turn (empty text: none), or empty.
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
    prompts_B: tuple[Prompt, ...] = ()
    feedback_B: tuple[str | None, ...] = ()
    drafts_B: tuple[str, ...] = ()
    said_U: tuple[str, ...] = ()

    # ---- sizes and maps
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

    @cached_property
    def tokens_U(self) -> list[slice]:
        """The scored tokens of each turn, as slices of the axis N."""
        ends = torch.bincount(self.turn_N, minlength=self.n_turns).cumsum(0).tolist()
        return [slice(first, last) for first, last in zip([0, *ends], ends, strict=False)]

    @cached_property
    def turns_B(self) -> list[range]:
        """The turns of each sequence, as ranges of the axis U."""
        ends = torch.bincount(self.seq_U, minlength=self.n_sequences).cumsum(0).tolist()
        return [range(first, last) for first, last in zip([0, *ends], ends, strict=False)]

    @cached_property
    def sequences_G(self) -> list[range]:
        """The sequences of each group, as ranges of the axis B."""
        ends = torch.bincount(self.group_B, minlength=self.n_groups).cumsum(0).tolist()
        return [range(first, last) for first, last in zip([0, *ends], ends, strict=False)]

    def prompt_ids(self, b: int) -> list[int]:
        """Token ids of the prompt of a sequence."""
        start = int(self.start_B1[b])
        ids: list[int] = self.ids_L[start : start + int(self.root_B[b])].tolist()
        return ids

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

    # ---- by suffix: to a device, parts, joins
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
        spans = {"N": slice(n0, n1), "U": slice(u0, u1), "B": slice(b0, b1), "L": slice(l0, l1)}
        before = {"L": l0, "U": u0, "B": b0, "G": first}
        return self._take(spans, lambda _, target: -before[target]), spans

    def select(self, sequences: Sequence[int], groups: Sequence[int] | None = None) -> Rollout:
        """These sequences in this order, each with all of its tokens and turns; groups are numbered from 0.

        Args:
            sequences: numbers on the axis B; a number may occur more than once.
            groups: numbers of the groups that the sequences now belong to, rising; default: the groups they are in.
        """
        chosen = torch.tensor(list(sequences), dtype=torch.int64, device=self.group_B.device)
        given = self.group_B[chosen] if groups is None else torch.tensor(list(groups), device=chosen.device).long()
        places = torch.arange(chosen.numel(), device=chosen.device)
        new_group = torch.unique_consecutive(given, return_inverse=True)[1] if given.numel() else given
        pick, owner = {"B": chosen}, {"B": places}
        move = {"B": places - chosen, "G": new_group - self.group_B[chosen]}
        size_B = {"L": self.start_B1.diff(), "N": self.length_B}
        size_B["U"] = torch.bincount(self.seq_U, minlength=self.n_sequences)
        for axis, size in size_B.items():
            new = size[chosen]
            move[axis] = (new.cumsum(0) - new) - (size.cumsum(0) - size)[chosen]
            owner[axis] = torch.repeat_interleave(places, new)
            pick[axis] = torch.arange(owner[axis].numel(), device=chosen.device) - move[axis][owner[axis]]
        return self._take(pick, lambda axis, target: move[target][owner[axis]])

    def _take(
        self, pick: Mapping[str, slice] | Mapping[str, Tensor], moved: Callable[[str, str], int | Tensor]
    ) -> Rollout:
        """The units ``pick`` of each axis; places on ``target`` that ``axis`` holds move by ``moved(axis, target)``."""
        taken: dict[str, Any] = {}
        for f in fields(self):
            value, axis = getattr(self, f.name), axis_of(f.name)
            if axis == "B1":
                length_B = value.diff()[pick["B"]]
                taken[f.name] = torch.cat([length_B.new_zeros(1), length_B.cumsum(0)])
            elif axis and isinstance(value, torch.Tensor):
                taken[f.name] = value[pick[axis]]
                if f.name in POINTS_TO:
                    taken[f.name] = taken[f.name] + moved(axis, POINTS_TO[f.name])
            elif axis and isinstance(value, Mapping):
                taken[f.name] = {k: v[pick[axis]] for k, v in value.items()}
            elif axis:
                which = pick[axis]
                whole = value[which] if isinstance(which, slice) else tuple(value[i] for i in which.tolist() if value)
                taken[f.name] = whole
        return replace(self, **taken)


def axis_of(name: str) -> str:
    """The axis that the suffix of a field of ``Rollout`` names: ``L``, ``N``, ``U``, ``B`` or ``B1``; empty: none."""
    suffix = name.rpartition("_")[2]
    return suffix if suffix in ("L", "N", "U", "B", "B1") else ""


def concatenate(records: Sequence[Rollout]) -> Rollout:
    """One record from several; groups, turns and sequences keep their order, sources are merged by name."""
    names = tuple(dict.fromkeys(name for r in records for name in r.sources))
    before = {"L": 0, "U": 0, "B": 0, "G": 0}
    parts: dict[str, list[Any]] = {f.name: [] for f in fields(Rollout) if axis_of(f.name)}
    for r in records:
        renamed = torch.tensor([names.index(s) for s in r.sources], device=r.origin_B.device)
        for name, found in parts.items():
            value = getattr(r, name)
            if name == "origin_B":
                value = renamed[value]
            elif name == "start_B1":
                value = value[:-1] + before["L"]
            elif name in POINTS_TO:
                value = value + before[POINTS_TO[name]]
            found.append(value)
        sizes = {"L": r.ids_L.numel(), "U": r.n_turns, "B": r.n_sequences, "G": r.n_groups}
        before = {axis: n + sizes[axis] for axis, n in before.items()}
    parts["start_B1"].append(torch.tensor([before["L"]], device=records[0].start_B1.device))
    joined: dict[str, Any] = {"sources": names}
    for name, found in parts.items():
        if isinstance(found[0], torch.Tensor):
            joined[name] = torch.cat(found)
        elif isinstance(found[0], Mapping):
            sizes_of = [r.n_sequences if axis_of(name) == "B" else r.n_tokens for r in records]
            joined[name] = _joined_columns(found, sizes_of, records[0].pos_N.device)
        else:
            joined[name] = tuple(x for some in found for x in some)
    return Rollout(**joined)


def _joined_columns(
    parts: Sequence[Mapping[str, Tensor]], sizes: Sequence[int], device: torch.device
) -> dict[str, Tensor]:
    """Every column that some record has; NaN where a record lacks it."""
    names = dict.fromkeys(name for columns in parts for name in columns)
    lacking = [torch.full((n,), torch.nan, device=device) for n in sizes]
    return {
        name: torch.cat([columns.get(name, nan) for columns, nan in zip(parts, lacking, strict=True)]) for name in names
    }
