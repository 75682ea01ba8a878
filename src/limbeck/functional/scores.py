"""The scores that ``lb.objective`` is given, the student's and those of its teachers: read, checked and refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..axes.reader import FROZEN, POLICIES, Reader
from ..errors import LimbeckError, nearest, shown
from ..space.abilities import SERVED, refuse_lacking
from ..space.method import Method
from ..types import Dense, Head, Hidden, Sampled, Scores, TopK
from .arguments import Given, shaped, tensor, whole_numbers


def read_student(logits: Given, hidden: Given, head: Any, logp: Given) -> tuple[Dense | Hidden | Sampled, torch.Size]:
    """The live student's scores on ``[B, T, ...]`` and ``(B, T)``."""
    forms = {"student_logits": logits, "student_hidden": hidden, "student_logp": logp}
    given = {name: tensor(name, x, floats=True) for name, x in forms.items() if x is not None}
    if len(given) != 1:
        raise LimbeckError(f"{len(given)} of {', '.join(forms)} were given; give exactly one.")
    ((name, x),) = given.items()
    if x.dim() != (2 if logp is not None else 3):
        name = "student_logp [B, T]" if logp is not None else "student_logits [B, T, V] or student_hidden [B, T, H]"
        raise LimbeckError(f"{name} was expected, but its shape is {tuple(x.shape)}.")
    if not all(x.shape[2:]):
        raise LimbeckError(
            f"{name} has shape {tuple(x.shape)}, whose last dimension is empty; give at least one entry."
        )
    if logits is not None:
        return Dense(x), x.shape[:2]
    return Sampled(x) if logp is not None else Hidden(x, _head("student", head, x)), x.shape[:2]


def _head(role: str, head: Any, hidden: Tensor) -> Head:
    """A head from a ``Head``, a linear layer or a weight."""
    if head is None:
        raise LimbeckError(
            f"{role}_hidden needs {role}_head, the [V, H] weight of the last linear map (or a Head, or an nn.Linear)."
        )
    if isinstance(head, torch.nn.Linear):
        head = Head(head.weight, head.bias)
    if isinstance(head, torch.nn.Module):
        raise LimbeckError(f"{role}_head is a {type(head).__name__}; give its [V, H] weight, a Head or an nn.Linear.")
    head = head if isinstance(head, Head) else Head(tensor(f"{role}_head", head))
    weight = tensor(f"{role}_head", head.weight_VH, hidden.device, floats=True)
    bias = None if head.bias_V is None else tensor(f"{role}_head: bias", head.bias_V, hidden.device, floats=True)
    head = replace(head, weight_VH=weight, bias_V=bias)
    if head.bias_V is not None and head.bias_V.shape != head.weight_VH.shape[:1]:
        raise LimbeckError(
            f"{role}_head has a bias of shape {tuple(head.bias_V.shape)}, but its weight is "
            f"{tuple(head.weight_VH.shape)}; give one bias per entry of the vocabulary."
        )
    return _fitting(hidden, head, role)


def _fitting(hidden: Tensor, head: Head, role: str) -> Head:
    if not head.weight_VH.numel() or head.weight_VH.dim() != 2 or head.weight_VH.shape[1] != hidden.shape[-1]:
        shape = tuple(head.weight_VH.shape)
        raise LimbeckError(
            f"{role}_head has shape {shape}, but {role}_hidden has width {hidden.shape[-1]}; give [V, H]."
        )
    return head


_ENDINGS = ("logits", "hidden", "head", "topk", "logp")
_KNOWN_ROLES = frozenset(reader.role for reader in FROZEN)
"""Roles accepted for every method, and ignored by methods that do not read them."""


def read_scores(given: Mapping[str, Any], shape: torch.Size, method: Method, live: Scores) -> dict[str, Scores]:
    """Scores by the key of their reader, from ``NAME_logits=...`` and its like; what is not read is left out."""
    slots = method.slots
    scores: dict[str, Scores] = {}
    names: dict[str, str] = {}
    for key, value in given.items():
        slot = _slot(key, method, slots)
        if value is None or key.endswith("_head") or slot not in slots:
            continue
        if slot in names:
            raise LimbeckError(f"{names[slot]} and {key} were both given; give one, logits or hidden serve everything.")
        names[slot] = key
        scores[slots[slot].key] = _scores(key, value, given.get(f"{slot}_head"), shape, live)
    _check_served(method, scores)
    return scores


def _slot(key: str, method: Method, slots: Mapping[str, Reader]) -> str:
    """The view that ``NAME_logits`` is of; an unknown name is refused."""
    slot, _, kind = key.rpartition("_")
    names = [f"{s}_{c}" for s in slots for c in _ENDINGS]
    if kind in _ENDINGS and slot in {policy.slot for policy in POLICIES} and slot not in slots:
        raise LimbeckError(f"{key}: the student's earlier policies are given as log-probs; give {slot}_logp=, [B, T].")
    if kind not in _ENDINGS or slot not in _KNOWN_ROLES | set(slots) | set(method.roles):
        raise LimbeckError(f"unknown argument {key!r}{nearest(key, names)}; this method reads {sorted(slots)}.")
    return slot


def _scores(key: str, value: Given, head: Any, shape: torch.Size, live: Scores) -> Scores:
    role, _, kind = key.rpartition("_")
    device = live.device
    if kind == "topk":
        return _topk(key, value, shape, device)
    x = shaped(tensor(key, value, device, floats=True), shape, key, 2 if kind == "logp" else 3)
    if kind == "logp":
        return Sampled(x)
    scores: Dense | Hidden = Dense(x) if kind == "logits" else Hidden(x, _head(role, head, x))
    _same_vocabulary(key if kind == "logits" else f"{role}_head", scores.width, live.width)
    return scores


def _topk(key: str, value: Any, shape: torch.Size, device: torch.device) -> TopK:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise LimbeckError(f"{key} is {shown(value)}; give (ids, log-probs), each [B, T, K].")
    ids = whole_numbers(f"{key}: ids", tensor(f"{key}: ids", value[0], device))
    logp = tensor(f"{key}: log-probs", value[1], device, floats=True)
    shaped(ids, shape, key, 3)
    if not ids.shape[-1]:
        raise LimbeckError(f"{key} has lists of no entry; give (ids, log-probs), each [B, T, K], with K at least 1.")
    if ids.shape != logp.shape:
        raise LimbeckError(
            f"{key}: ids are {tuple(ids.shape)} and log-probs of shape {tuple(logp.shape)}; give both [B, T, K]."
        )
    return TopK(ids, logp)


def _same_vocabulary(name: str, theirs: int | None, ours: int | None) -> None:
    if ours is not None and theirs != ours:
        raise LimbeckError(
            f"{name} has a vocabulary of {theirs}, but the student's has {ours}; cut or pad one of them (with -inf)."
        )


def _check_served(method: Method, scores: Mapping[str, Scores]) -> None:
    kinds: dict[type[Scores], str] = {Dense: "dense", Hidden: "dense", TopK: "topk", Sampled: "sampled"}
    for slot, reader in method.slots.items():
        asked = method.views[reader]
        if slot == "old" and reader.key not in scores:
            continue  # without it the batch is on-policy
        if reader.key not in scores:
            enough = "_logits (or _hidden with _head)" if "dense" in asked else "_logp"
            enough = "_topk" if asked & {"topk", "at"} and "dense" not in asked else enough
            raise LimbeckError(
                f"{method.name or 'this method'} reads {', '.join(sorted(asked))} from {reader}; give {slot}{enough}."
            )
        kind = kinds[type(scores[reader.key])]
        able = SERVED[kind] | ({"at"} if kind == "topk" else set())  # the ids are given, whichever model chose them
        refuse_lacking(method.name, str(reader), asked, able, kind)
