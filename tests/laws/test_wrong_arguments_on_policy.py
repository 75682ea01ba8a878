"""Impossible arguments of on-policy and self-distillation methods give one sentence, never a traceback."""

from __future__ import annotations

from typing import Any

import pytest

import limbeck as lb

m = lb.methods
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "levels that fall": (m.decoupled_kl, {"levels": (8, 4)}, "rising limits"),
    "a level that is no number": (m.decoupled_kl, {"levels": ("a",)}, "a level of entropy_gate is 'a'"),
    "a gate at no step": (m.decoupled_kl, {"levels": (4, 8), "gate_every": 0}, "at least 1"),
    "a mixture beyond its ends": (m.decoupled_kl, {"lam": 2.0}, "between 0 .fkl. and 1"),
    "no tokens": (m.tip, {"rho": 0.0}, "above 0"),
    "no turns": (m.sod, {"turns": 0}, "at least 1"),
    "a ceiling below 0": (m.sod, {"ceiling": -2.0}, "ceiling of step_drift is -2"),
    "a floor above 1": (m.vopd, {"floor": 2.0}, "floor of vopd is 2"),
    "a clip below 0": (m.lightning_opd, {"advantage_clip": -1.0}, "above 0"),
    "no steps a turn": (m.tcod, {"every": 0}, "at least 1"),
    "a branch of negative weight": (m.brts, {"lam": -1.0}, "lam of brts is -1"),
    "nobody to debate": (m.mad_opd, {"teachers": ()}, "number of teachers of mad_opd is 0"),
    "weights at no temperature": (m.mad_opd, {"tau": 0.0}, "tau of mad_opd is 0"),
    "less than no round": (m.mad_opd, {"rounds": -1}, "rounds of mad_opd is -1"),
    "a debater that is the teacher": (m.mad_opd, {"teachers": ("teacher", "b")}, "a role of its own"),
    "a cap of what is no sum": (m.opsd, {"divergence": "renyi(0.5)", "entry_clip": 0.1}, "no sum over vocabulary"),
    "a cap that turns the loss around": (m.sdpo, {"is_cap": -1.0}, "above 0"),
    "a cap of nothing": (m.exopd, {"is_cap": 0.0}, "above 0"),
    "a share above 1": (m.sdpo_hybrid, {"share": 2.0}, "between 0 and 1"),
    "a weight above 1": (m.kd, {"weight": 2.0}, "between 0 and 1"),
    "a temperature that overflows": (m.kd, {"tau": 1e200}, "a number is too large"),
    "a number of hundreds of digits": (m.dapo, {"clip_low": 10**400}, "15 digits"),
    "bounds exchanged": (m.sod_per_sample, {"beta_min": 1.0, "beta_max": 0.1}, "at least 1"),
    "a floor that is none": (m.decoupled_kl, {"floor": float("nan")}, "give a number"),
    "nobody summarises": (m.skill_sd, {"summary_by": ""}, "names no model"),
    "endless debates": (m.mad_opd, {"rounds": 10**6}, "between 0 and 20"),
    "a cap of 0": (m.opsd, {"entry_clip": 0.0}, "cap of an entry"),
    "an unknown context": (m.opsd, {"context": "solutio"}, "did you mean 'solution'"),
    "an average that never moves": (m.sdpo, {"rate": 0.0}, "use init"),
    "a share beyond 1": (m.sdpo_trust_region, {"mix": 2.0}, "mix of sdpo_trust_region is 2"),
    "a half of more than all": (m.pi_distill, {"alpha": 3.0}, "alpha of pi_distill is 3"),
    "an E-step at no step": (m.vpd, {"e_every": 0}, "at least 1"),
    "a past that is everything": (m.vpd, {"rate": 1.0}, r"\[0, 1\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_arguments_are_refused_in_one_sentence(name: str) -> None:
    """Each names the argument, its value and what to give."""
    recipe, arguments, says = REFUSED[name]
    with pytest.raises(lb.LimbeckError, match=says) as told:
        recipe(**arguments)
    assert "\n" not in str(told.value)
