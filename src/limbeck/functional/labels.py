"""The three ways to say which token each row of the logits scores: aligned tokens, unshifted labels, classes.

Every form brings the per-position arguments of ``lb.objective`` to the aligned one, in which row t scores token t. Two
kinds of arguments have positions. Arguments *per row* hold what a model said after reading position t: logits, hidden
states and top-k lists. Arguments *per token* are about the token at position t: labels, log-probs of the sampled
tokens, turns, authors and columns ``[B, T]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import LimbeckError
from .arguments import Given, tensor, whole_numbers

IGNORED = -100
"""The label of a position that is not scored: PyTorch's ``ignore_index``, which Hugging Face's collators write."""

PER_ROW = ("logits", "hidden", "topk")
"""The ends of the names of arguments that hold a model's answer at each position."""


@dataclass(frozen=True)
class Aligned:
    """``tokens`` and ``mask``: row t of every argument scores token t already.

    Attributes:
        ids: ``[B, T]`` the tokens that the rows score, as given.
        mask: ``[B, T]`` which of them count, as given.
    """

    ids: Given
    mask: Given
    name: ClassVar[str] = "tokens"
    first: ClassVar[int] = 0

    def row(self, name: str, x: Given) -> Given:
        """An argument per row in the aligned form; None stays None."""
        del name
        return x

    def token(self, name: str, x: Given) -> Given:
        """An argument per token in the aligned form; None stays None."""
        del name
        return x

    def views(self, given: Mapping[str, Any], slots: Mapping[str, Any]) -> dict[str, Any]:
        """``ROLE_logits`` and its like; what the method does not read stays as it is."""
        out = dict(given)
        for key, x in given.items():
            slot, _, kind = key.rpartition("_")
            if x is None or slot not in slots:
                continue
            if kind == "topk" and isinstance(x, tuple | list) and len(x) == 2:
                out[key] = tuple(self.row(f"{key}: {what}", y) for what, y in zip(("ids", "log-probs"), x, strict=True))
            elif kind in PER_ROW and kind != "topk":
                out[key] = self.row(key, x)
            elif kind == "logp":
                out[key] = self.token(key, x)
        return out

    def columns(self, columns: Any) -> Any:
        """Columns by name; those of one number per sequence stay as they are."""
        if not isinstance(columns, Mapping):
            return columns
        read = {name: tensor(f"columns[{name!r}]", x) for name, x in columns.items()}
        return {name: x if x.dim() == 1 else self.token(f"columns[{name!r}]", x) for name, x in read.items()}

    def author(self, author: Any) -> Any:
        """Authors: names stay as they are, numbers are per token."""
        named = isinstance(author, str) or (
            isinstance(author, list | tuple) and all(isinstance(name, str) for name in author)
        )
        return author if named else self.token("author", author)


@dataclass(frozen=True)
class Unshifted(Aligned):
    """``labels`` ``[B, T]`` as a collator made them: row t of the logits scores the label at t + 1.

    The last row of everything per row is dropped, and so is the first position of everything per token.
    """

    shape: tuple[int, ...]
    name: ClassVar[str] = "labels"
    first: ClassVar[int] = 1

    def row(self, name: str, x: Given) -> Given:
        return None if x is None else self._placed(name, x)[:, :-1]

    def token(self, name: str, x: Given) -> Given:
        return None if x is None else self._placed(name, x)[:, 1:]

    def _placed(self, name: str, x: Given) -> Tensor:
        x = tensor(name, x)
        if x.shape[:2] != self.shape:
            raise LimbeckError(
                f"{name} has shape {tuple(x.shape)}, but labels has {self.shape}; with labels=, give everything at the "
                "positions of the input, unshifted."
            )
        return x


@dataclass(frozen=True)
class Classes(Aligned):
    """``labels`` ``[B]`` of a classifier: each row of the ``[B, C]`` logits is a sequence of one token."""

    batch: int
    name: ClassVar[str] = "labels"

    def row(self, name: str, x: Given) -> Given:
        return None if x is None else self._one(name, x, 2)

    def token(self, name: str, x: Given) -> Given:
        return None if x is None else self._one(name, x, 1)

    def _one(self, name: str, x: Given, dims: int) -> Tensor:
        x = tensor(name, x)
        if x.dim() != dims or x.shape[0] != self.batch:
            form = f"[{self.batch}]" if dims == 1 else f"[{self.batch}, C]"
            raise LimbeckError(
                f"{name} has shape {tuple(x.shape)}, but the labels are those of {self.batch} classified examples; "
                f"give {form}."
            )
        return x.unsqueeze(1)


def read_form(labels: Given, tokens: Given, mask: Given, student: Mapping[str, Given]) -> Aligned:
    """The form in which a call is written.

    Args:
        labels: as given; None for the aligned form.
        tokens, mask: as given.
        student: the student's logits, hidden states or log-probs by the names of their arguments; one is not None.

    Raises:
        LimbeckError: where labels come with tokens or a mask, are no whole numbers, or do not fit the student.
    """
    if labels is None:
        return Aligned(tokens, mask)
    for name, x in (("tokens", tokens), ("mask", mask)):
        if x is not None:
            raise LimbeckError(
                f"labels and {name} were both given; give unshifted labels with {IGNORED} where nothing is scored, or "
                "tokens with a mask."
            )
    labels = whole_numbers("labels", tensor("labels", labels))
    keep = labels != IGNORED
    ids = torch.where(keep, labels, torch.zeros_like(labels))
    given = [(name, tensor(name, x)) for name, x in student.items() if x is not None]
    name, shape = (given[0][0], tuple(given[0][1].shape)) if given else ("", tuple(labels.shape))
    if name in ("student_logits", "student_hidden") and len(shape) == 2:
        if labels.dim() != 1 or labels.shape[0] != shape[0]:
            raise LimbeckError(
                f"labels has shape {tuple(labels.shape)}, but {name} has {shape}, which are rows of a classifier; give "
                f"labels of shape ({shape[0]},), one class each."
            )
        return Classes(ids.unsqueeze(1), keep.unsqueeze(1), shape[0])
    if tuple(labels.shape) != shape[:2] or labels.dim() != 2:
        hint = "; preferences of pairs go in label=" if labels.dim() == 1 else ""
        raise LimbeckError(
            f"labels has shape {tuple(labels.shape)}, but {name} has {shape}; give labels and {name} of the same "
            f"[B, T], as the model returned them: the objective shifts them itself{hint}."
        )
    return Unshifted(ids[:, 1:], keep[:, 1:], shape[:2])
