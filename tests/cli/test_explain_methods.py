"""``methods``, ``explain`` and ``diff``, on the real methods."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from stub_engine import Run

import limbeck as lb
from limbeck.cli.methods import TEACHER_LEGEND, TEACHERS
from limbeck.space.registry import REGISTRY


def test_methods_lists_all_with_what_they_read(limbeck_: Run) -> None:
    result = limbeck_("methods")
    assert result.exit_code == 0
    lines = {words[0]: words for words in (line.split() for line in result.stdout.splitlines()) if words}
    assert set(REGISTRY) <= set(lines)
    assert lines["gkd"][1:] == ["GKD", "arXiv:2306.13649", "dense", "—", "high"]
    assert lines["kdrl"][1:] == ["KDRL", "arXiv:2506.02208", "sampled", "yes", "medium"]
    assert lines["sft"][-4:] == ["—", "—", "—", "high"]


def test_methods_explains_the_words_of_its_columns(limbeck_: Run) -> None:
    assert tuple(TEACHER_LEGEND) == (*TEACHERS, "self")
    shown = [line.strip() for line in limbeck_("methods").stdout.splitlines()]
    for word, meaning in TEACHER_LEGEND.items():
        assert f"{word:<9}{meaning}" in shown
    for column in ("teacher", "reward", "confidence"):
        assert any(line.startswith(f"{column}: ") for line in shown)


def test_methods_in_json_and_at_length(limbeck_: Run) -> None:
    facts = {f["name"]: f for f in json.loads(limbeck_("methods", "--json").stdout)}
    assert list(facts) == list(REGISTRY)
    assert (facts["grpo"]["teacher"], facts["grpo"]["reads"], facts["grpo"]["reward"]) == (
        None,
        {"ref": ["sampled"]},
        True,
    )
    assert facts["kdrl"]["arguments"]["reduction"] == "token_mean"
    assert facts["kdrl"]["arguments"]["group"] == 8
    long = limbeck_("methods", "--long").stdout
    for fact in facts.values():
        assert fact["summary"] in " ".join(long.split())
    assert "mix=0.2, gamma=0.95" in long


def test_explain_shows_formula_axes_and_arguments(limbeck_: Run) -> None:
    shown = limbeck_("explain", "kdrl").stdout
    value = lb.methods.kdrl()
    assert f"L = {value.terms}" in shown
    assert "kdrl — KDRL (arXiv:2506.02208)" in shown
    assert "R = log π_T - log π_θ" in shown
    assert "teacher: sampled" in shown
    assert "the number of all tokens (the same as for term 2)" in shown
    assert "rollouts per prompt; 8, from the follow-up's re-run (the paper's was not found)." in shown
    assert "limbeck train kdrl --student STUDENT --teacher TEACHER --task TASK" in shown
    assert "--teacher" not in limbeck_("explain", "sft").stdout


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "sdpo",
            [
                'contexts sibling_or_feedback ("{% if sibling %}A correct solution: …")',
                "weights ema(0.05): moves 0.05 of the way to the student after every batch",
            ],
        ),
        (
            "tt_opd",
            [
                "weights ema(0.005, every 5, reset 30): moves 0.005 of the way to the student after every 5 batches, "
                "and becomes the student every 30 batches"
            ],
        ),
        (
            "lightning_opd",
            [
                "weights init: a copy of the student before training",
                "remembers responses with teacher's log-probs",
            ],
        ),
        ("skill_sd", ["remembers skills for each prompt (8 at most)"]),
        ("vpd", ["remembers a moving average (0.99 of the past)"]),
        ("rltf_sd", ["contexts tried_again (\"{% if not correct %}{{ feedback or 'That is not right.' }} …\")"]),
        ("mad_opd", ['contexts debate ("A debate among analysts: …"; asks first, second first)']),
    ],
)
def test_explain_shows_contexts_weights_and_what_is_remembered(limbeck_: Run, name: str, lines: list[str]) -> None:
    shown = [" ".join(line.split()) for line in limbeck_("explain", name).stdout.splitlines()]
    for line in lines:
        assert line in shown, shown
    printed = json.loads(limbeck_("explain", name, "--json").stdout)["axes"]
    assert all(printed[line.split()[0]] == line.partition(" ")[2] for line in lines)


def test_explain_shows_controllers(limbeck_: Run) -> None:
    shown = limbeck_("explain", "decoupled_kl", "--set", "levels=[128, 256]", "--set", "floor=0.3").stdout
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "remembers a controller: 128 → 256 while H ≥ 0.3, every 100 steps" in lines


def test_explain_of_a_plain_method_has_no_such_lines() -> None:
    printed = lb.explain("gkd")
    assert not any(f"\n  {label} " in printed for label in ("contexts", "weights", "remembers"))


def test_explain_follows_set(limbeck_: Run) -> None:
    shown = limbeck_("explain", "kdrl", "--set", "coef=0", "--set", "arguments.group=16").stdout
    assert f"L = {lb.methods.kdrl(coef=0).terms}\n" in "\n".join(line.rstrip() for line in shown.splitlines())
    assert "16 (default 8)" in shown
    assert "reads only the student" in " ".join(shown.split())
    assert "--task TASK --set group=16 --set coef=0" in shown


def test_explain_prints_json(limbeck_: Run) -> None:
    found = json.loads(limbeck_("explain", "kdrl", "--json", "--set", "group=4").stdout)
    assert found["formula"] == str(lb.methods.kdrl().terms)
    assert found["reads"] == {"teacher": ["sampled"]}
    assert found["denominators"] == [f"the number of all tokens (the same as for term {i})" for i in (2, 1)]
    assert found["citation"] == "KDRL (arXiv:2506.02208)"
    assert found["axes"]["denominator 1"] == found["denominators"][0]
    group = next(a for a in found["arguments"] if a["name"] == "group")
    assert (group["default"], group["value"]) == (8, 4)
    assert found["published"][0].startswith("L = L_GRPO + β(s)")


def test_diff_shows_only_what_differs(limbeck_: Run) -> None:
    shown = limbeck_("diff", "grpo", "dr_grpo").stdout
    assert shown.split()[0] == "axis"
    assert "sequence_mean" in shown
    assert "updates" not in shown
    found = json.loads(limbeck_("diff", "grpo", "dr_grpo", "--json").stdout)
    expected = lb.diff(lb.methods.grpo(), lb.methods.dr_grpo())
    assert (found["a"], found["b"]) == ("grpo", "dr_grpo")
    assert [(d["axis"], d["a"], d["b"]) for d in found["differences"]] == [(x.strip(), a, b) for x, a, b in expected]


def test_diff_of_a_method_with_itself_is_empty(limbeck_: Run) -> None:
    assert limbeck_("diff", "gkd", "gkd").stdout == "gkd and gkd are the same objective.\n"
    assert json.loads(limbeck_("diff", "gkd", "gkd", "--json").stdout)["differences"] == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("explain", "kdlr"), "unknown method 'kdlr' (did you mean 'kdrl'?)"),
        (("diff", "gkd", "dppo"), "unknown method 'dppo' (did you mean 'dpo'?)"),
        (("explain", "kdrl", "--set", "gruop=4"), "unknown argument 'gruop' (did you mean 'group'?)"),
        (("explain", "kdrl", "--set", "group=four"), "kdrl: group='four' is not a whole number; its default is 8"),
        (("explain", "kdrl", "--set", "gate=all"), "kdrl(gate='all'): unknown"),
        (("explain", "kdrl", "--set", "arguments=3"), "arguments=3: it is a table"),
        (("explain", "kdrl", "--set", "group"), "write key=value"),
    ],
)
def test_mistakes_give_one_sentence(limbeck_: Run, words: tuple[str, ...], sentence: str) -> None:
    result = limbeck_(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("limbeck: ")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    with_json = limbeck_(*words, "--json")
    assert json.loads(with_json.stdout) == {"error": result.stderr.removeprefix("limbeck: ").strip()}
    assert with_json.exit_code == 2


def test_reading_about_methods_does_not_import_transformers() -> None:
    """A misspelt method does not need it either: importing the engine takes long."""
    quick = ["--help", "methods", "explain kdrl", "diff gkd kdrl", "train --help"]
    code = (
        "import json, sys\nfrom typer.testing import CliRunner\nfrom limbeck.cli.app import app\n"
        "call = lambda words: CliRunner().invoke(app, words.split()).exit_code\n"
        f"codes = [call(words) for words in {[*quick, 'train kdlr']}]\n"
        "print(json.dumps({'codes': codes, 'modules': sorted(sys.modules)}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["codes"] == [0] * len(quick) + [2]
    assert "limbeck.cli" in printed["modules"]
    assert {"transformers", "matplotlib", "datasets"} & set(printed["modules"]) == set()


def test_addresses_are_not_cut_at_80_columns(limbeck_: Run) -> None:
    shown = limbeck_("methods", COLUMNS="80").stdout.splitlines()
    addresses = [f"{name}: {r.paper}" for name, r in REGISTRY.items() if "/" in r.paper]
    assert addresses
    for line in addresses:
        assert line in shown
    assert max(map(len, shown)) <= 80
    assert any(re.match(r"gkd +GKD +arXiv:2306\.13649 ", line) for line in shown)
