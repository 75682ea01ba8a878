"""Every published method. Each file holds one family of papers, and each method is a docstring and a return statement.

A method composes parts of ``axes``; there is no tensor code here. Importing this folder fills the registry.
``pipelines`` holds the recipes of several stages.
"""

from typing import TYPE_CHECKING

from ..errors import nearest
from ..space.registry import REGISTRY
from .distillation import gkd, kd, minillm, opd, opd_full, sft
from .external import exopd, exopd_full, lightning_opd, sod, sod_per_sample, tip, tip_entropy, tip_q3, vopd
from .joint import kdrl, kdrl_reward, kdrl_shaping
from .preference import dpo
from .privileged import (
    distil,
    opsd,
    opsd_sampled,
    sd_zero,
    sd_zero_srt,
    sdpo,
    sdpo_hybrid,
    sdpo_trust_region,
    skill_sd,
    srpo,
    tt_opd,
)
from .privileged_rl import opsd_rl, pi_distill, rltf_fm, rltf_sd, vpd
from .reward import dapo, dr_grpo, grpo, gspo
from .trajectories import brts, decoupled_kl, mad_opd, tcod, tcod_back, trd, trd_self

__all__ = [
    "REGISTRY",
    "brts",
    "dapo",
    "decoupled_kl",
    "distil",
    "dpo",
    "dr_grpo",
    "exopd",
    "exopd_full",
    "gkd",
    "grpo",
    "gspo",
    "kd",
    "kdrl",
    "kdrl_reward",
    "kdrl_shaping",
    "lightning_opd",
    "mad_opd",
    "minillm",
    "opd",
    "opd_full",
    "opsd",
    "opsd_rl",
    "opsd_sampled",
    "pi_distill",
    "rltf_fm",
    "rltf_sd",
    "sd_zero",
    "sd_zero_srt",
    "sdpo",
    "sdpo_hybrid",
    "sdpo_trust_region",
    "sft",
    "skill_sd",
    "sod",
    "sod_per_sample",
    "srpo",
    "tcod",
    "tcod_back",
    "tip",
    "tip_entropy",
    "tip_q3",
    "trd",
    "trd_self",
    "tt_opd",
    "vopd",
    "vpd",
]


if not TYPE_CHECKING:  # a type checker would take it for a promise that every name exists

    def __getattr__(name: str) -> object:
        """Raise for a name that is no method, with the nearest one."""
        raise AttributeError(f"limbeck.methods has no method {name!r}{nearest(name, __all__)}")
