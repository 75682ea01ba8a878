"""``lb.objective``: a method's loss on plain ``[B, T, V]`` tensors, inside anybody's trainer.

Nothing here needs the engine. Row t of the logits *scores* token t: shift before you call,
``objective(m)(logits[:, :-1], tokens[:, 1:], mask[:, 1:], ...)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .axes.reader import old, writer
from .errors import LimbeckError, nearest
from .math.statistic import LogProb
from .method import CARRIERS, CLOCKS, Method
from .objective import Batch, Loss, hear, loss
from .types import DATA, STUDENT, Carrier, Dense, Head, Hidden, Rollout, Sampled, TopK, View


@dataclass(frozen=True)
class Outcome:
    """What an objective returns.

    Attributes:
        loss: scalar with gradient.
        metrics: plain numbers: ``loss``, and ``term/i`` for each term without its coefficient.
    """

    loss: Tensor
    metrics: dict[str, float]


class Objective:
    """A method as a function of tensors. Built by ``lb.objective``."""

    def __init__(self, method: Method):
        self.method = method

    def __call__(
        self,
        student_logits: Tensor | None = None,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        student_hidden: Tensor | None = None,
        student_head: Tensor | Head | None = None,
        student_logp: Tensor | None = None,
        old_logp: Tensor | None = None,
        writer_logp: Tensor | None = None,
        reward: Tensor | None = None,
        correct: Tensor | None = None,
        truncated: Tensor | None = None,
        label: Tensor | None = None,
        group: Tensor | None = None,
        source: Sequence[str] | None = None,
        columns: Mapping[str, Tensor] | None = None,
        step: int = 0,
        all_sum: Callable[[Tensor], Tensor] | None = None,
        **readers: Any,
    ) -> Outcome:
        """The loss of one batch.

        Args:
            student_logits: ``[B, T, V]``; row t scores token t (shift before you call).
            student_hidden: ``[B, T, H]``, in place of the logits, with ``student_head``.
            student_head: the ``[V, H]`` weight of the last linear map, or a ``Head``.
            student_logp: ``[B, T]`` nats, in place of the logits: enough for methods that read only sampled log-probs.
            tokens: ``[B, T]`` int64; may be left out with ``student_logp``.
            mask: ``[B, T]``, non-zero where a token counts; default everywhere. What it hides is never touched.
            old_logp: ``[B, T]`` the student at the start of the batch; left out, the batch is on-policy and it is the
                student itself, detached.
            writer_logp: ``[B, T]`` as reported when written; left out, ``old_logp``, else the student itself.
            reward, correct, truncated, label: ``[B]``; ``correct`` defaults to ``reward > 0``.
            group: ``[B]`` group of each sequence, equal numbers together; default one group (pairs: consecutive twos).
            source: name of the source of each sequence, for methods with several.
            columns: further numbers by name, ``[B]`` or ``[B, T]``.
            step: for schedules, from 0.
            all_sum: adds a tensor over processes, so that denominators are global.
            **readers: for each role the method reads, one of ``ROLE_logits`` ``[B, T, V]``, ``ROLE_hidden`` with
                ``ROLE_head``, ``ROLE_topk`` (ids, log-probs) ``[B, T, K]`` each, or ``ROLE_logp`` ``[B, T]``; for
                instance ``teacher_logits``. Whatever they are, no gradient enters them.

        Raises:
            LimbeckError: naming what is missing or misshapen, and the remedy.
        """
        live, shape = _student(student_logits, student_hidden, student_head, student_logp)
        tokens = _tokens(tokens, shape, live)
        source = _sources(source, shape[0], self.method)
        keep = _keep(mask, shape, tokens.device)
        order = _order(group, shape[0], self.method, keep.device)
        rows = _Rows(keep, order)
        carrier = rows.carrier(live)
        _missing(self.method, reward, correct, label)
        _vocabulary(live, rows.pick(tokens), self.method)
        fields = {"reward": reward, "correct": correct, "truncated": truncated, "label": label}
        old_logp = old_logp if old_logp is None else _like(old_logp, shape, "old_logp")
        wrote = writer_logp if writer_logp is not None else old_logp
        record = rows.record(tokens, fields, columns or {}, source, wrote, _dtype(live))
        scores = {role: rows.view(c) for role, c in _readers(readers, shape, self.method, _width(live)).items()}
        method = self.method
        if old_logp is not None:
            scores[old.role] = rows.view(Sampled(old_logp))
        else:
            method = method.on_policy()
        record, scores = _own_clocks(record, scores, method, carrier, wrote is not None)
        heard = hear(method, Batch(record, scores, step, all_sum or (lambda x: x)))
        result: Loss = loss(method, heard, carrier)
        metrics = {f"term/{name}": value for name, value in result.terms.items()}
        return Outcome(result.loss, {"loss": float(result.loss.detach()), **metrics})


def objective(method: Method) -> Objective:
    """The method's loss as a function of plain tensors; see ``Objective.__call__`` for its arguments."""
    return Objective(method)


# ---------------------------------------------------------------- reading the arguments


def _student(
    logits: Tensor | None, hidden: Tensor | None, head: Tensor | Head | None, logp: Tensor | None
) -> tuple[Carrier, torch.Size]:
    """The live student's carrier on ``[B, T, ...]`` and ``(B, T)``."""
    given = [x for x in (logits, hidden, logp) if x is not None]
    if len(given) != 1:
        raise LimbeckError(
            f"{len(given)} of student_logits, student_hidden and student_logp were given; give exactly one."
        )
    wanted = 2 if logp is not None else 3
    if given[0].dim() != wanted:
        name = "student_logp [B, T]" if logp is not None else "student_logits [B, T, V] or student_hidden [B, T, H]"
        raise LimbeckError(f"{name} was expected, but its shape is {tuple(given[0].shape)}.")
    shape = given[0].shape[:2]
    if logits is not None:
        return Dense(logits), shape
    if logp is not None:
        return Sampled(logp), shape
    assert hidden is not None
    if head is None:
        raise LimbeckError("student_hidden needs student_head, the [V, H] weight of the last linear map (or a Head).")
    head = head if isinstance(head, Head) else Head(head)
    return Hidden(hidden, _fitting(hidden, head, "student")), shape


def _fitting(hidden: Tensor, head: Head, role: str) -> Head:
    if head.weight_VH.dim() != 2 or head.weight_VH.shape[1] != hidden.shape[-1]:
        shape = tuple(head.weight_VH.shape)
        raise LimbeckError(
            f"{role}_head has shape {shape}, but {role}_hidden has width {hidden.shape[-1]}; give [V, H]."
        )
    return head


def _width(live: Carrier) -> int | None:
    """The student's vocabulary; None where only log-probs were given."""
    if isinstance(live, Dense):
        return live.logits_NV.shape[-1]
    return live.head.weight_VH.shape[0] if isinstance(live, Hidden) else None


def _vocabulary(live: Carrier, token_N: Tensor, method: Method) -> None:
    width = _width(live)
    if width is not None and bool(((token_N < 0) | (token_N >= width)).any()):
        raise LimbeckError(f"tokens holds ids outside the student's {width}; mask what must not count.")
    for k in (getattr(term.surrogate, "top_k", None) for _, term in method.parts):
        if k is not None and width is not None and k > width:
            raise LimbeckError(f"top_k={k} is more than the vocabulary's {width} entries; ask for at most {width}.")


def _sources(source: Sequence[str] | None, batch: int, method: Method) -> list[str]:
    """The name of the source of each sequence."""
    names, called = list(method.sources), method.name or "this method"
    if source is None:
        if len(names) > 1:
            raise LimbeckError(f"{called} has several sources; give source=, one of {sorted(names)} per sequence.")
        return names * batch
    if len(source) != batch:
        raise LimbeckError(f"source names {len(source)} sequences, but there are {batch}; give one name each.")
    for name in set(source) - set(names):
        raise LimbeckError(f"source={name!r}: unknown{nearest(name, names)}; {called} has {sorted(names)}.")
    return list(source)


def _dtype(live: Carrier) -> torch.dtype:
    """What constants, shares and totals are held in: float64 for a float64 student, else float32."""
    if isinstance(live, Hidden):
        x = live.hidden_NH
    else:
        x = live.logits_NV if isinstance(live, Dense) else live.logp_N if isinstance(live, Sampled) else live.logp_NK
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _tokens(tokens: Tensor | None, shape: torch.Size, live: Carrier) -> Tensor:
    if tokens is None:
        if isinstance(live, Sampled):
            return torch.zeros(shape, dtype=torch.int64, device=live.logp_N.device)
        raise LimbeckError("tokens is missing: give the [B, T] ids that the student's rows score.")
    return _like(tokens, shape, "tokens").long()


def _like(x: Tensor, shape: torch.Size, name: str, dims: int = 2) -> Tensor:
    if x.shape[:2] != shape or x.dim() != dims:
        form = "[B, T]" if dims == 2 else "[B, T, ...]"
        raise LimbeckError(
            f"{name} has shape {tuple(x.shape)}, but the student's is {tuple(shape)}; give {form} with row t scoring "
            "token t (shift before you call)."
        )
    return x


def _keep(mask: Tensor | None, shape: torch.Size, device: torch.device) -> Tensor:
    return torch.ones(shape, dtype=torch.bool, device=device) if mask is None else _like(mask, shape, "mask").bool()


def _order(group: Tensor | None, batch: int, method: Method, device: torch.device) -> tuple[Tensor, Tensor]:
    """The order that puts groups together, and the group of each sequence in that order."""
    if group is None:
        paired = any(s.labelled for s in method.sources.values())
        group = torch.arange(batch) // 2 if paired else torch.zeros(batch, dtype=torch.int64)
    if group.shape != (batch,):
        raise LimbeckError(f"group has shape {tuple(group.shape)}, but there are {batch} sequences; give one each.")
    numbers, order = group.to(device).sort(stable=True)
    return order, torch.unique_consecutive(numbers, return_inverse=True)[1]


@dataclass
class _Rows:
    """Where the kept tokens of a ``[B, T]`` batch lie, in the order of the record."""

    keep_BT: Tensor
    grouping: tuple[Tensor, Tensor]

    def __post_init__(self) -> None:
        self.order, self.group_B = self.grouping
        in_order = self.keep_BT[self.order]
        self.seq_N, self.t_N = in_order.nonzero(as_tuple=True)
        self.b_N = self.order[self.seq_N]

    def pick(self, x: Tensor) -> Tensor:
        """``[N, ...]`` from ``[B, T, ...]``."""
        return x[self.b_N, self.t_N]

    def carrier(self, c: Any) -> Any:
        """A carrier on the scored tokens from one on ``[B, T]``."""
        if isinstance(c, Dense):
            return Dense(self.pick(c.logits_NV))
        if isinstance(c, Hidden):
            return Hidden(self.pick(c.hidden_NH), c.head)
        if isinstance(c, TopK):
            return TopK(self.pick(c.ids_NK), self.pick(c.logp_NK))
        return Sampled(self.pick(c.logp_N))

    def view(self, c: Carrier) -> View:
        """The same, detached."""
        return View(_detached(self.carrier(c)))

    def record(
        self,
        tokens: Tensor,
        fields: Mapping[str, Tensor | None],
        columns: Mapping[str, Tensor],
        source: Sequence[str] | None,
        writer_logp: Tensor | None,
        dtype: torch.dtype,
    ) -> Rollout:
        """The record of the batch; each sequence opens with one token that nobody scores."""
        B, device = self.keep_BT.shape[0], self.keep_BT.device
        for name, value in {**fields, **columns}.items():
            per_token = name in columns and value is not None and value.shape == self.keep_BT.shape
            if value is not None and value.shape != (B,) and not per_token:
                raise LimbeckError(f"{name} has shape {tuple(value.shape)}, but there are {B} sequences; give [{B}].")
        count_B = self.keep_BT[self.order].sum(-1)
        start_B1 = torch.cat([count_B.new_zeros(1), (count_B + 1).cumsum(0)])
        ids = torch.zeros(int(start_B1[-1]), dtype=torch.int64, device=device)
        pos_N = torch.arange(self.seq_N.numel(), device=device) + self.seq_N + 1
        ids[pos_N] = self.pick(tokens)
        names = tuple(dict.fromkeys(source)) if source is not None else ("main",)
        origin = [names.index(source[int(b)]) for b in self.order] if source is not None else [0] * B
        if any(v is not None and v.dtype == torch.float64 for v in fields.values()):
            dtype = torch.float64
        nan_B = torch.full((B,), torch.nan, dtype=dtype, device=device)
        told = {k: nan_B if v is None else v.detach().to(device)[self.order].to(dtype) for k, v in fields.items()}
        correct = fields["correct"]
        logp = None if writer_logp is None else _like(writer_logp, self.keep_BT.shape, "writer_logp").detach()
        return Rollout(
            ids_L=ids,
            start_B1=start_B1,
            pos_N=pos_N,
            turn_N=self.seq_N,
            seq_U=torch.arange(B, device=device),
            group_B=self.group_B,
            author_N=torch.full_like(self.seq_N, DATA if logp is None else STUDENT, dtype=torch.int8),
            writer_logp_N=torch.full(self.seq_N.shape, torch.nan, device=device) if logp is None else self.pick(logp),
            origin_B=torch.tensor(origin, dtype=torch.int64, device=device),
            reward_U=told["reward"],
            correct_B=told["correct"].bool() if correct is not None else told["reward"] > 0,
            truncated_B=told["truncated"].nan_to_num(0.0).bool(),
            label_B=told["label"],
            sources=names,
            columns_B={k: v.detach().to(device)[self.order] for k, v in columns.items() if v.dim() == 1},
            columns_N={k: self.pick(v.detach().to(device)) for k, v in columns.items() if v.dim() == 2},
        )


def _detached(c: Carrier) -> Carrier:
    if isinstance(c, Dense):
        return Dense(c.logits_NV.detach())
    if isinstance(c, Hidden):
        bias = c.head.bias_V
        head = Head(c.head.weight_VH.detach(), None if bias is None else bias.detach(), c.head.scale, c.head.softcap)
        return Hidden(c.hidden_NH.detach(), head)
    if isinstance(c, TopK):
        return TopK(c.ids_NK, c.logp_NK.detach())
    return Sampled(c.logp_N.detach())


_CARRIER_NAMES = ("logits", "hidden", "head", "topk", "logp")


def _readers(given: Mapping[str, Any], shape: torch.Size, method: Method, width: int | None) -> dict[str, Carrier]:
    """Carriers by role from ``ROLE_logits=...`` and its like."""
    roles = {r for r in method.roles if any(a != "text" for a in method.roles[r])}
    names = [f"{role}_{c}" for role in sorted(roles) for c in _CARRIER_NAMES]
    carriers: dict[str, Carrier] = {}
    for key, value in given.items():
        role, _, kind = key.rpartition("_")
        if kind not in _CARRIER_NAMES or not role:
            raise LimbeckError(f"unknown argument {key!r}{nearest(key, names)}; this method reads {sorted(roles)}.")
        if role in CLOCKS:
            raise LimbeckError(f"{key}: the student's other clocks are log-probs; give {role}_logp=, [B, T].")
        if value is None or kind == "head":
            continue
        _like(value[0] if kind == "topk" else value, shape, key, 2 if kind == "logp" else 3)
        if kind == "logits":
            _same_vocabulary(key, value.shape[-1], width, method)
            carriers[role] = Dense(value)
        elif kind == "logp":
            carriers[role] = Sampled(value)
        elif kind == "topk":
            carriers[role] = TopK(value[0].long(), value[1])
        else:
            head = given.get(f"{role}_head")
            if head is None:
                raise LimbeckError(f"{key} needs {role}_head, the [V, H] weight of its last linear map (or a Head).")
            carriers[role] = Hidden(value, _fitting(value, head if isinstance(head, Head) else Head(head), role))
            _same_vocabulary(f"{role}_head", _width(carriers[role]), width, method)
    _check_served(method, carriers, roles)
    return carriers


def _same_vocabulary(name: str, theirs: int | None, ours: int | None, method: Method) -> None:
    if ours is not None and theirs != ours and "dense" in method.reads(name.rpartition("_")[0]):
        raise LimbeckError(
            f"{name} has a vocabulary of {theirs}, but the student's has {ours}; cut or pad one of them (with -inf)."
        )


def _check_served(method: Method, carriers: Mapping[str, Carrier], roles: set[str]) -> None:
    name = method.name or "this method"
    for role in sorted(roles):
        asked = method.reads(role)
        if role not in carriers:
            enough = "_logits (or _hidden with _head)" if "dense" in asked else "_logp"
            enough = "_topk" if "topk" in asked else enough
            raise LimbeckError(f"{name} reads {', '.join(sorted(asked))} from {role}; give {role}{enough}.")
    kinds = {Dense: "dense", Hidden: "dense", TopK: "topk", Sampled: "sampled"}
    read_only = {role: kinds[type(c)] for role, c in carriers.items() if role in roles}
    able = {role: CARRIERS[kind] | {"text"} for role, kind in read_only.items()}
    written = {role: frozenset({"text"}) for role in method.roles if role not in roles}
    method.validate(**able, **written)


def _missing(method: Method, reward: Tensor | None, correct: Tensor | None, label: Tensor | None) -> None:
    name = method.name or "this method"
    if "reward" in method.fields and reward is None:
        raise LimbeckError(f"{name} reads rewards; give reward=, one number per sequence.")
    if "correct" in method.fields and correct is None and reward is None:
        raise LimbeckError(f"{name} reads correctness; give correct=, one boolean per sequence.")
    if "label" in method.fields and label is None:
        raise LimbeckError(f"{name} reads preference labels; give label=, 1 for the chosen and 0 for the rejected one.")
    for field, value in (("reward", reward), ("label", label)):
        if value is not None and field in method.fields and not bool(torch.isfinite(value).all()):
            first = int((~torch.isfinite(value)).nonzero()[0])
            raise LimbeckError(f"{field} is {float(value[first])} at sequence {first}; give finite numbers.")


def _own_clocks(
    record: Rollout, scores: dict[str, View], method: Method, live: Carrier, written: bool
) -> tuple[Rollout, dict[str, View]]:
    """Where the student's other clocks were not given, they are the student itself, detached."""
    now = {old.role: View(_detached(live))}
    if method.reads(old.role) and old.role not in scores:
        scores = {**scores, **now}
    if method.reads(writer.role) and not written:
        record = replace(record, writer_logp_N=Batch(record, now).read(old, LogProb(), None))
    return record, scores
