"""What a method asks of its task, its contexts and its models: one sentence before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Parity, Shelf, go, lines, llama, open_run

import limbeck as lb
from limbeck.axes import sample, solution, stairs, student
from limbeck.engine import build as setup
from limbeck.engine import configure
from limbeck.engine.config import parse_settings
from limbeck.engine.models import loading
from limbeck.engine.rollout.writer import sampling_prompts
from limbeck.errors import LimbeckError

Given = dict[str, Any]

REFUSED: dict[str, tuple[str, Given, str]] = {
    "a name that nothing has": (
        "opsd",
        {"contexts": {"solution": "See {{ solutoin }}"}},
        r"context 'solution' names 'solutoin' \(did you mean 'solution'\?\)",
    ),
    "a context that is not used": (
        "opsd",
        {"contexts": {"hint": "{{ hint }}"}},
        r"contexts.hint: opsd has no such context; it uses solution, so leave it out",
    ),
    "a misspelt context": ("opsd", {"contexts": {"solutoin": "x"}}, r"did you mean 'solution'\?"),
    "a context where there is none": ("grpo", {"contexts": {"hint": "x"}}, "it uses no context, so leave it out"),
    "a folder": ("opsd", {"contexts": {"solution": "/tmp"}}, "contexts.solution='/tmp' is a folder"),
    "a path that leads nowhere": ("opsd", {"contexts": {"solution": "words/x"}}, "there is no such file"),
    "a file that is not there": ("opsd", {"contexts": {"solution": "words/x.j2"}}, "there is no such file"),
    "nothing in the end": ("opsd", {"contexts": {"solution": "{% set a = solution %}"}}, "renders to an empty text"),
    "nothing of that name": ("opsd", {"contexts": {"solution": "{{ solution.uper }}"}}, "renders to an empty text"),
    "no such filter": (
        "opsd",
        {"contexts": {"solution": "{{ solution | upperr }}"}},
        r"No filter named 'upperr'[^\n]*$",
    ),
    "no template": ("opsd", {"contexts": {"solution": "{{ solution"}}, "cannot be rendered"),
    "the plain prompt": ("opsd", {"context": "plain"}, r"reads only init\(plain\), and that is the student itself"),
    "a model that nobody reads": ("mad_opd", {"others": {"third": "embedded"}}, "it reads first, second"),
    "a further model for none": ("opd", {"others": {"frist": "embedded"}}, "it reads no further models"),
    "the teacher among the others": ("opd", {"others": {"teacher": "embedded"}}, "a setting of its own; give teacher="),
    "all missing models at once": ("mad_opd", {"others": {}}, r"--set others.first=... --set others.second=..."),
    "turns without that argument": ("tcod", {"task": "two_digit_sums"}, r"retry around this one\)\.$"),
    "turns with it": ("sod", {"task": "two_digit_sums"}, "or --set turns=1"),
    "names of teachers": ("mad_opd", {"teachers": ("a", "a")}, "'a' is no distinct name"),
    "a teacher called like a template": ("mad_opd", {"teachers": ("{{ x", "b")}, "is no distinct name"),
    "levels beyond the window": ("decoupled_kl", {"levels": (4, 2000), "gate_every": 1}, "the response may have 2000"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_contexts_are_refused_with_the_remedy(
    case: str, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, given, sentence = REFUSED[case]
    if case != "levels beyond the window":
        monkeypatch.setattr(loading, "load_policy", lambda *a, **k: pytest.fail("a model was loaded"))
    with pytest.raises(LimbeckError, match=sentence):
        go(shelf, method, tmp_path / "run", **given)


def test_an_empty_template_file_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    file = tmp_path / "empty.jinja"
    file.write_text(" \n")
    with pytest.raises(LimbeckError, match=r"contexts\.solution is empty"):
        go(shelf, "opsd", tmp_path / "run", contexts={"solution": str(file)})


def test_the_students_own_folder_is_no_teacher(shelf: Shelf, tmp_path: Path) -> None:
    """Zero signal: refused, but not where the teacher sees more, or a reward moves the student as well."""
    own = {"teacher": str(shelf.student / ".." / shelf.student.name)}
    with pytest.raises(LimbeckError, match="opd reads only teacher, and that is the student itself"):
        go(shelf, "opd", tmp_path / "opd", **own)
    with pytest.raises(LimbeckError, match="lightning_opd reads only teacher"):
        go(shelf, "lightning_opd", tmp_path / "lightning", **own)
    for method in ("trd", "kdrl", "kdrl_shaping"):
        go(shelf, method, tmp_path / method, steps=1, eval_size=0, **own)


def test_the_students_own_object_is_no_teacher(shelf: Shelf, tmp_path: Path) -> None:
    model = llama(0)
    with pytest.raises(LimbeckError, match="that is the student itself"):
        lb.distill("opd", student=model, teacher=model, task=Parity(), out=tmp_path / "run", quiet=True)


def test_sdpo_with_a_verifier_without_feedback_uses_siblings(shelf: Shelf, tmp_path: Path) -> None:
    mute, silent = Parity(), Parity()
    mute.serves, silent.serves = frozenset({"reward"}), frozenset()
    go(shelf, "sdpo", tmp_path / "mute", task=mute, steps=1)
    with pytest.raises(LimbeckError, match=r"sdpo shows sibling or feedback to its teacher.*answers or a verifier"):
        go(shelf, "sdpo", tmp_path / "silent", task=silent, steps=1)


def test_text_in_a_column_is_refused_with_its_right_place(shelf: Shelf, tmp_path: Path) -> None:
    file = tmp_path / "poems.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"say {w}", "style": "dry"}) for w in ("ab", "ba", "cab")))
    style = lb.axes.Context("style", "Answer in the style of: {{ style }}", ("style",))
    method = lb.Method(
        lb.axes.sample(check=False),
        lb.Term(lb.axes.init.given(style), lb.axes.divergence_loss("fkl")),
        lb.axes.sequence_mean,
    )
    with pytest.raises(LimbeckError, match=r"its 'style' is a column.*Prompt\.privileged"):
        lb.distill(method, out=tmp_path / "run", quiet=True, student=str(shelf.student), task=str(file), steps=1)


def test_a_template_of_nothing_but_words_is_noted(shelf: Shelf, tmp_path: Path, capsys: Any) -> None:
    values = shelf.settings("opsd", contexts={"solution": "Think."}, steps=1, eval_size=0)
    lb.distill("opsd", out=tmp_path / "run", **values)
    assert "contexts.solution uses no variable of the problem" in " ".join(capsys.readouterr().err.split())


def test_an_endless_template_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    for text, said in (
        ("{{ solution }}{{ 'a' * 2000000 }}", "characters, more than the limit of"),
        ('{{ solution }}{{ "{0}{1}".format(solution) }}', "IndexError"),
        ('{{ solution }}{{ "{x}".format(a=1) }}', "KeyError"),
    ):
        with pytest.raises(LimbeckError, match=said):
            go(shelf, "opsd", tmp_path / said[:5], contexts={"solution": text}, steps=1, eval_size=0)


def test_a_pipelines_contexts_go_to_the_stages_that_show_them(shelf: Shelf, tmp_path: Path) -> None:
    """A template that only one stage understands is no mistake in the others; one that none does is."""
    stages = lb.Pipeline([lb.stage("opsd", group=2), lb.stage("grpo", group=6)])
    common = {k: v for k, v in shelf.settings("opsd", steps=1, eval_size=0).items() if k != "group"}
    done = lb.run_pipeline(
        stages, tmp_path / "both", quiet=True, contexts={"solution": "It is {{ answer }}."}, **common
    )
    assert len(done) == 2
    with pytest.raises(LimbeckError, match=r"contexts\.hint: opsd has no such context"):
        lb.run_pipeline(stages, tmp_path / "none", quiet=True, contexts={"hint": "x"}, **common)


def test_schedules_come_back_from_a_runs_folder() -> None:
    config = configure("rltf_fm", {"coef": stairs(0, 1, 0.1)})
    again = configure("rltf_fm", config.model_dump(mode="json")["arguments"])
    assert setup.build_method(again) == setup.build_method(config)
    with pytest.raises(LimbeckError, match="cannot be written to a run's folder"):
        configure("rltf_fm", {"coef": lb.axes.every(3)})


def test_the_gate_reads_the_rollouts_unless_evaluation_goes_on(shelf: Shelf, tmp_path: Path) -> None:
    """One evaluation before training says nothing of the student at a later gate."""
    own: Given = {"levels": (2, 3, 4, 5), "gate_every": 1, "steps": 3}
    never = go(shelf, "decoupled_kl", tmp_path / "never", floor=1e9, **own)
    assert {m["length"] <= 2 for m in lines(never.out / "metrics.jsonl")} == {True}
    entropies = [m["entropy"] for m in lines(never.out / "metrics.jsonl")]
    held = lines(never.out / "evaluations.jsonl")[0]["entropy"]
    between = (min(entropies[0], held) + max(entropies[0], held)) / 2
    for eval_every, reads in ((0, entropies[0]), (1, held)):
        run = go(shelf, "decoupled_kl", tmp_path / f"{eval_every}", floor=between, eval_every=eval_every, **own)
        state = json.loads((run.out / "checkpoints" / "step-000003" / "state.json").read_text())
        numbers = state["memory"][0]["numbers"]
        assert ("heldout_entropy" in numbers) == bool(eval_every)
        climbed = max(m["length"] for m in lines(run.out / "metrics.jsonl")[1:2]) > 2
        assert climbed <= (reads >= between)


def test_a_template_may_use_what_some_problems_lack(shelf: Shelf, tmp_path: Path) -> None:
    """Names that are tested for, have a default, or are set in the template are not misspelt ones."""
    words = "{% if level is defined %}{{ level }}{% endif %}{{ style | default('plain') }} {% set a = answer %}{{ a }}"
    done = go(shelf, "opsd", tmp_path / "run", contexts={"solution": words}, steps=1, eval_size=0)
    assert len(lines(done.out / "metrics.jsonl")) == 1
    session = open_run(shelf, "opsd", tmp_path / "open", contexts={"solution": words}).session
    prompt = session.tasks["task"].train[0]
    (shown,) = sampling_prompts(sample(student.given(solution)), session, [prompt])
    assert f"plain {prompt.privileged['answer']}" in session.policies["student"].tokenizer.decode(shown)


def test_tables_in_tables_are_set_by_dots() -> None:
    told = parse_settings(["sd_zero.contexts.verdict_phrase=B", "task_options.columns.prompt=q", "lr=1"])
    assert told.pop("sd_zero") == {"contexts": {"verdict_phrase": "B"}}
    assert told == {"task_options": {"columns": {"prompt": "q"}}, "lr": 1}
    for wrong in ("a..b=1", ".a=1", "a.=1"):
        with pytest.raises(LimbeckError, match="write key=value"):
            parse_settings([wrong])
    with pytest.raises(LimbeckError, match="was set to 1 before, which is not a table"):
        parse_settings(["a.b=1", "a.b.c=2"])
