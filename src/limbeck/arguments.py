"""The arguments of ``lb.objective``: read, brought to one form, and refused by name where they mean nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import LimbeckError, nearest
from .method import CARRIERS, CLOCKS, Method
from .types import Carrier, Dense, Head, Hidden, Sampled, TopK


def read_student(
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


def width_of(live: Carrier) -> int | None:
    """The student's vocabulary; None where only log-probs were given."""
    if isinstance(live, Dense):
        return live.logits_NV.shape[-1]
    return live.head.weight_VH.shape[0] if isinstance(live, Hidden) else None


def refuse_vocabulary(live: Carrier, token_N: Tensor, method: Method) -> None:
    width = width_of(live)
    if width is not None and bool(((token_N < 0) | (token_N >= width)).any()):
        raise LimbeckError(f"tokens holds ids outside the student's {width}; mask what must not count.")
    for support in (getattr(term.surrogate, "support", None) for _, term in method.parts):
        if support is not None and support.by == "target" and width is not None and support.k > width:
            raise LimbeckError(
                f"top_k={support.k} is more than the vocabulary's {width} entries; ask for at most {width}."
            )


def read_sources(source: Sequence[str] | None, batch: int, method: Method) -> list[str]:
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


def dtype_of(live: Carrier) -> torch.dtype:
    """What constants, shares and totals are held in: float64 for a float64 student, else float32."""
    if isinstance(live, Hidden):
        x = live.hidden_NH
    else:
        x = live.logits_NV if isinstance(live, Dense) else live.logp_N if isinstance(live, Sampled) else live.logp_NK
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def read_tokens(tokens: Tensor | None, shape: torch.Size, live: Carrier) -> Tensor:
    if tokens is None:
        if isinstance(live, Sampled):
            return torch.zeros(shape, dtype=torch.int64, device=live.logp_N.device)
        raise LimbeckError("tokens is missing: give the [B, T] ids that the student's rows score.")
    return shaped(tokens, shape, "tokens").long()


def shaped(x: Tensor, shape: torch.Size, name: str, dims: int = 2) -> Tensor:
    if x.shape[:2] != shape or x.dim() != dims:
        form = "[B, T]" if dims == 2 else "[B, T, ...]"
        raise LimbeckError(
            f"{name} has shape {tuple(x.shape)}, but the student's is {tuple(shape)}; give {form} with row t scoring "
            "token t (shift before you call)."
        )
    return x


def read_mask(mask: Tensor | None, shape: torch.Size, device: torch.device) -> Tensor:
    return torch.ones(shape, dtype=torch.bool, device=device) if mask is None else shaped(mask, shape, "mask").bool()


def read_groups(group: Tensor | None, batch: int, method: Method, device: torch.device) -> tuple[Tensor, Tensor]:
    """The order that puts groups together, and the group of each sequence in that order."""
    if group is None:
        paired = any(s.labelled for s in method.sources.values())
        group = torch.arange(batch) // 2 if paired else torch.zeros(batch, dtype=torch.int64)
    if group.shape != (batch,):
        raise LimbeckError(f"group has shape {tuple(group.shape)}, but there are {batch} sequences; give one each.")
    numbers, order = group.to(device).sort(stable=True)
    return order, torch.unique_consecutive(numbers, return_inverse=True)[1]


_CARRIER_NAMES = ("logits", "hidden", "head", "topk", "logp")


def read_carriers(given: Mapping[str, Any], shape: torch.Size, method: Method, width: int | None) -> dict[str, Carrier]:
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
        shaped(value[0] if kind == "topk" else value, shape, key, 2 if kind == "logp" else 3)
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
            _same_vocabulary(f"{role}_head", width_of(carriers[role]), width, method)
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


def refuse_missing(method: Method, reward: Tensor | None, correct: Tensor | None, label: Tensor | None) -> None:
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
