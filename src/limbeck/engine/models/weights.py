"""Loading a model from a folder or a hub name, with all its weights; adapters are merged."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from ...errors import LimbeckError
from ...tasks.base import found
from . import hub

FULL = (MemoryError, torch.OutOfMemoryError)
"""Errors that are not caused by the model's folder."""

SHOWN = 3
"""Number of keys of a checkpoint that a message names."""


def load_weights(path: str, label: str, remote_code: bool, dtype: torch.dtype | str) -> PreTrainedModel:
    """A causal language model as its checkpoint describes it, its adapter merged where the folder is an adapter's.

    Args:
        path: folder or hub name.
        label: the setting and its value, with which messages begin.
        remote_code: whether code of a repository may run.
        dtype: of the weights in memory.

    Raises:
        LimbeckError: where a weight would be random or is left over, or the model is not a causal language model.
    """
    if is_adapter(path):
        return _with_adapter(path, label, remote_code, dtype)
    check_config(path, label, remote_code)
    here: dict[str, Any] = {"trust_remote_code": remote_code, "local_files_only": hub.only_here(path)}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True, **here
        )
    except FULL:
        raise
    except Exception as e:  # a damaged folder may raise any exception
        raise LimbeckError(f"{label}: the model could not be loaded: {load_error(e)}") from None
    _refuse_other_keys(label, info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"])
    loaded: PreTrainedModel = model
    return loaded


def check_config(path: str, label: str, remote_code: bool) -> None:
    """Refuse a configuration that is not that of a causal language model, before its weights are read."""
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=remote_code, local_files_only=hub.only_here(path))
    except Exception as e:
        raise LimbeckError(f"{label}: the model could not be loaded: {load_error(e)}") from None
    refuse_encoder(config, label)
    _refuse_empty(config, label)


def refuse_encoder(config: Any, label: str) -> None:
    """Refuse a model with an encoder, which a causal language model does not have."""
    if getattr(config, "is_encoder_decoder", False):
        raise LimbeckError(
            f"{label} is an encoder-decoder ({config.model_type}), of which only the decoder would be trained; give a "
            "causal language model."
        )


def _refuse_empty(config: Any, label: str) -> None:
    """Refuse a configuration with a size below 1: Transformers would build a model without layers from it."""
    text = config.get_text_config()
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
    for name in (*sizes, "intermediate_size", "max_position_embeddings"):
        size = getattr(text, name, None)
        if isinstance(size, int) and size < 1:
            raise LimbeckError(f"{label}: {name}={size} in its config.json; give the number that its weights have.")


def load_error(e: Exception) -> str:
    """The first line of an error of Transformers, and the remedy."""
    lines = str(e).strip().splitlines()
    first = " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1]) if lines else ""
    line = (first or type(e).__name__).rstrip(" .:")
    if "trust_remote_code" in str(e):
        return f"{line}; to run the code of its repository, if you trust it, --set remote_code=true."
    return f"{line}; give a model folder or hub name with a tokenizer and safetensors weights (pickles are not read)."


def _refuse_other_keys(
    label: str, missing: Collection[str], unexpected: Collection[str], mismatched: Collection[Any]
) -> None:
    """Refuse weights that are not those of the configuration: Transformers fills gaps at random and drops the rest."""
    shapes = [f"{key}: {list(stored)} for {list(wanted)}" for key, stored, wanted in mismatched]
    faults = [
        _some("lacks", missing),
        _some("holds weights that the model does not have", unexpected),
        _some("has weights of other shapes", shapes),
    ]
    if any(faults):
        problems = "; it ".join(f for f in faults if f)
        raise LimbeckError(
            f"{label}: the model could not be loaded: its weights are not those that its configuration describes; the "
            f"checkpoint {problems}; give the whole checkpoint with its own configuration."
        )


def _some(fault: str, keys: Collection[str]) -> str:
    """A fault with the first of its keys; empty where there are none."""
    first = sorted(keys)[:SHOWN]
    more = f" and {len(keys) - len(first)} more" if len(keys) > len(first) else ""
    return f"{fault} ({', '.join(first)}{more})" if keys else ""


# ---------------------------------------------------------------- adapters


def is_adapter(path: str) -> bool:
    """Whether a folder or hub name holds an adapter without a model."""
    local = found(path, "folder")
    if local is not None:
        return (local / "adapter_config.json").is_file() and not (local / "config.json").is_file()
    if not hub.is_hub_name(path):
        return False
    try:
        offline = hub.only_here(path)
        if cached_file(path, "config.json", local_files_only=offline, _raise_exceptions_for_missing_entries=False):
            return False
        return find_adapter_config_file(path, local_files_only=offline) is not None
    except (OSError, ValueError):  # loading it as a model says what is wrong
        return False


def base_of(path: str, label: str) -> str:
    """Folder or hub name of the model that an adapter was trained on; a relative folder may lie beside the adapter."""
    base = _peft_config(path, label).base_model_name_or_path
    if not base:
        raise LimbeckError(f"{label} is an adapter whose adapter_config.json names no base_model_name_or_path; add it.")
    local = found(path, "folder")
    places = [base] if local is None else [base, str(local / base), *_of_run(local, base)]
    here = next((there for place in places if (there := found(place, "folder")) is not None), None)
    if here is not None:
        return str(here)
    if not hub.is_hub_name(base):
        raise LimbeckError(
            f"{label} is an adapter of {base!r}, and there is no such folder; set base_model_name_or_path in its "
            "adapter_config.json to the folder or hub name of its base model."
        )
    hub.refuse_unreachable(f"{label}, an adapter: base_model_name_or_path", base)
    return str(base)


def _of_run(adapter: Path, base: str) -> list[str]:
    """The student with which a run of Limbeck began, where the adapter is the run's; its config holds only a name."""
    try:
        student = json.loads((adapter.parent / "run.json").read_text(encoding="utf-8"))["student"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [student] if isinstance(student, str) and Path(student).name == base else []


def _peft_config(path: str, label: str) -> Any:
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(path, local_files_only=hub.only_here(path))
    except Exception as e:
        message = next(iter(str(e).splitlines()), type(e).__name__).rstrip(".")
        raise LimbeckError(
            f"{label}: its adapter_config.json cannot be read ({message}); give the folder as PEFT wrote it."
        ) from None


def _with_adapter(path: str, label: str, remote_code: bool, dtype: torch.dtype | str) -> PreTrainedModel:
    """The base model with the adapter merged into its weights."""
    from peft import get_peft_model, set_peft_model_state_dict

    base = base_of(path, label)
    if is_adapter(base):
        raise LimbeckError(f"{label} is an adapter of another adapter ({base!r}); merge that one into its base first.")
    config = _peft_config(path, label)
    model = load_weights(base, f"{label}, an adapter of {base!r}", remote_code, dtype)
    try:
        file = cached_file(path, "adapter_model.safetensors", local_files_only=hub.only_here(path))
        tensors = load_file(file)
        adapted = get_peft_model(model, config)
        if not hasattr(adapted, "merge_and_unload"):
            raise LimbeckError(
                f"{label} is an adapter of kind {config.peft_type.value}, which cannot be merged into its base; give a "
                "LoRA adapter, or a whole model."
            )
        result: Any = set_peft_model_state_dict(adapted, tensors)
        own = [k for k in result.missing_keys if adapted.base_model.prefix in k or "modules_to_save" in k]
        _refuse_other_keys(f"{label}, an adapter", own, result.unexpected_keys, [])
        merged: PreTrainedModel = adapted.merge_and_unload()
    except (*FULL, LimbeckError):
        raise
    except Exception as e:
        message = next(iter(str(e).strip().splitlines()), type(e).__name__).rstrip(" .:")
        raise LimbeckError(
            f"{label}: the adapter could not be loaded on {base!r} ({message}); give the folder as PEFT wrote it, with "
            "adapter_model.safetensors, and the base model that it was trained on."
        ) from None
    merged.name_or_path = str(Path(path))
    return merged.requires_grad_(True)
