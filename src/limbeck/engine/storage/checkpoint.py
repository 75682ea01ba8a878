"""Checkpoints for exact resume: weights, optimiser, stored rollouts, scaler and data cursors, without a pickle.

A checkpoint is a folder of safetensors files with ``state.json``, which holds a digest of each file and of itself. The
random state of a step follows from (seed, step), and the learning rate and every coefficient from the step, so they are
not stored.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...errors import LimbeckError
from .atomic import remove, whole_folder, write_text
from .fingerprint import of_file

FORMAT = 3
"""Version of the layout; a checkpoint of another one is refused."""

_NAME = re.compile(r"step-(\d{6,})")
STORED = "stored.safetensors"
"""File of the rollouts that are written once."""

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""State that AdamW keeps for a parameter."""


def save(
    folder: Path,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    keep: int,
    following: Mapping[str, nn.Module] | None = None,
    stored: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write ``folder/step-000123`` whole, and remove the oldest beyond ``keep``.

    Args:
        folder: of all checkpoints.
        step: optimiser batches done.
        module: its trainable parameters are stored.
        optimizer: its state is stored.
        state: further JSON (cursors, scaler, memory).
        keep: checkpoints to keep.
        following: modules whose weights follow the student's, by role; all their parameters are stored.
        stored: rollouts that are written once (``Memory.to_tensors``), for ``stored.safetensors``.
    """
    path = folder / f"step-{step:06d}"
    tensors, groups = _optimizer_state(optimizer)
    with whole_folder(path) as beside:
        weights = {n: p.detach().contiguous().cpu() for n, p in module.named_parameters() if p.requires_grad}
        save_file(weights, beside / "weights.safetensors")
        save_file(tensors, beside / "optimizer.safetensors")
        for i, (_, shadow) in enumerate(sorted((following or {}).items())):
            own = {n: p.detach().contiguous().cpu() for n, p in shadow.named_parameters()}
            save_file(own, beside / f"following-{i}.safetensors")
        if stored:
            save_file(dict(stored), beside / STORED)
        document = {
            "format": FORMAT,
            "step": step,
            "groups": groups,
            "files": {p.name: of_file(p) for p in sorted(beside.iterdir())},
            "unmoved": _unmoved(module, optimizer),
            **state,
        }
        write_text(beside / "state.json", json.dumps({**document, "digest": _digest(document)}, indent=1))
    for old in sorted(_steps(folder))[:-keep]:
        remove(folder / f"step-{old:06d}")
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


def peek(path: Path) -> dict[str, Any]:
    """The JSON of a checkpoint; no tensor is read.

    Raises:
        LimbeckError: where the folder is no checkpoint, has another format, or has been renamed.
    """
    with _damage_in_one_sentence(path):
        state = _state(path)
        _refuse_renamed(path, state["step"])
    return state


def load(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    streams: Collection[str] | None = None,
    following: Mapping[str, nn.Module] | None = None,
) -> dict[str, Any]:
    """Put a checkpoint's weights and optimiser state in place and return its JSON.

    Args:
        path: of one checkpoint.
        module, optimizer: of the run; unchanged unless the whole checkpoint fits.
        streams: names of the run's data streams; each must have its cursor.
        following: modules whose weights follow the student's, by role.

    Raises:
        LimbeckError: where the folder is no checkpoint, or belongs to another model or run.
    """
    state = peek(path)
    with _damage_in_one_sentence(path):
        _refuse_changed(path, state["files"], len(following or {}))
        weights = _tensors(path / "weights.safetensors")
        tensors = _tensors(path / "optimizer.safetensors")
        followers = [_tensors(path / f"following-{i}.safetensors") for i in range(len(following or {}))]
    if streams is not None and set(streams) != set(state["cursors"]):
        odd = sorted(set(streams) ^ set(state["cursors"]))[0]
        raise LimbeckError(
            f"{path} belongs to a run with other data: {odd!r} does not fit; resume with the run's own data."
        )
    own = {n: p for n, p in module.named_parameters() if p.requires_grad}
    _fit(path, own, weights)
    modules = [dict(f.named_parameters()) for _, f in sorted((following or {}).items())]
    for follower, saved in zip(modules, followers, strict=True):
        _fit(path, follower, saved)
    with _damage_in_one_sentence(path):
        moments = _moments(tensors, optimizer)
        _refuse_forgotten(state, moments, own)
        groups = _groups(state["groups"], optimizer)
    with torch.no_grad():
        for parameters, saved in [(own, weights), *zip(modules, followers, strict=True)]:
            for name, parameter in parameters.items():
                parameter.copy_(saved[name])
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return state


def read_stored(path: Path, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The stored rollouts of a checkpoint whose files ``load`` has compared with their digests."""
    return _tensors(path / STORED) if STORED in state["files"] else {}


def _fit(path: Path, own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    odds = sorted(set(own) ^ set(saved)) or [n for n in own if own[n].shape != saved[n].shape]
    if odds:
        raise LimbeckError(f"{path} holds another model: {odds[0]} does not fit; resume with the run's own student.")
    for name, parameter in own.items():
        if parameter.dtype != saved[name].dtype:
            kinds = f"{saved[name].dtype}, not {parameter.dtype}".replace("torch.", "")
            raise LimbeckError(
                f"{path} holds another model: {name} is {kinds}; resume with the run's own student, or remove this "
                "checkpoint to resume from the one before it."
            )


def _refuse_renamed(path: Path, step: int) -> None:
    """Raise where the folder has the name of another step: resuming from it would undo the wrong steps."""
    match = _NAME.fullmatch(path.name)
    if match is None or int(match.group(1)) != step:
        raise ValueError(f"it was written as step-{step:06d}, so the folder has been renamed")


def _refuse_changed(path: Path, files: Mapping[str, str], followers: int) -> None:
    """Raise where a file is missing or has changed since it was written."""
    needed = ["optimizer.safetensors", "weights.safetensors", *(f"following-{i}.safetensors" for i in range(followers))]
    for name in [*needed, *files]:
        if name not in files:
            raise ValueError(f"state.json does not list {name}")
        if of_file(path / name) != files[name]:
            raise ValueError(f"{name} is not what was written, by its digest")


def _unmoved(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Trainable parameters that no gradient has reached yet, for which the optimiser has no state."""
    return [n for n, p in module.named_parameters() if p.requires_grad and not optimizer.state.get(p)]


def _refuse_forgotten(state: Mapping[str, Any], moments: Mapping[int, Any], own: Mapping[str, Tensor]) -> None:
    """Raise where the optimiser's state of a parameter is missing that it had when the checkpoint was written."""
    lost = [name for i, name in enumerate(own) if i not in moments and name not in state["unmoved"]]
    if lost:
        raise ValueError(f"optimizer.safetensors has no state of {lost[0]}")


@contextmanager
def _damage_in_one_sentence(path: Path) -> Iterator[None]:
    """Turn every error from reading a damaged checkpoint into one sentence."""
    try:
        yield
    except LimbeckError:
        raise
    except (OSError, ValueError, OverflowError, RecursionError, SafetensorError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise LimbeckError(
            f"{path} is not a checkpoint of Limbeck ({reason}); "
            "name the folder of a run, or remove this one to resume from the checkpoint before it."
        ) from None


def _state(path: Path) -> dict[str, Any]:
    """``state.json``, as it was written."""
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if not isinstance(state, dict):
        raise ValueError("state.json holds no table")
    if state.get("format", FORMAT) != FORMAT:
        raise LimbeckError(
            f"{path} has format {str(state['format'])[:40]} and this version reads {FORMAT}; start a new run, or "
            "resume with the version of Limbeck that wrote it."
        )
    if state.get("digest") != _digest(state):
        raise ValueError("state.json is not what was written, by its digest")
    for key in ("format", "step", "groups", "files", "unmoved", "cursors"):
        if key not in state:
            raise ValueError(f"state.json has no {key!r}")
    return state


def _digest(state: Mapping[str, Any]) -> str:
    """SHA-256 of everything else in ``state.json``, so that no later check has to doubt its values."""
    rest = json.dumps({k: v for k, v in state.items() if k != "digest"}, sort_keys=True)
    return hashlib.sha256(rest.encode()).hexdigest()


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


def _moments(tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """The optimiser's state by the number of its parameter, each tensor under its own name and of its own shape."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        if not (index.isdecimal() and int(index) < len(parameters) and name in _MOMENTS):
            raise ValueError(f"optimizer.safetensors holds {key!r}")
        parameter = parameters[int(index)]
        if value.shape != (torch.Size([]) if name == "step" else parameter.shape):
            raise ValueError(f"{key!r} of the optimiser has the shape {list(value.shape)}")
        if value.dtype != parameter.dtype if name != "step" else not value.is_floating_point():
            raise ValueError(f"{key!r} of the optimiser is {str(value.dtype).removeprefix('torch.')}")
        state.setdefault(int(index), {})[name] = value
    lacks = [f"{i}.{name}" for i, entries in state.items() for name in _MOMENTS if name not in entries]
    if lacks:
        raise ValueError(f"optimizer.safetensors has no {lacks[0]!r}")
    return state


def _groups(groups: list[dict[str, Any]], optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The optimiser's groups with the stored settings, of the same parameters as its own."""
    own = _optimizer_state(optimizer)[1]
    if len(groups) != len(own):
        raise ValueError(f"it has {len(groups)} groups of parameters and the optimiser {len(own)}")
    return [_group(i, group, mine) for i, (group, mine) in enumerate(zip(groups, own, strict=True))]


def _group(i: int, group: Mapping[str, Any], mine: Mapping[str, Any]) -> dict[str, Any]:
    if group.get("params") != mine["params"]:
        raise ValueError(f"group {i} of its optimiser has other parameters")
    # Another version of torch may know fewer settings, or more; JSON has lists in place of tuples.
    stored = {name: group.get(name, value) for name, value in mine.items()}
    return {name: tuple(x) if isinstance(mine[name], tuple) else x for name, x in stored.items()}
