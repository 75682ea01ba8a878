"""Models without their weights, for a dry run: structures from configurations, sizes from headers of safetensors."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from ...errors import LimbeckError
from ...tasks.base import found
from . import hub
from .weights import base_of, is_adapter, load_error


class Unloaded(nn.Module):
    """The structure of a model, in place of its ``Scorer``; it cannot score.

    Attributes:
        model: with all its parameters on the meta device.
        vocabulary: number of tokens that all models of the run share.
        writes: ``padded``, as for most models; without weights it cannot be checked.
    """

    def __init__(self, model: Any, vocabulary: int):
        super().__init__()
        self.model = model
        self.vocabulary = vocabulary
        self.writes = "padded"


def structure(path: str, label: str, remote_code: bool) -> Any:
    """A causal language model on the meta device, in float32; of an adapter, its base model.

    Raises:
        LimbeckError: where the configuration is not that of a causal language model.
    """
    path = base_of(path, label) if is_adapter(path) else path
    here: dict[str, Any] = {"trust_remote_code": remote_code, "local_files_only": hub.only_here(path)}
    try:
        config = AutoConfig.from_pretrained(path, **here)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=remote_code, dtype=torch.float32)
    except Exception as e:  # a damaged folder may raise any exception
        raise LimbeckError(f"{label}: the model could not be loaded: {load_error(e)}") from None
    model.is_quantized = bool(getattr(config, "quantization_config", None))
    with contextlib.suppress(OSError, ValueError):  # without a file it keeps the one of its configuration
        model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=here["local_files_only"])
    return model.eval()


# ---------------------------------------------------------------- headers of safetensors


@dataclass(frozen=True)
class Stored:
    """Weights as they are stored on a disk or the hub.

    Attributes:
        size: bytes of all tensors.
        parameters: numbers in all tensors.
        types: number of parameters by the name of the type (``BF16``).
    """

    size: int
    parameters: int
    types: Mapping[str, int]


_BITS = {"F64": 64, "I64": 64, "F32": 32, "I32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}


def stored_weights(path: str, label: str) -> Stored | None:
    """The size of a model's weights from the headers of its files; None where that cannot be known from here.

    Raises:
        LimbeckError: where a folder has no safetensors, or one of them is damaged.
    """
    folder = found(path, "folder")
    if folder is None:
        config = hub.cached(path, "config.json") or hub.cached(path, "adapter_config.json")
        folder = config.parent if config is not None else None
        if folder is None or not list(folder.glob("*.safetensors")):
            return _of_hub(path)
    files = _files(folder)
    if not files:
        raise LimbeckError(
            f"{label}: the model could not be loaded: its folder has no safetensors weights (pickles are not read); "
            "give a folder with some."
        )
    counts: dict[str, int] = {}
    size = 0
    for file in files:
        for tensor in _header(file, label).values():
            begin, end = tensor["data_offsets"]
            size += end - begin
            counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
    return Stored(size, sum(counts.values()), counts)


def _files(folder: Path) -> list[Path]:
    """The files that loading would read: those of the index, else the one of a model or an adapter."""
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            return []
        return [folder / name for name in sorted(names)]
    return [p for name in ("model", "adapter_model") if (p := folder / f"{name}.safetensors").is_file()][:1]


def _header(file: Path, label: str) -> dict[str, Any]:
    """Type, shape and place of each tensor of a file, which must be as long as they say."""
    try:
        with file.open("rb") as f:
            n = int.from_bytes(f.read(8), "little")
            if n > 100_000_000:
                raise ValueError("it does not begin with a header")
            header = json.loads(f.read(n))
        header.pop("__metadata__", None)
        ends = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        if file.stat().st_size != 8 + n + ends:
            raise ValueError(f"it has {file.stat().st_size:,} bytes and its header describes {8 + n + ends:,}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise LimbeckError(
            f"{label}: the model could not be loaded: {file.name} is damaged ({e}); copy or download it again."
        ) from None
    return dict(header)


def _of_hub(name: str) -> Stored | None:
    """The same for a model of the hub, of which only the headers are fetched."""
    if not hub.is_hub_name(name) or not hub.reachable():
        return None
    try:
        counts = {str(k): n for k, n in huggingface_hub.get_safetensors_metadata(name).parameter_count.items()}
    except Exception:  # no safetensors, no such model, no answer: loading says what is wrong
        return None
    size = sum(n * _BITS.get(kind, 8) // 8 for kind, n in counts.items())
    return Stored(size, sum(counts.values()), counts)
