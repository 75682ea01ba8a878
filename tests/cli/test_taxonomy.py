"""The survey's axes (arXiv:2604.00626), derived from values, and ``limbeck methods --by``."""

from __future__ import annotations

import json

import pytest
from stub_engine import Run

import limbeck as lb
from limbeck.axes import data, everywhere, logp, ref, reinforce, sample, sampled, student, teacher
from limbeck.space import taxonomy
from limbeck.space.registry import REGISTRY

# Name: (feedback, access, granularity), decided by hand from the papers before the rules were run.
KNOWN = {
    "sft": (("none",), "teacher-free", "token"),
    "kd": (("logit-based",), "white-box", "token"),
    "gkd": (("logit-based",), "white-box", "token"),
    "opd": (("logit-based",), "black-box", "token"),
    "opd_full": (("logit-based",), "white-box", "token"),
    "lightning_opd": (("logit-based",), "black-box", "token"),
    "vopd": (("logit-based",), "white-box", "token"),
    "mad_opd": (("logit-based",), "white-box", "token"),
    "grpo": (("outcome-based",), "teacher-free", "sequence"),
    "gspo": (("outcome-based",), "teacher-free", "sequence"),
    "dpo": (("outcome-based",), "teacher-free", "sequence"),
    "kdrl": (("logit-based", "outcome-based"), "black-box", "hybrid"),
    "kdrl_reward": (("logit-based", "outcome-based"), "black-box", "sequence"),
    "sod": (("logit-based", "outcome-based"), "black-box", "hybrid"),
    "opsd": (("self-play",), "teacher-free", "token"),
    "sdpo": (("self-play",), "teacher-free", "token"),
    "sd_zero": (("self-play",), "teacher-free", "token"),
    "srpo": (("outcome-based", "self-play"), "teacher-free", "hybrid"),
    "rltf_sd": (("outcome-based", "self-play"), "teacher-free", "sequence"),
    "brts": (("logit-based", "outcome-based"), "white-box", "token"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_well_known_methods_stand_where_the_survey_puts_them(name: str) -> None:
    place = taxonomy.place(lb.get(name)())
    assert (place["feedback"], *place["access"], *place["granularity"]) == KNOWN[name]


@pytest.mark.parametrize("name", REGISTRY)
def test_every_method_has_a_place(name: str) -> None:
    place = taxonomy.place(lb.get(name)())
    assert set(place) == set(taxonomy.AXES)
    for axis, values in place.items():
        assert values
        assert set(values) <= set(taxonomy.AXES[axis])
        assert len(values) == 1 or axis == "feedback"


def test_arguments_change_a_methods_place_on_the_axes() -> None:
    """The place of a method follows from its definition and not from its name."""
    assert taxonomy.feedback(lb.get("kdrl")(coef=0)) == ("outcome-based",)
    assert taxonomy.access(lb.get("kdrl")(coef=0)) == "teacher-free"
    assert taxonomy.granularity(lb.get("kdrl")(coef=0)) == "sequence"
    assert taxonomy.granularity(lb.get("grpo")(ref_coef=0)) == "sequence"
    assert taxonomy.feedback(lb.get("vopd")(reward=True)) == ("logit-based", "outcome-based")
    assert taxonomy.access(lb.get("gkd")(top_k=20)) == "white-box"


def test_an_anchor_is_no_feedback_but_a_teacher_in_its_place_is() -> None:
    held = lb.Method(data(), lb.Term(everywhere, reinforce) + 0.1 * lb.Term(logp(ref), sampled("k2")))
    assert taxonomy.feedback(held) == ("none",)
    taught = lb.Method(sample(student), lb.Term(logp(teacher), sampled("k2")))
    assert taxonomy.place(taught) == {
        "feedback": ("logit-based",),
        "access": ("black-box",),
        "granularity": ("token",),
    }


@pytest.mark.parametrize("axis", taxonomy.AXES)
def test_methods_by_an_axis(limbeck_: Run, axis: str) -> None:
    found = json.loads(limbeck_("methods", "--by", axis, "--json").stdout)
    assert found["by"] == axis
    listed = [name for group in found["groups"] for name in group["methods"]]
    assert sorted(listed) == sorted(REGISTRY)
    for group in found["groups"]:
        assert all(list(taxonomy.on_axis(lb.get(name)(), axis)) == group["is"] for name in group["methods"])
    firsts = [taxonomy.AXES[axis].index(group["is"][0]) for group in found["groups"]]
    assert firsts == sorted(firsts)
    shown = limbeck_("methods", "--by", axis).stdout.splitlines()
    heads = [" and ".join(group["is"]) for group in found["groups"]]
    assert [line for line in shown if line in heads] == heads
    assert all(any(line.startswith(f"{name} ") for line in shown) for name in REGISTRY)


def test_an_unknown_axis_is_refused_with_the_nearest(limbeck_: Run) -> None:
    result = limbeck_("methods", "--by", "granularty")
    assert result.exit_code == 2
    assert result.stderr == (
        "limbeck: --by granularty: no such axis (did you mean 'granularity'?); use one of feedback, access, "
        "granularity.\n"
    )


def test_the_list_names_teachers_of_every_kind(limbeck_: Run) -> None:
    facts = {f["name"]: f for f in json.loads(limbeck_("methods", "--json").stdout)}
    teachers = {name: facts[name]["teacher"] for name in ("gkd", "vopd", "opd", "sdpo", "mad_opd", "grpo", "rltf_sd")}
    assert teachers == {
        "gkd": "dense",
        "vopd": "at",
        "opd": "sampled",
        "sdpo": "self",
        "mad_opd": "dense",  # whatever its teachers are called
        "grpo": None,
        "rltf_sd": "self",
    }
    # A verifier is needed where a term, the choice of the text, or what a teacher sees asks for it.
    assert {n: facts[n]["reward"] for n in ("opd", "grpo", "brts", "sd_zero", "sdpo", "opsd")} == {
        "opd": False,
        "grpo": True,
        "brts": True,
        "sd_zero": True,
        "sdpo": True,
        "opsd": False,
    }
    assert facts["sdpo"]["family"] == "Self-distillation"
    assert (facts["sdpo"]["feedback"], facts["sdpo"]["granularity"]) == (["self-play"], "token")


def test_the_list_stands_by_family(limbeck_: Run) -> None:
    shown = limbeck_("methods").stdout.splitlines()
    heads = ["Distillation from a teacher", "Self-distillation", "Learning from verifiable rewards"]
    at = [shown.index(head) for head in heads]
    assert at == sorted(at)
    first = {head: shown[i + 1 + (i == 0)].split()[0] for head, i in zip(heads, at, strict=True)}
    assert first == dict(zip(heads, ("sft", "opsd", "grpo"), strict=True))
