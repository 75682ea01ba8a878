"""Contexts: the text that is added to the prompt, the tokens that are scored, and problems that lack a context."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import VOCABULARY, Parity, Shelf, go, lines, naive_logits, naive_logp, open_run
from torch import Tensor

from limbeck.axes import (
    blend,
    either,
    ema,
    expr,
    logp,
    once,
    patch,
    refine,
    resample,
    sample,
    score_column,
    select,
    solution,
    student,
    synced,
    teacher,
)
from limbeck.axes.context import CONTEXTS, Bank, Context, debate
from limbeck.engine.models.following import FollowingModel
from limbeck.engine.models.generate import Written
from limbeck.engine.models.policy import conversation_ids
from limbeck.engine.rollout.sources import write, writer_for
from limbeck.engine.rollout.trajectory import assemble, single
from limbeck.engine.rollout.writer import sampling_prompts
from limbeck.engine.scoring.contexts import ContextViews, record_evidence, reframed, with_blocks
from limbeck.engine.storage.memory import Memory
from limbeck.errors import LimbeckError
from limbeck.types import STUDENT, Hidden, Rollout, concatenate


def record_and_views(shelf: Shelf, out: Path, method: str = "opsd", **own: Any) -> tuple[Any, Rollout, ContextViews]:
    run = open_run(shelf, method, out, **own)
    torch.manual_seed(0)
    record, _ = write(run.session.method.sources, run.session, 3, 0)
    return run, record, ContextViews(record, run.session)


def test_a_view_scores_the_records_own_tokens(shelf: Shelf, out: Path) -> None:
    run, record, views = record_and_views(shelf, out, group=2)
    framed = views.seen_by(student.given(solution)).check()
    assert torch.equal(framed.token_N, record.token_N)
    assert bool((framed.root_B > record.root_B).all())
    assert torch.equal(framed.turn_N, record.turn_N)
    b = 1
    prompt = record.prompts_B[b]
    policy = run.session.student
    block = views.rendered(solution).blocks[b]
    assert block is not None
    assert prompt.privileged["answer"] in block
    ids = conversation_ids(policy, [dict(m) for m in with_blocks(prompt, [block]).messages])
    assert framed.ids_L[framed.start_B1[b] : framed.start_B1[b] + framed.root_B[b]].tolist() == ids
    assert block in policy.tokenizer.decode(ids)


def test_the_view_is_a_plain_forward_of_what_the_reader_sees(shelf: Shelf, out: Path) -> None:
    run, record, views = record_and_views(shelf, out, group=1)
    run.loop.method = run.session.method
    scores = run.loop.read(views)
    carrier = scores["init given solution"]
    assert isinstance(carrier, Hidden)
    logits_N = carrier.hidden_NH @ carrier.head.weight_VH.t()
    framed = views.seen_by(student.given(solution))
    policy = run.session.policies["init"]
    for b in range(record.n_sequences):
        ids = framed.ids_L[framed.start_B1[b] : framed.start_B1[b + 1]].tolist()
        mine = framed.seq_N == b
        expected = naive_logits(policy, ids)[framed.pos_N[mine] - framed.start_B1[b] - 1]
        torch.testing.assert_close(logits_N[mine], expected, rtol=1e-4, atol=1e-4)


def test_reframing_with_the_own_prompt_changes_nothing(shelf: Shelf, out: Path) -> None:
    _, record, _ = record_and_views(shelf, out, group=2)
    roots = [
        record.ids_L[record.start_B1[b] : record.start_B1[b] + record.root_B[b]].tolist()
        for b in range(record.n_sequences)
    ]
    again = reframed(record, roots)
    assert torch.equal(again.ids_L, record.ids_L)
    assert torch.equal(again.pos_N, record.pos_N)
    assert torch.equal(again.start_B1, record.start_B1)


def test_sequences_without_evidence_keep_the_plain_prompt(shelf: Shelf, out: Path) -> None:
    _, record, _ = record_and_views(shelf, out, "sdpo", group=4)
    run = open_run(shelf, "sdpo", out, group=4, task=Parity())
    right = replace(record, correct_B=torch.zeros_like(record.correct_B), feedback_B=(None,) * record.n_sequences)
    right.correct_B[0] = True  # so the others of its group have a sibling, and it has none
    views = ContextViews(right, run.session)
    context = CONTEXTS["sibling_or_feedback"]
    noted = views.with_columns([context])
    has = noted.columns_B[context.column]
    assert has.tolist() == [0, 1, 1, 1] + [0] * (record.n_sequences - 4)
    framed = views.seen_by(student.given(context))
    assert (framed.root_B > right.root_B).tolist() == [bool(h) for h in has.tolist()]


def test_a_writer_without_evidence_sees_the_plain_prompt(shelf: Shelf, out: Path) -> None:
    """As a reader does: a template with a hole in it is no context."""
    session = open_run(shelf, "grpo", out, task=Parity()).session
    prompts = [session.tasks["task"].train[i] for i in range(3)]
    assert sampling_prompts(sample(student.given(CONTEXTS["hint"])), session, prompts) == [
        session.renderer.prompt_ids(p) for p in prompts
    ]
    shown = sampling_prompts(sample(student.given(solution, CONTEXTS["hint"])), session, prompts)
    assert shown == sampling_prompts(sample(student.given(solution)), session, prompts)
    assert all(len(s) > len(session.renderer.prompt_ids(p)) for s, p in zip(shown, prompts, strict=True))
    torch.manual_seed(0)
    p = writer_for(session, 3, 0)
    editor = student.given(CONTEXTS["hint"], CONTEXTS["draft"])
    wrote = ContextViews(p.write(refine(sample(student), editor)), session)
    assert wrote.rendered(CONTEXTS["hint"]).blocks == [None] * 3
    assert all(block for block in wrote.rendered(CONTEXTS["draft"]).blocks)


def test_a_synced_teacher_without_context_gives_no_gradient(shelf: Shelf, out: Path) -> None:
    """With weights in step and no context it is the student itself: loss and gradient are 0."""
    go(shelf, "skill_sd", out, task=Parity(turns=3), lam=1.0, steps=1)
    (first,) = lines(out / "metrics.jsonl")
    assert first["term/2/loss"] == pytest.approx(0.0, abs=1e-9)


def test_a_context_longer_than_the_window_is_refused(shelf: Shelf, out: Path) -> None:
    with pytest.raises(LimbeckError, match=r"prompt '.*' with context solution has \d+ tokens .* reads only 1024"):
        go(shelf, "opsd", out, contexts={"solution": "{{ solution * 2000 }}"})


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ solution", "cannot be rendered"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("missing.jinja", "no such file"),
        (" ", "is empty, so the teacher would see only what the student sees"),
    ],
)
def test_a_broken_template_is_refused(template: str, said: str, shelf: Shelf, out: Path) -> None:
    with pytest.raises(LimbeckError, match=said):
        go(shelf, "opsd", out, contexts={"solution": template})


def test_a_template_file_replaces_a_context(shelf: Shelf, out: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("BEHOLD {{ answer }}")
    _, _, views = record_and_views(shelf, out, contexts={"solution": str(file)}, group=1)
    assert all(b is not None and b.startswith("BEHOLD ") for b in views.rendered(solution).blocks)


@pytest.mark.parametrize(
    ("method", "task", "said"),
    [
        ("opsd", "pretrain", "shows solution to its teacher"),
        ("distil", "unspoken", "whose verifier gives feedback"),
        ("sod", "verified", "answered in one; give a task with episodes"),
        ("sd_zero", "pretrain", "reads reward from 'pretrain'"),
    ],
)
def test_a_task_that_lacks_what_a_method_shows_is_refused(
    method: str, task: str, said: str, shelf: Shelf, out: Path
) -> None:
    mute = Parity()
    mute.serves = frozenset({"reward"})
    which: Any = mute if task == "unspoken" else str(getattr(shelf, task))
    with pytest.raises(LimbeckError, match=said):
        go(shelf, method, out, task=which)
    assert not out.exists()


def test_a_debate_is_written_and_its_confidences_are_read(shelf: Shelf, out: Path) -> None:
    run, record, views = record_and_views(shelf, out, "mad_opd", group=1, contexts={"debate": "D {{ first_2 }}"})
    context = debate(("first", "second"), 2)
    noted = views.with_columns([context])
    assert {"first_2", "second_2"} <= set(noted.columns_B)
    assert noted.columns_B["first_2"].shape == (record.n_sequences,)
    assert all(b is not None and b.startswith("D ") for b in views.rendered(context).blocks)
    assert run.session.method.roles["first"] >= {"text"}


def test_a_teacher_may_read_in_a_chat_format_of_its_own(shelf: Shelf, out: Path) -> None:
    run, record, views = record_and_views(shelf, out, "opd_full", teacher_template="plain", group=1)
    framed = views.seen_by(teacher)
    assert torch.equal(framed.token_N, record.token_N)
    text = run.session.student.tokenizer.decode(framed.ids_L[: framed.root_B[0]].tolist())
    assert "<|user|>" not in text
    assert "<|user|>" in run.session.student.tokenizer.decode(record.ids_L[: record.root_B[0]].tolist())


# ---------------------------------------------------------------- state


def test_following_weights_follow_by_their_rule(shelf: Shelf, out: Path) -> None:
    run = open_run(shelf, "sdpo", out)
    follow = ema(0.25, every=2, reset=5).follow
    assert follow is not None
    shadow = FollowingModel(run.session.student, "ema", follow)
    module = run._module()
    name, parameter = next(iter(module.named_parameters()))
    start = parameter.detach().clone()

    def now() -> torch.Tensor:
        return dict(shadow.policy.scorer.named_parameters())[name].detach().clone()

    with torch.no_grad():
        parameter.add_(1.0)
    shadow.after(0, module)
    assert torch.equal(now(), start)
    shadow.after(1, module)
    torch.testing.assert_close(now(), start + 0.25)
    shadow.after(4, module)
    torch.testing.assert_close(now(), start + 1.0)


def test_what_is_synced_at_every_batch_is_the_student_itself(shelf: Shelf, out: Path) -> None:
    run = open_run(shelf, "skill_sd", out, task=Parity(turns=2))
    assert not run.session.followers
    assert run.session.policy(synced(1).role) is run.session.student
    assert set(open_run(shelf, "skill_sd", out, task=Parity(turns=2), every=3).session.followers) == {"synced(3)"}


def test_the_bank_chooses_by_upper_confidence() -> None:
    bank, memory = Bank(explore=math.sqrt(2), size=2), Memory()
    assert memory.choose("p", bank) is None
    memory.learn("p", bank, None, 0.0, "one")
    memory.learn("p", bank, None, 0.0, "two")
    first = memory.choose("p", bank)
    assert first is not None
    memory.learn("p", bank, first, 0.0, "")
    second = memory.choose("p", bank)  # never tried: first
    assert second is not None
    assert second.text != first.text
    memory.learn("p", bank, second, 1.0, "")
    assert memory.choose("p", bank) is second
    for _ in range(30):  # c sqrt(ln N / n) brings the other back in the end
        memory.learn("p", bank, second, 0.6, "")
    assert memory.choose("p", bank) is first
    memory.learn("p", bank, second, 1.0, "three")
    assert {s.text for s in memory.skills["p"]} == {second.text, "three"}
    again = Memory.restored(json.loads(json.dumps(memory.to_json())), {})
    assert again.skills == memory.skills


def test_skills_are_summaries_of_the_best_where_a_model_is_named(
    shelf: Shelf, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One question for each group, on its best sequence, to the named model; its answer is what the next view shows."""
    run = open_run(shelf, "skill_sd", out, task=Parity(turns=2), group=4, summary_by="teacher")
    assert run.session.method.roles["teacher"] == {"text"}
    record, _ = write(run.session.method.sources, run.session, 3, 0)
    assert len(record.reward_U) == 2 * record.n_sequences
    rewards = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]).repeat(3, 1)
    record = replace(record, reward_U=rewards.flatten())
    asked: list[tuple[list[list[int]], Any]] = []

    def answer(law: Any, prompts: list[list[int]], *_: Any) -> list[Any]:
        asked.append((prompts, law))
        encode = run.session.student.tokenizer
        return [Written(encode(f"be bold {n}")["input_ids"], [], False) for n in range(len(prompts))]

    monkeypatch.setattr("limbeck.engine.scoring.contexts.generate", answer)
    (context,) = run.session.method.contexts
    views = ContextViews(record, run.session)
    assert views.rendered(context).blocks == [None] * 12
    views.learn(context)
    ((questions, law),) = asked
    assert law.parts[0][0] is run.session.policies["teacher"]
    read = [run.session.student.tokenizer.decode(q) for q in questions]
    known = record_evidence(record, run.session)
    assert len({k["reply"] for k in known}) > 6
    assert len(read) == 3
    for question, best in zip(read, (known[1], known[5], known[9]), strict=True):
        assert best["prompt"] in question
        assert f"successful:\n{best['reply']}\n" in question
    skills = run.session.state.memory.skills
    assert [skills[p.id][0].text for p in record.prompts_B[::4]] == ["be bold 0", "be bold 1", "be bold 2"]
    blocks = ContextViews(record, run.session).rendered(context).blocks
    assert blocks[4] == "Advice from earlier attempts at this task:\nbe bold 1"


def test_stored_rollouts_come_back_bit_for_bit(shelf: Shelf, out: Path, tmp_path: Path) -> None:
    """Every field of the record, by process; prompts are the task's own."""
    run, record, _ = record_and_views(shelf, out, "lightning_opd")
    memory = run.session.state.memory
    odd = replace(memory.written["main"][record.prompts_B[0].id], feedback_B=("half a \ud800 character",))
    memory.written["a/start"] = {"x": odd, "y": odd}
    save_file({**memory.to_tensors(0), **Memory().to_tensors(1)}, tmp_path / "stored.safetensors")
    found = load_file(tmp_path / "stored.safetensors")
    assert Memory.restored(memory.to_json(), found, 1).written == {}
    back = Memory.restored(memory.to_json(), found).written
    assert {name: list(groups) for name, groups in back.items()} == {
        name: list(groups) for name, groups in memory.written.items()
    }
    for name, groups in memory.written.items():
        for prompt, group in groups.items():
            for f in fields(Rollout):
                a, b = (getattr(x, f.name) for x in (group, back[name][prompt]))
                assert alike(a, b), (name, f.name)
    again = concatenate([back["main"][p.id] for p in record.prompts_B])
    assert torch.equal(again.ids_L, record.ids_L)
    assert torch.equal(again.columns_N["log π_teacher"], record.columns_N["log π_teacher"])
    assert bool(torch.isfinite(again.columns_N["log π_teacher"]).all())


def alike(a: Any, b: Any) -> bool:
    """Equal with equal types; NaN is NaN."""
    if isinstance(a, dict):
        return set(a) == set(b) and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5))
    return bool(a == b)


def test_contexts_compare_by_structure() -> None:
    assert student.given(solution) == student.given(CONTEXTS["solution"])
    assert student.given(solution) != student.given(solution.saying("other words"))
    assert student.given(solution).key != student.key
    with pytest.raises(LimbeckError, match="give one such as solution"):
        student.given("solution")  # type: ignore[arg-type]
    with pytest.raises(LimbeckError, match="'all' or 'any'"):
        Context("x", "y", ("z",), "some")


def test_an_empty_reply_is_no_evidence(shelf: Shelf, out: Path) -> None:
    """A reply without text shows nothing, so the teacher sees the plain prompt."""
    _, record, views = record_and_views(shelf, out, "sd_zero", group=1)
    rows = [[single(p, [1], [], [], STUDENT)] for p in record.prompts_B]
    empty = ContextViews(assemble(rows, "main"), views.session)
    assert empty.rendered(CONTEXTS["own_reply"]).blocks == [None] * len(rows)


WRITERS: dict[str, tuple[Any, float]] = {
    "sample": (sample(teacher.at(0.5), n=2), 0.5),
    "sample, both": (sample(teacher.at(4.0), n=2, tau=0.5), 2.0),
    "sample, a blend": (sample(blend((teacher.at(0.5), 1.0), (student, 0.0)), n=2), 0.5),
    "sample, turns": (sample(teacher.at(2.0), n=2, turns=2, retry=solution), 2.0),
    "refine": (refine(sample(student, n=2), teacher.at(4.0), tau=0.5), 2.0),
    "patch": (patch(sample(teacher.at(2.0)), sample(teacher.at(2.0)), expr(1.0) > 0.0), 2.0),
    "resample": (resample(sample(teacher.at(2.0), n=2), expr(1.0) > 0.0), 2.0),
    "select": (select(sample(teacher.at(2.0), n=2), logp(teacher.at(0.5)).total), 2.0),
    "either": (either(0.5, sample(teacher.at(2.0)), sample(teacher.at(4.0), tau=0.5)), 2.0),
    "once": (once(sample(teacher.at(2.0), n=2), score=teacher.at(3.0)), 2.0),
}
"""Every source that a reader writes in, and the temperature of what it writes."""


def test_a_heated_writer_writes_and_reports_at_its_temperature(shelf: Shelf, out: Path) -> None:
    run = open_run(shelf, "opd", out)
    policy = run.session.policies["teacher"]
    for name, (source, tau) in WRITERS.items():
        record, _ = write({name: source}, run.session, 2, 0)
        for b in range(record.n_sequences):
            ids = record.ids_L[record.start_B1[b] : record.start_B1[b + 1]].tolist()
            mine = record.seq_N == b
            rows = naive_logits(policy, ids)[record.pos_N[mine] - record.start_B1[b] - 1]
            tokens = record.token_N[mine].unsqueeze(1)

            def at(heat: float, rows: Tensor = rows, tokens: Tensor = tokens) -> Tensor:
                return (rows[:, :VOCABULARY] / heat).log_softmax(-1).gather(1, tokens).squeeze(1)

            torch.testing.assert_close(record.rollout_logp_N[mine], at(tau), rtol=1e-3, atol=1e-3, msg=name)
            if name == "once":
                kept = record.columns_N[score_column(teacher.at(3.0))][mine]
                torch.testing.assert_close(kept, at(3.0), rtol=1e-3, atol=1e-3)


def test_a_stored_score_is_that_of_a_reader_in_its_context(shelf: Shelf, out: Path) -> None:
    run = open_run(shelf, "opd", out)
    reader = teacher.given(solution)
    record, _ = write({"main": once(sample(student), score=reader)}, run.session, 3, 0)
    framed = ContextViews(record, run.session).seen_by(reader)
    for b in range(record.n_sequences):
        first, end = framed.start_B1[b], framed.start_B1[b + 1]
        root = int(framed.root_B[b])
        ids = framed.ids_L[first:end].tolist()
        expected = naive_logp(run.session.policies["teacher"], ids[:root], ids[root:])
        torch.testing.assert_close(
            record.columns_N[score_column(reader)][record.seq_N == b], expected, rtol=1e-3, atol=1e-3
        )
