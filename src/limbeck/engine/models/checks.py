"""Checks of a loaded model: finite weights, causal, deterministic, trainable in its precision."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import LimbeckError
from .weights import refuse_encoder

HALF = (torch.float16, torch.bfloat16)
TEXT = (3, 5, 4, 2, 6, 1, 7, 3)
"""Token ids that a model reads for its checks, modulo its vocabulary."""
CHANCE = ("drop", "jitter")
"""Words in the names of probabilities that are used only in training."""


def slack(dtype: torch.dtype) -> float:
    """Tolerance between two computations of the same logits, relative to the largest (ours)."""
    return 5e-2 if dtype in HALF else 1e-3


def check_weights(model: nn.Module, label: str) -> None:
    """Refuse weights of NaN or infinity.

    Raises:
        LimbeckError: naming the first such tensor.
    """
    refuse_encoder(getattr(model, "config", None), label)
    bad = [name for name, p in model.named_parameters() if p.is_floating_point() and not _finite(p)]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise LimbeckError(
            f"{label}: its weights hold NaN or infinity, in {bad[0]}{more}; give a checkpoint from before its training "
            "diverged."
        )
    # A buffer may hold infinity (a mask does). NaN comes of a configuration that has no meaning, and whether a forward
    # pass shows it depends on the processor, because some attention kernels turn it into 0.
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point() and bool(buffer.isnan().any()):
            raise LimbeckError(
                f"{label}: its buffer {name} holds NaN, which is computed from config.json; check the rotary "
                "embedding's settings there (rope_parameters), or give another model."
            )


def _finite(p: Tensor) -> bool:
    return p.is_meta or bool(torch.isfinite(p.detach()).all())


@torch.no_grad()
def check_behaviour(model: Any, label: str) -> None:
    """Refuse a model that is not causal, or whose logits are NaN or infinite.

    Raises:
        LimbeckError: where the last token changes the logits before it.
    """
    rows = model.get_input_embeddings().num_embeddings
    text = [i % rows for i in TEXT]
    plain, other = _logits(model, text), _logits(model, [*text[:-1], (text[-1] + 1) % rows])
    size = float(plain.abs().max())
    if not bool(torch.isfinite(plain).all()):
        raise LimbeckError(
            f"{label}: its logits of a short text are NaN or infinite, though its weights are not; correct its "
            "config.json, or give another model."
        )
    leak = float((plain[:-1] - other[:-1]).abs().max())
    # The logits before the last token are computed twice from the same numbers in the same shapes.
    if leak > (1e-2 if weight_dtype(model) in HALF else 1e-5) * size:
        raise LimbeckError(
            f"{label}: {type(model).__name__} is not a causal language model: a change of the last token changes the "
            f"logits before it by {leak:.1g}; give a model that reads from left to right."
        )


def weight_dtype(model: Any) -> torch.dtype:
    """The type of a model's first floating-point weight, which decides its rounding."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _logits(model: Any, text: list[int]) -> Tensor:
    """Logits of a text, ``[T, V]``."""
    ids = torch.tensor([text], device=next(model.parameters()).device)
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0].float()
    return logits


def accepted(model: Any, **arguments: Any) -> dict[str, Any]:
    """The arguments that the model's ``forward`` has."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = inspect.signature(base.forward).parameters
    return {k: v for k, v in arguments.items() if k in names}


# ---------------------------------------------------------------- precision


def refuse_quantised(model: Any, label: str, lora_rank: int) -> None:
    """Refuse to train quantised weights: only the few that are not quantised would change."""
    if getattr(model, "is_quantized", False) and not lora_rank:
        raise LimbeckError(
            f"{label} is quantised, and such weights cannot be trained; give lora_rank (--set lora_rank=16) to train "
            "adapters on it, or the model as it was before."
        )


def hold_in_full(model: Any) -> torch.dtype | None:
    """Convert trainable weights to float32, in place. Returns the half precision that they had, or None.

    A step of AdamW is smaller than the spacing of half-precision numbers, so most weights would not change. The layers
    below PEFT's adapters keep their precision: only the adapters are trained.
    """
    halves = [p for p in model.parameters() if p.requires_grad and p.dtype in HALF]
    if not halves:
        return None
    had = halves[0].dtype
    if any(hasattr(m, "lora_A") for m in model.modules()):
        for p in halves:
            p.data = p.data.float()
    else:
        model.float()
        model.config.dtype = torch.float32
    return had


# ---------------------------------------------------------------- checkpointing without dropout


def checkpointing(model: Any) -> None:
    """Recompute activations in backward, without randomness in the forward passes.

    Transformers recomputes only in modules in training mode. Only the modules that recompute are set to it, so dropout
    in the modules below them stays off, and the dropout probabilities that they hold themselves are set to zero.
    """
    model.gradient_checkpointing_enable()
    model.eval()
    for module in model.modules():
        if not getattr(module, "gradient_checkpointing", False):
            continue
        module.training = True
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and any(word in name for word in CHANCE):
                setattr(module, name, 0.0)


@torch.no_grad()
def refuse_chance(model: Any, label: str) -> None:
    """Refuse a model whose passes over one text differ, because losses compare passes.

    Raises:
        LimbeckError: where two passes differ by more than the order of a sum may.
    """
    rows = model.get_input_embeddings().num_embeddings
    text = [i % rows for i in TEXT]
    once, again = _logits(model, text), _logits(model, text)
    exact = once.device.type == "cpu"  # elsewhere the order of a sum may change
    if (once - again).abs().max() > (0.0 if exact else slack(weight_dtype(model))) * once.abs().max():
        raise LimbeckError(
            f"{label}: two passes over one text differ by {float((once - again).abs().max()):.1g}, so its log-probs "
            "cannot be compared; set random parts in its config.json (dropout, jitter) to 0, or "
            "gradient_checkpointing=false."
        )


def losses_left_out(model: Any) -> list[str]:
    """Auxiliary losses in a model's configuration, as ``name=value``; no method adds them."""
    config = model.config.get_text_config()
    asked = getattr(config, "output_router_logits", False)
    names = ["aux_loss_alpha", "mtp_loss_coef", "mtp_loss_weight"]
    names += ["router_aux_loss_coef", "router_z_loss_coef", "aux_loss_coef"] if asked else []
    values = {name: getattr(config, name, None) for name in names}
    return [f"{k}={v:g}" for k, v in values.items() if isinstance(v, int | float) and v > 0]
