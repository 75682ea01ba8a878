"""Exact resume: weights, optimiser, scaler and the cursor of the data, without a pickle.

The random state of a step is derived from (seed, step), and the learning rate and every coefficient from the step, so
they need no storage.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import LimbeckError
from .files import whole_folder, write_text

FORMAT = 1
_NAME = re.compile(r"step-(\d{6,})")


def save(
    folder: Path, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], keep: int
) -> Path:
    """Write ``folder/step-000123`` whole, and remove the oldest beyond ``keep``.

    Args:
        folder: of all checkpoints.
        step: optimiser batches done.
        module: its trainable parameters are stored.
        optimizer: its state is stored.
        state: further JSON (cursors, scaler).
        keep: checkpoints to keep.
    """
    path = folder / f"step-{step:06d}"
    tensors, groups = _optimizer_state(optimizer)
    with whole_folder(path) as beside:
        weights = {n: p.detach().contiguous().cpu() for n, p in module.named_parameters() if p.requires_grad}
        save_file(weights, beside / "weights.safetensors")
        save_file(tensors, beside / "optimizer.safetensors")
        document = {"format": FORMAT, "step": step, "groups": groups, **state}
        write_text(beside / "state.json", json.dumps(document, indent=1))
    for old in sorted(_steps(folder))[:-keep]:
        shutil.rmtree(folder / f"step-{old:06d}", ignore_errors=True)
    return path


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    steps = _steps(folder)
    return folder / f"step-{max(steps):06d}" if steps else None


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    matches = [_NAME.fullmatch(p.name) for p in folder.iterdir()]
    return [int(m.group(1)) for m in matches if m]


def load(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint's weights and optimiser state in place and return its JSON.

    Raises:
        LimbeckError: where the folder is no checkpoint, or one of another model.
    """
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
        weights = _tensors(path / "weights.safetensors")
        moments = _tensors(path / "optimizer.safetensors")
        groups, _ = state["groups"], int(state["step"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as e:
        raise LimbeckError(
            f"{path} is not a checkpoint of Limbeck ({type(e).__name__}: {str(e).splitlines()[0] if str(e) else '?'}); "
            "name the folder of a run, or remove this one to resume from the checkpoint before it."
        ) from None
    if state.get("format") != FORMAT:
        raise LimbeckError(f"{path} has format {state.get('format')} and this version reads {FORMAT}; start a new run.")
    own = {n: p for n, p in module.named_parameters() if p.requires_grad}
    if set(own) != set(weights) or any(own[n].shape != weights[n].shape for n in own):
        odd = sorted(set(own) ^ set(weights)) or [n for n in own if own[n].shape != weights[n].shape]
        raise LimbeckError(f"{path} holds another model: {odd[0]} does not fit; resume with the run's own student.")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])
    _restore_optimizer(optimizer, moments, groups)
    return state


def _tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as f:
        return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118


def _optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": value.detach().contiguous().cpu()
        for index, entries in state["state"].items()
        for name, value in entries.items()
        if isinstance(value, Tensor)
    }
    groups = [{k: v for k, v in g.items() if not isinstance(v, Tensor)} for g in state["param_groups"]]
    return tensors, groups


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[Any]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    for group in groups:
        if isinstance(group.get("betas"), list):
            group["betas"] = tuple(group["betas"])
    optimizer.load_state_dict({"state": state, "param_groups": groups})
