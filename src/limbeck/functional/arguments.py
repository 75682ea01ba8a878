"""Read the arguments of ``lb.objective``, convert them to tensors, and refuse impossible ones by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..axes.derived_source import Recast
from ..axes.levels import Level
from ..axes.signal import everywhere
from ..errors import LimbeckError, expect, nearest, number, shown
from ..space.method import Method
from ..types import AUTHORS, Sampled, Scores

Given = Tensor | Any
"""A tensor, or an array or nested lists of numbers, from which a tensor is made."""


def tensor(name: str, x: Given, device: torch.device | None = None, floats: bool = False) -> Tensor:
    """Any argument as a tensor of numbers; ``floats`` refuses whole numbers, which are more often token ids.

    Raises:
        LimbeckError: for anything else, and for tensors of a kind that no loss is computed on.
    """
    if not isinstance(x, Tensor):
        try:
            x = torch.as_tensor(x)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise LimbeckError(
                f"{name} is {shown(x)}; give a tensor, an array, or lists of numbers that are equally long."
            ) from None
    _refuse_strange(name, x)
    x = x.float() if x.is_floating_point() and x.element_size() == 1 else x  # eight bits lack most operations
    if floats and not x.is_floating_point():
        raise LimbeckError(f"{name} has dtype {x.dtype}; give floating-point numbers.")
    return x if device is None else x.to(device)


def _refuse_strange(name: str, x: Tensor) -> None:
    """Raise for a tensor without numbers, or whose numbers are not stored in a dense, real layout."""
    if x.is_meta:
        raise LimbeckError(f"{name} is on the meta device and holds no numbers; load it, or give another tensor.")
    if x.is_quantized:
        raise LimbeckError(f"{name} is quantised ({x.dtype}); give {name}.dequantize().")
    if x.is_nested or x.layout != torch.strided:
        kind = "nested" if x.is_nested else f"of the layout {x.layout}"
        raise LimbeckError(f"{name} is {kind}; give a dense tensor, such as {name}.to_dense() or a padded one.")
    if x.is_complex():
        raise LimbeckError(f"{name} has dtype {x.dtype}; give real numbers.")


def whole_numbers(name: str, x: Tensor) -> Tensor:
    """Ids as int64. Floating-point numbers are refused: 2.7 is no id, and truncating it would hide the mistake."""
    if x.is_floating_point() or x.dtype == torch.bool:
        raise LimbeckError(f"{name} has dtype {x.dtype}; give whole numbers.")
    return x.long()


def refuse_vocabulary(scores: Mapping[str, Scores], token_N: Tensor, name: str = "tokens") -> None:
    """Raise where full rows have no entry for a token that counts; ``name`` is the argument that holds the tokens."""
    for who, given in scores.items():
        width = given.width
        odd_N = (token_N < 0) | (token_N >= width) if width is not None else torch.zeros_like(token_N, dtype=torch.bool)
        if bool(odd_N.any()):
            if name == "labels":
                raise LimbeckError(
                    f"labels holds {int(token_N[odd_N][0])}, which is outside the {who}'s {width} entries; write -100 "
                    "where nothing is scored."
                )
            raise LimbeckError(f"tokens holds ids outside the {who}'s {width}; mask what must not count.")


def read_sources(source: Sequence[str] | str | None, batch: int, method: Method) -> list[str]:
    """The name of the source of each sequence; one name holds for all of them."""
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


def accumulation_dtype(live: Scores) -> torch.dtype:
    """The dtype of constants, shares and totals: float64 for a float64 student, else float32."""
    return torch.float64 if live.values.dtype == torch.float64 else torch.float32


def read_tokens(tokens: Given, shape: torch.Size, live: Scores, readers: Mapping[str, Any], method: Method) -> Tensor:
    """The ids that rows score. With ``student_logp`` they are needed only where full rows of a reader are read."""
    if tokens is None:
        rows = [k for k, x in readers.items() if x is not None and k.rpartition("_")[0] in method.slots]
        rows = [k for k in rows if k.endswith(("_logits", "_hidden"))]
        if rows:
            raise LimbeckError(f"tokens is missing: give the [B, T] ids that the rows of {rows[0]} score.")
        if isinstance(live, Sampled):
            return torch.zeros(shape, dtype=torch.int64, device=live.device)
        raise LimbeckError(
            "tokens is missing: give the [B, T] ids that the student's rows score, or labels= with the logits as the "
            "model returned them."
        )
    return whole_numbers("tokens", shaped(tensor("tokens", tokens, live.device), shape, "tokens"))


def shaped(x: Tensor, shape: torch.Size, name: str, dims: int = 2) -> Tensor:
    if x.shape[:2] != shape or x.dim() != dims:
        form = "[B, T]" if dims == 2 else "[B, T, ...]"
        raise LimbeckError(
            f"{name} has shape {tuple(x.shape)}, but the student's is {tuple(shape)}; give {form} with row t scoring "
            "token t (shift before you call)."
        )
    return x


def read_mask(mask: Given, shape: torch.Size, device: torch.device) -> Tensor:
    """The mask of the tokens that count, ``[B, T]`` bool."""
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=device)
    mask = shaped(tensor("mask", mask, device), shape, "mask")
    if bool(torch.isnan(mask).any()):
        raise LimbeckError("mask holds NaN, which is neither kept nor left out; give 0 or 1 (or booleans).")
    return mask.bool()


def read_logp(name: str, logp: Given, shape: torch.Size, live: Scores) -> Tensor | None:
    """Log-probs ``[B, T]`` of the sampled tokens, detached."""
    return None if logp is None else shaped(tensor(name, logp, live.device, floats=True), shape, name).detach()


def read_fields(fields: Mapping[str, Given], batch: int, device: torch.device) -> dict[str, Tensor | None]:
    """Numbers by sequence, ``[B]``."""
    read: dict[str, Tensor | None] = {}
    for name, x in fields.items():
        read[name] = None if x is None else tensor(name, x, device).detach()
        _sized(name, read[name], [(batch,)], batch)
        if x is not None and name in ("correct", "truncated"):
            y = read[name]
            assert y is not None
            odd = ~((y == 0) | (y == 1) | y.isnan())
            if bool(odd.any()):
                raise LimbeckError(f"{name} holds {float(y[odd][0]):g}; give 1 (true) or 0 (false) for each sequence.")
    return read


def read_columns(
    columns: Mapping[str, Given] | None, shape: torch.Size, method: Method, device: torch.device
) -> dict[str, Tensor]:
    """Further numbers by name, ``[B]`` or ``[B, T]``."""
    expect("columns", columns, (Mapping, type(None)), "give tensors by name, {'difficulty': ...}")
    known = sorted(c.column for c in method.contexts)
    for name in columns or {}:
        # Without its column, a context counts as present in all sequences, so a typo would change the loss silently.
        if str(name).lower().replace("_", " ").startswith("has ") and name not in known:
            raise LimbeckError(
                f"columns[{name!r}] is not a context of {method.name or 'this method'}{nearest(str(name), known)}; "
                f"its contexts are {', '.join(map(repr, known)) or 'none'}."
            )
    read = {name: tensor(f"columns[{name!r}]", x, device).detach() for name, x in (columns or {}).items()}
    read = {name: x if x.is_floating_point() else x.to(torch.get_default_dtype()) for name, x in read.items()}
    for name, x in read.items():
        _sized(f"columns[{name!r}]", x, [(shape[0],), tuple(shape)], shape[0])
        if name in known and not bool(((x == 0) | (x == 1)).all()):
            raise LimbeckError(
                f"columns[{name!r}] holds numbers other than 0 and 1; give 1 for each sequence that has it, else 0."
            )
    return read


UNKNOWN = -128
"""The code of an author that is known neither from the method's source nor from the caller."""


def read_author(
    author: Given | str | Sequence[str], source: Sequence[str], method: Method, shape: torch.Size, device: torch.device
) -> Tensor:
    """The author of each token, int8 ``[B, T]``: as the caller says, else the author of the method's source."""
    if author is None:
        known = {name: _author_of(name, method) for name in method.sources}
        codes = [known[name] for name in source]
        return torch.tensor(codes, dtype=torch.int8, device=device).reshape(-1, 1).expand(shape)
    names = [author] * shape[0] if isinstance(author, str) else author
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        for name in names:
            if name not in AUTHORS:
                raise LimbeckError(
                    f"author={name!r}: unknown{nearest(name, AUTHORS)}; use one of {', '.join(AUTHORS)}."
                )
        if len(names) != shape[0]:
            raise LimbeckError(f"author names {len(names)} sequences, but there are {shape[0]}; give one name each.")
        author = torch.tensor([AUTHORS[name] for name in names], dtype=torch.int8).reshape(-1, 1).expand(shape)
    x = whole_numbers("author", shaped(tensor("author", author, device), shape, "author"))
    if not bool(((x >= min(AUTHORS.values())) & (x <= max(AUTHORS.values()))).all()):
        numbers = ", ".join(f"{code} ({name})" for name, code in AUTHORS.items())
        raise LimbeckError(f"author holds {int(x.min())} to {int(x.max())}; give names, or the numbers {numbers}.")
    return x.to(torch.int8)


def _author_of(name: str, method: Method) -> int:
    """The author of the sequences of a source; a source that copies another one's tokens has that one's author."""
    source = method.sources[name]
    while isinstance(source, Recast) and source.copies:
        source = method.sources[source.name]
    return UNKNOWN if source.author is None else source.author


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


def refuse_missing(method: Method, fields: Mapping[str, Tensor | None]) -> None:
    """Raise where a field that the method reads was not given."""
    reward, correct, label = fields["reward"], fields["correct"], fields["label"]
    name = method.name or "this method"
    if "reward" in method.fields and reward is None:
        raise LimbeckError(f"{name} reads rewards; give reward=, one number per sequence.")
    if "correct" in method.fields and correct is None and reward is None:
        raise LimbeckError(f"{name} reads correctness; give correct=, one boolean per sequence.")
    if "truncated" in method.fields and fields["truncated"] is None:
        raise LimbeckError(
            f"{name} reads which responses were cut at the token limit; give truncated=, one boolean per sequence."
        )
    if "label" in method.fields and label is None:
        raise LimbeckError(f"{name} reads preference labels; give label=, 1 for the chosen and 0 for the rejected one.")


def read_turns(turn: Given, shape: torch.Size, device: torch.device) -> Tensor | None:
    """The turn of each token, ``[B, T]``, or None for one turn a sequence."""
    if turn is None:
        return None
    return whole_numbers("turn", shaped(tensor("turn", turn, device), shape, "turn"))


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


def read_items(items: Any) -> float | None:
    """``num_items_in_batch`` as a number; a Transformers ``Trainer`` passes a tensor of one."""
    if items is None:
        return None
    if isinstance(items, Tensor):
        if items.numel() != 1:
            raise LimbeckError(
                f"num_items_in_batch has shape {tuple(items.shape)}; give one number (and one process a GPU, where "
                "DataParallel passes one number for each)."
            )
        items = items.item()
    number("num_items_in_batch", items, 0, ends=True)
    number("num_items_in_batch", items)
    return float(items)


def refuse_other_denominators(method: Method) -> None:
    """Raise where a term is divided by a count that ``num_items_in_batch`` does not give."""
    for i, (_, term) in enumerate(method.parts, 1):
        reduction = term.reduction or method.reduction
        if not reduction.per_unit:
            continue  # a constant
        by = reduction.divisor("the number of its")
        if reduction.unit == term.surrogate.loss_level == Level.TOKEN and reduction.total is None:
            if term.per == "all" or (term.per == "kept" and term.where == everywhere):
                continue
            by = "the sum of its weights" if term.per == "weight" else "the tokens that its condition keeps"
        raise LimbeckError(
            f"num_items_in_batch counts scored tokens, but term {i} of {method.name or 'this method'} is divided by "
            f"{by}; use reduction=token_mean (and per='all' for a term with a condition), or leave "
            "num_items_in_batch out."
        )


def read_all_sum(all_sum: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor]:
    """The function that adds over processes, with a check of what it returns; the identity by default.

    Raises:
        LimbeckError: if it is no function, or, when called, if it returns anything but the summed tensor.
    """
    if all_sum is None:
        return lambda x: x
    if not callable(all_sum):
        raise LimbeckError(f"all_sum is {shown(all_sum)}; give a function that adds a tensor over processes.")

    def summed(x: Tensor) -> Tensor:
        total: Any = all_sum(x)
        if not isinstance(total, Tensor):
            raise LimbeckError(
                f"all_sum returned {shown(total)}; return the sum over processes, a tensor (torch.distributed's "
                "all_reduce adds in place and returns nothing: return its argument)."
            )
        if total.shape != x.shape or total.dtype != x.dtype or total.is_meta:
            raise LimbeckError(
                f"all_sum returned a tensor of shape {tuple(total.shape)} and {total.dtype} on {total.device} for one "
                f"of shape {tuple(x.shape)} and {x.dtype}; return the sum over processes, of the same shape and dtype."
            )
        return total.to(x.device)

    return summed
