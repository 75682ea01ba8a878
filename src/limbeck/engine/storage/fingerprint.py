"""Digests of the models and data of a run, by which a resumed run finds that they have changed."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from ... import embedded
from ...errors import LimbeckError
from ...tasks import Task
from ...tasks.base import found
from ..models import hub
from ..models.policy import causal_model

WHOLE = 1 << 30
"""Bytes up to which a model folder is read whole (ours). Reading a larger one at every start would take minutes, so
only the size and 64 blocks of 1 MiB of each file are read: training changes every tensor, so other weights show."""

_BLOCK, _BLOCKS = 1 << 20, 64
_READ = (".json", ".safetensors", ".jinja", ".model", ".txt", ".tiktoken", ".py")
_SAMPLED = 32
"""Prompts of a split that are read where the task generates each when it is read (ours)."""


# ---------------------------------------------------------------- files and models


def of_file(path: Path, thorough: bool = True) -> str:
    """SHA-256 of a file; where it is large and not ``thorough``, of its size and blocks spread over it."""
    size = path.stat().st_size
    with path.open("rb") as f:
        if thorough or size <= _BLOCK * _BLOCKS:
            return hashlib.file_digest(f, "sha256").hexdigest()
        out = hashlib.sha256(str(size).encode())
        for i in range(_BLOCKS):
            f.seek(i * (size - _BLOCK) // (_BLOCKS - 1))
            out.update(f.read(_BLOCK))
    return out.hexdigest()


def of_folder(folder: Path) -> str:
    """Digest of the files that loading reads in a model folder."""
    return _sha(files_of(folder))


def files_of(folder: Path) -> dict[str, str]:
    """Digests of the files that loading reads in a model folder: configuration, tokenizer, templates, weights, code.

    Of a folder of adapters, the base model's folder counts as a file of the name ``base``.
    """
    inside = [*folder.iterdir(), *(folder / "additional_chat_templates").glob("*")]
    # limbeck.json and the model card describe a model and do not change it.
    read = sorted(p for p in inside if p.suffix in _READ and p.name != "limbeck.json" and p.is_file())
    stats = [p.stat() for p in read]
    own = dict(_digests(folder, tuple(read), tuple((s.st_size, s.st_mtime_ns, s.st_ino) for s in stats)))
    base = _base(folder / "adapter_config.json")
    return own if base is None else {**own, "base": of_folder(base)}


@functools.lru_cache(maxsize=64)
def _digests(folder: Path, files: tuple[Path, ...], stamps: tuple[tuple[int, int, int], ...]) -> Mapping[str, str]:
    thorough = sum(size for size, *_ in stamps) <= WHOLE
    return {p.relative_to(folder).as_posix(): of_file(p, thorough) for p in files}


def _base(adapter_config: Path) -> Path | None:
    """The folder of the model that adapters were trained on, where it is one."""
    try:
        name = json.loads(adapter_config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return None
    return found(name, "folder") if isinstance(name, str) and name else None


def of_spec(spec: str, role: str) -> dict[str, Any] | None:
    """Digests of a model by its name: of the files in its folder, or the hub's commit; None where neither is known."""
    folder = (
        embedded.path(role if role in embedded.NAMES else "student") if spec == "embedded" else found(spec, "folder")
    )
    if folder is None:
        commit = hub.cached_commit(spec)
        return {"by": "files", "digest": commit} if commit else None
    try:
        files = files_of(folder)
    except OSError as e:
        raise LimbeckError(
            f"{role}={spec!r}: {e.filename} cannot be read ({e.strerror}); make it readable, or name another folder."
        ) from None
    return {"by": "files", "digest": _sha(files), "files": files}


@torch.no_grad()
def of_tensors(model: Any) -> str:
    """Digest of a model object's weights as they were before adapters were added."""
    own = causal_model(model).state_dict()
    tensors = {n.replace(".base_layer.", "."): t for n, t in own.items() if "lora_" not in n}
    thorough = sum(t.numel() * t.element_size() for t in tensors.values()) <= WHOLE
    out = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        out.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().reshape(-1)
        flat = flat if thorough else flat[:: max(1, flat.numel() >> 16)]
        out.update(flat.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return out.hexdigest()


# ---------------------------------------------------------------- data


def of_task(task: Task) -> dict[str, Any]:
    """Number of prompts of each split, and a digest of the prompts and written responses.

    Where the task generates prompts when they are read, the digest covers some of each split, spread over it.
    """
    out = hashlib.sha256()
    written = bool({"responses", "pairs"} & set(task.serves))
    for split in (task.train, task.test):
        for prompt in _looked_at(split):
            responses = task.responses(prompt) if written else ()
            out.update(as_bytes([prompt, list(responses)]))
        out.update(b"|")
    return {"name": task.name, "train": len(task.train), "test": len(task.test), "digest": out.hexdigest()}


def _looked_at(split: Sequence[Any]) -> Iterator[Any]:
    n = len(split)
    if isinstance(split, list | tuple) or n <= _SAMPLED:
        return (split[i] for i in range(n))
    return (split[i * (n - 1) // (_SAMPLED - 1)] for i in range(_SAMPLED))


def _plain(value: Any) -> Any:
    """A value that JSON lacks, in a form that is the same in every process."""
    if is_dataclass(value) and not isinstance(value, type):
        # The line of a record in its file is left out: a blank line before it is no change.
        return {f.name: getattr(value, f.name) for f in fields(value) if f.name != "where"}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return list(value) if isinstance(value, Sequence) else type(value).__name__


def as_bytes(value: Any) -> bytes:
    """A value as JSON with sorted keys, the same in every process."""
    return json.dumps(value, default=_plain, sort_keys=True).encode()


def _sha(value: Any) -> str:
    return hashlib.sha256(as_bytes(value)).hexdigest()
