"""The arguments of ``lb.objective``: read, brought to one form, and refused by name where they mean nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor

from .axes.reader import Reader, init, ref, teacher
from .errors import LimbeckError, expect, nearest, shown
from .method import Method
from .refusals import CARRIERS, CLOCKS, refuse_lacking
from .types import Carrier, Dense, Head, Hidden, Sampled, TopK

Given = Tensor | Any
"""A tensor, or what becomes one: an array, nested lists of numbers."""


def tensor(name: str, x: Given, device: torch.device | None = None, floats: bool = False) -> Tensor:
    """Any argument as a tensor; ``floats`` refuses whole numbers, which are ids more often than log-probs."""
    if not isinstance(x, Tensor):
        try:
            x = torch.as_tensor(x)
        except (TypeError, ValueError, RuntimeError):
            raise LimbeckError(
                f"{name} is {shown(x)}; give a tensor, an array, or lists of numbers that are equally long."
            ) from None
    if floats and not x.is_floating_point():
        raise LimbeckError(f"{name} has dtype {x.dtype}; give floating-point numbers.")
    return x if device is None else x.to(device)


def _whole(name: str, x: Tensor) -> Tensor:
    """Ids as int64; 2.7 is no id, and truncating it would hide that."""
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise LimbeckError(f"{name} has dtype {x.dtype}; give whole numbers.")
    return x.long()


def read_student(logits: Given, hidden: Given, head: Any, logp: Given) -> tuple[Carrier, torch.Size]:
    """The live student's carrier on ``[B, T, ...]`` and ``(B, T)``."""
    forms = {"student_logits": logits, "student_hidden": hidden, "student_logp": logp}
    given = {name: tensor(name, x, floats=True) for name, x in forms.items() if x is not None}
    if len(given) != 1:
        raise LimbeckError(f"{len(given)} of {', '.join(forms)} were given; give exactly one.")
    ((name, x),) = given.items()
    if x.dim() != (2 if logp is not None else 3):
        name = "student_logp [B, T]" if logp is not None else "student_logits [B, T, V] or student_hidden [B, T, H]"
        raise LimbeckError(f"{name} was expected, but its shape is {tuple(x.shape)}.")
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
    head = head if isinstance(head, Head) else Head(tensor(f"{role}_head", head, hidden.device))
    tensor(f"{role}_head", head.weight_VH, floats=True)
    if head.bias_V is not None and head.bias_V.shape != head.weight_VH.shape[:1]:
        raise LimbeckError(
            f"{role}_head has a bias of shape {tuple(head.bias_V.shape)}, but its weight is "
            f"{tuple(head.weight_VH.shape)}; give one bias per entry of the vocabulary."
        )
    return _fitting(hidden, head, role)


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


def refuse_vocabulary(live: Carrier, token_N: Tensor) -> None:
    width = width_of(live)
    if width is not None and bool(((token_N < 0) | (token_N >= width)).any()):
        raise LimbeckError(f"tokens holds ids outside the student's {width}; mask what must not count.")


def read_sources(source: Sequence[str] | str | None, batch: int, method: Method) -> list[str]:
    """The name of the source of each sequence; one name is everybody's."""
    names, called = list(method.sources), method.name or "this method"
    source = [source] * batch if isinstance(source, str) else source
    if source is not None and not (isinstance(source, list | tuple) and all(isinstance(s, str) for s in source)):
        raise LimbeckError(f"source is {shown(source)}; give a list with one of {sorted(names)} per sequence.")
    if source is None:
        if len(names) > 1:
            raise LimbeckError(f"{called} has several sources; give source=, one of {sorted(names)} per sequence.")
        return names * batch
    if len(source) != batch:
        raise LimbeckError(f"source names {len(source)} sequences, but there are {batch}; give one name each.")
    for name in set(source) - set(names):
        raise LimbeckError(f"source={name!r}: unknown{nearest(name, names)}; {called} has {sorted(names)}.")
    return list(source)


def _payload(live: Carrier) -> Tensor:
    if isinstance(live, Hidden):
        return live.hidden_NH
    return live.logits_NV if isinstance(live, Dense) else live.logp_N if isinstance(live, Sampled) else live.logp_NK


def device_of(live: Carrier) -> torch.device:
    """Where the student is; everything else is brought there."""
    return _payload(live).device


def dtype_of(live: Carrier) -> torch.dtype:
    """What constants, shares and totals are held in: float64 for a float64 student, else float32."""
    return torch.float64 if _payload(live).dtype == torch.float64 else torch.float32


def read_tokens(tokens: Given, shape: torch.Size, live: Carrier) -> Tensor:
    if tokens is None:
        if isinstance(live, Sampled):
            return torch.zeros(shape, dtype=torch.int64, device=device_of(live))
        raise LimbeckError("tokens is missing: give the [B, T] ids that the student's rows score.")
    return _whole("tokens", shaped(tensor("tokens", tokens, device_of(live)), shape, "tokens"))


def shaped(x: Tensor, shape: torch.Size, name: str, dims: int = 2) -> Tensor:
    if x.shape[:2] != shape or x.dim() != dims:
        form = "[B, T]" if dims == 2 else "[B, T, ...]"
        raise LimbeckError(
            f"{name} has shape {tuple(x.shape)}, but the student's is {tuple(shape)}; give {form} with row t scoring "
            "token t (shift before you call)."
        )
    return x


def read_mask(mask: Given, shape: torch.Size, device: torch.device) -> Tensor:
    """Which tokens count, ``[B, T]`` bool."""
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=device)
    mask = shaped(tensor("mask", mask, device), shape, "mask")
    if bool(torch.isnan(mask).any()):
        raise LimbeckError("mask holds NaN, which is neither kept nor left out; give 0 or 1 (or booleans).")
    return mask.bool()


def read_logp(name: str, logp: Given, shape: torch.Size, live: Carrier) -> Tensor | None:
    """Log-probs ``[B, T]`` of the sampled tokens, detached."""
    return None if logp is None else shaped(tensor(name, logp, device_of(live), floats=True), shape, name).detach()


def read_fields(fields: Mapping[str, Given], batch: int, device: torch.device) -> dict[str, Tensor | None]:
    """Numbers by sequence, ``[B]``."""
    told: dict[str, Tensor | None] = {}
    for name, x in fields.items():
        told[name] = None if x is None else tensor(name, x, device).detach()
        _sized(name, told[name], [(batch,)], batch)
    return told


def read_columns(
    columns: Mapping[str, Given] | None, shape: torch.Size, method: Method, device: torch.device
) -> dict[str, Tensor]:
    """Further numbers by name, ``[B]`` or ``[B, T]``."""
    expect("columns", columns, (Mapping, type(None)), "give tensors by name, {'difficulty': ...}")
    told = sorted(c.column for c in method.contexts)
    for name in columns or {}:
        # Left out it means everybody, so a slip would not show.
        if str(name).lower().replace("_", " ").startswith("has ") and name not in told:
            raise LimbeckError(
                f"columns[{name!r}] is no context of {method.name or 'this method'}{nearest(str(name), told)}; "
                f"it looks at {', '.join(map(repr, told)) or 'none'}."
            )
    read = {name: tensor(name, x, device).detach() for name, x in (columns or {}).items()}
    for name, x in read.items():
        _sized(name, x, [(shape[0],), tuple(shape)], shape[0])
        if name in told and not bool(((x == 0) | (x == 1)).all()):
            raise LimbeckError(f"columns[{name!r}] holds numbers other than 0 and 1; say who has it, and who has not.")
    return read


def _sized(name: str, x: Tensor | None, shapes: Sequence[tuple[int, ...]], batch: int) -> None:
    if x is not None and tuple(x.shape) not in shapes:
        raise LimbeckError(f"{name} has shape {tuple(x.shape)}, but there are {batch} sequences; give [{batch}].")


def read_groups(group: Given, batch: int, method: Method, device: torch.device) -> tuple[Tensor, Tensor]:
    """The order that puts groups together, and the group of each sequence in that order."""
    if group is None:
        paired = any(s.labelled for s in method.sources.values())
        group = torch.arange(batch) // 2 if paired else torch.zeros(batch, dtype=torch.int64)
    group = tensor("group", group, device)
    if group.shape != (batch,):
        raise LimbeckError(f"group has shape {tuple(group.shape)}, but there are {batch} sequences; give one each.")
    if not bool(torch.isfinite(group).all()):
        raise LimbeckError("group holds numbers that are not finite; give the number of the group of each sequence.")
    numbers, order = group.sort(stable=True)
    return order, torch.unique_consecutive(numbers, return_inverse=True)[1]


_CARRIER_NAMES = ("logits", "hidden", "head", "topk", "logp")
_KNOWN_ROLES = frozenset({teacher.role, ref.role, init.role})
"""Roles that a trainer may hand to every method; one that reads them not leaves them alone."""


def read_carriers(given: Mapping[str, Any], shape: torch.Size, method: Method, live: Carrier) -> dict[str, Carrier]:
    """Carriers by the key of their view, from ``NAME_logits=...`` and its like; what is not read is left out."""
    slots = method.slots
    carriers: dict[str, Carrier] = {}
    names: dict[str, str] = {}
    for key, value in given.items():
        slot = _slot(key, method, slots)
        if value is None or key.endswith("_head") or slot not in slots:
            continue
        if slot in names:
            raise LimbeckError(f"{names[slot]} and {key} were both given; give one, logits or hidden serve everything.")
        names[slot] = key
        asked = method.views[slots[slot]]
        carriers[slots[slot].key] = _carrier(key, value, given.get(f"{slot}_head"), shape, asked, live)
    _check_served(method, carriers)
    return carriers


def _slot(key: str, method: Method, slots: Mapping[str, Reader]) -> str:
    """The view that ``NAME_logits`` is of; refused where neither the method nor anybody else knows it."""
    slot, _, kind = key.rpartition("_")
    names = [f"{s}_{c}" for s in slots for c in _CARRIER_NAMES]
    if kind in _CARRIER_NAMES and slot in CLOCKS and slot not in slots:
        raise LimbeckError(f"{key}: the student's other clocks are log-probs; give {slot}_logp=, [B, T].")
    if kind not in _CARRIER_NAMES or slot not in _KNOWN_ROLES | set(slots) | set(method.roles):
        raise LimbeckError(f"unknown argument {key!r}{nearest(key, names)}; this method reads {sorted(slots)}.")
    return slot


def _carrier(key: str, value: Given, head: Any, shape: torch.Size, asked: AbstractSet[str], live: Carrier) -> Carrier:
    role, _, kind = key.rpartition("_")
    device = device_of(live)
    if kind == "topk":
        return _topk(key, value, shape, device)
    x = shaped(tensor(key, value, device, floats=True), shape, key, 2 if kind == "logp" else 3)
    if kind == "logp":
        return Sampled(x)
    carrier = Dense(x) if kind == "logits" else Hidden(x, _head(role, head, x))
    _same_vocabulary(key if kind == "logits" else f"{role}_head", width_of(carrier), width_of(live), asked)
    return carrier


def _topk(key: str, value: Any, shape: torch.Size, device: torch.device) -> TopK:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise LimbeckError(f"{key} is {shown(value)}; give (ids, log-probs), each [B, T, K].")
    ids = _whole(f"{key}: ids", tensor(f"{key}: ids", value[0], device))
    logp = tensor(f"{key}: log-probs", value[1], device, floats=True)
    shaped(ids, shape, key, 3)
    if ids.shape != logp.shape:
        raise LimbeckError(
            f"{key}: ids are {tuple(ids.shape)} and log-probs of shape {tuple(logp.shape)}; give both [B, T, K]."
        )
    return TopK(ids, logp)


def _same_vocabulary(name: str, theirs: int | None, ours: int | None, asked: AbstractSet[str]) -> None:
    if ours is not None and theirs != ours and asked & {"dense", "at"}:
        raise LimbeckError(
            f"{name} has a vocabulary of {theirs}, but the student's has {ours}; cut or pad one of them (with -inf)."
        )


def _check_served(method: Method, carriers: Mapping[str, Carrier]) -> None:
    kinds = {Dense: "dense", Hidden: "dense", TopK: "topk", Sampled: "sampled"}
    for slot, reader in method.slots.items():
        asked = method.views[reader]
        if slot == "old" and reader.key not in carriers:
            continue  # without it the batch is on-policy
        if reader.key not in carriers:
            enough = "_logits (or _hidden with _head)" if "dense" in asked else "_logp"
            enough = "_topk" if asked & {"topk", "at"} and "dense" not in asked else enough
            raise LimbeckError(
                f"{method.name or 'this method'} reads {', '.join(sorted(asked))} from {reader}; give {slot}{enough}."
            )
        kind = kinds[type(carriers[reader.key])]
        able = CARRIERS[kind] | ({"at"} if kind == "topk" else set())  # whoever chose the ids, here they are
        refuse_lacking(method, str(reader), asked, able, kind)


def refuse_missing(method: Method, fields: Mapping[str, Tensor | None]) -> None:
    """Raise where a field that the method reads was not given."""
    reward, correct, label = fields["reward"], fields["correct"], fields["label"]
    name = method.name or "this method"
    if "reward" in method.fields and reward is None:
        raise LimbeckError(f"{name} reads rewards; give reward=, one number per sequence.")
    if "correct" in method.fields and correct is None and reward is None:
        raise LimbeckError(f"{name} reads correctness; give correct=, one boolean per sequence.")
    if "label" in method.fields and label is None:
        raise LimbeckError(f"{name} reads preference labels; give label=, 1 for the chosen and 0 for the rejected one.")


def read_turns(turn: Given, shape: torch.Size, device: torch.device) -> Tensor | None:
    """The turn of each token, ``[B, T]``, or None for one turn a sequence."""
    if turn is None:
        return None
    return _whole("turn", shaped(tensor("turn", turn, device), shape, "turn"))


def read_turn_rewards(rewards: Given, reward: Given, batch: int, device: torch.device) -> Tensor | None:
    """Rewards per turn, ``[B, K]``."""
    if rewards is None:
        return None
    if reward is not None:
        raise LimbeckError("reward and turn_reward were both given; give one of them.")
    x = tensor("turn_reward", rewards, device)
    if x.dim() != 2 or x.shape[0] != batch:
        raise LimbeckError(
            f"turn_reward has shape {tuple(x.shape)}, but there are {batch} sequences; give [{batch}, K]."
        )
    return x
