"""Reading the golden files, and asking ``lb.objective`` the same questions that the released code answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import limbeck as lb
from limbeck.axes import Expr, column, everywhere, reinforce, sample, student, token_sum
from limbeck.space.method import Method
from limbeck.space.term import Sum, Term

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Case:
    """One call of a released function: exact inputs, hyper-parameters and what it returned."""

    file: dict[str, Any]
    body: dict[str, Any]
    guard: float

    def __getattr__(self, name: str) -> Tensor:
        if name in self.body["inputs"]:
            return tensor(self.body["inputs"][name])
        raise AttributeError(name)

    @property
    def hyper(self) -> dict[str, Any]:
        return self.body["hyper"]

    def outputs(self, name: str, kind: str = "outputs") -> Tensor:
        return tensor(self.body[kind][name])

    def tolerance(self, of: str = "value") -> float:
        """Ten times the file's distance to its own re-computation, at least 1e-9, or the guard of the release."""
        return max(1e-9, 10 * self.file[f"max_abs_difference_{of}"], self.guard)

    def agrees(self, loss: Tensor, leaf: Tensor, kind: str = "") -> None:
        """The released (or ``paper_``) value, and its gradient with respect to ``leaf``."""
        self.close(loss, tensor(self.body[f"{kind}loss"]))
        self.close(torch.autograd.grad(loss, leaf)[0], tensor(self.body[f"{kind}grad"]), "grad")

    def close(self, ours: Tensor, theirs: Tensor, of: str = "value") -> None:
        torch.testing.assert_close(ours.detach(), theirs, rtol=self.tolerance(of), atol=self.tolerance(of))


def tensor(x: Any) -> Tensor:
    """Numbers with a decimal point in float64, ids and masks in int64."""
    return torch.from_numpy(np.asarray(x))


def _all(hyper: dict[str, Any]) -> bool:
    return True


def cases(name: str, only: Callable[[dict[str, Any]], bool] = _all, guard: float = 0.0) -> pytest.MarkDecorator:
    """Parametrise ``case`` over the cases of a file, or over those whose hyper-parameters satisfy ``only``."""
    file = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    found = [c for c in file["cases"] if only(c["hyper"])]
    assert found, name
    ids = ["-".join([f"seed{c['seed']}", *(f"{k}={v}" for k, v in c["hyper"].items() if v is not None)]) for c in found]
    return pytest.mark.parametrize("case", [Case(file, c, guard) for c in found], ids=ids)


def live(x: Tensor) -> Tensor:
    """A leaf to differentiate."""
    return x.clone().requires_grad_()


def labelled(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and mask from labels where -100 is ignored."""
    return labels.clamp(min=0), labels != -100


def hearing(method: Method, first: int = 0, last: int | None = None, at: str = "sequence") -> Method:
    """A registered method's own terms, with a column named ``advantage`` in place of the first signal."""
    parts = list(method.parts)[first:last]
    coefficient, term = parts[0]
    parts[0] = (coefficient, replace(term, signal=column("advantage", at)))
    return replace(method, terms=Sum(tuple(parts)))


def told(signal: Expr, mask: Tensor, weight: Expr = everywhere, **given: Any) -> Tensor:
    """A signal times a weight per token, [B, T], 0 where masked: what multiplies the gradient of a log-prob.

    Read off REINFORCE with a token sum, so it is what training would use.
    """
    logp = live(given.pop("student_logp", torch.zeros(mask.shape, dtype=torch.float64)))
    method = Method(sample(student), Term(signal, reinforce, weight=weight), token_sum)
    outcome = lb.objective(method)(student_logp=logp, mask=mask, **given)
    return -torch.autograd.grad(outcome.loss, logp)[0]
