"""Every method: one paper family a file, composition and docstring only. Importing this fills the registry."""

from ..registry import REGISTRY
from .distillation import gkd, kd, minillm, opd, opd_full, sft
from .joint import kdrl, kdrl_reward, kdrl_shaping
from .preference import dpo
from .reward import dapo, dr_grpo, grpo, gspo

__all__ = [
    "REGISTRY",
    "dapo",
    "dpo",
    "dr_grpo",
    "gkd",
    "grpo",
    "gspo",
    "kd",
    "kdrl",
    "kdrl_reward",
    "kdrl_shaping",
    "minillm",
    "opd",
    "opd_full",
    "sft",
]
