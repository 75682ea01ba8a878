"""Responses of several turns: which tokens are scored, what is between them, and environments that fail."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Parity, Shelf, go, lines, open_run, rows_of

from limbeck.axes import behavior, logp, recast, refine, sample, select, student, teacher
from limbeck.axes.context import draft, hint, tried_again, verdict_phrase
from limbeck.axes.levels import Level
from limbeck.axes.signal import correct, in_top, score
from limbeck.engine import distill
from limbeck.engine.evaluation import turn_measures
from limbeck.engine.rollout.derived import evaluate_expression
from limbeck.engine.rollout.episodes import between, write_episodes
from limbeck.engine.rollout.sources import write, writer_for
from limbeck.engine.rollout.trajectory import Segment, Trajectory, assemble
from limbeck.engine.rollout.writer import RolloutWriter
from limbeck.errors import LimbeckError
from limbeck.report import load_run, render_report
from limbeck.tasks import EpisodeDied, Observation
from limbeck.types import STUDENT, TEACHER, Prompt


def writer(shelf: Shelf, out: Path, method: str = "grpo", n: int = 2, **own: Any) -> RolloutWriter:
    run = open_run(shelf, method, out, **own)
    torch.manual_seed(0)
    return writer_for(run.session, n, 0)


def test_an_episode_is_turns_of_scored_tokens_with_unscored_ones_between(shelf: Shelf, out: Path) -> None:
    p = writer(shelf, out, task=Parity(turns=3), episode_turns=3)
    record, _ = write({"main": sample(student, 2)}, p.session, 2, 0)
    assert record.n_turns == 3 * record.n_sequences
    assert record.seq_U.tolist() == [b for b in range(4) for _ in range(3)]
    assert bool((record.author_N == STUDENT).all())
    assert bool(torch.isfinite(record.rollout_logp_N).all())
    assert bool(torch.isfinite(record.reward_U).all())
    policy = p.session.policies["student"]
    for b in range(record.n_sequences):
        ids = record.ids_L[record.start_B1[b] : record.start_B1[b + 1]].tolist()
        text = policy.tokenizer.decode(ids)
        mine = record.seq_N == b
        scored = (record.pos_N[mine] - record.start_B1[b]).tolist()
        unscored = policy.tokenizer.decode([i for t, i in enumerate(ids) if t not in scored])
        assert unscored.count("<|assistant|>") == 3  # a random student may write one too
        assert unscored.count("go on") == 2
        assert "go on" not in policy.tokenizer.decode(record.token_N[mine].tolist())
        assert text.endswith(policy.tokenizer.decode(record.token_N[mine][-1:].tolist()))  # nobody answers the end


def test_what_stands_between_closes_the_message_once(shelf: Shelf, out: Path) -> None:
    policy = open_run(shelf, "grpo", out).session.student
    said = Observation("more")
    open_end = policy.tokenizer.decode(between(policy, said, [20, 21]))
    assert open_end == "</s><|user|>more<|assistant|>"
    assert policy.tokenizer.decode(between(policy, said, [20, policy.eos[0]])) == "<|user|>more<|assistant|>"


def test_a_template_that_drops_the_assistants_text_is_refused(shelf: Shelf, out: Path, tmp_path: Path) -> None:
    forgetful = tmp_path / "forgetful.jinja"
    forgetful.write_text("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}")
    with pytest.raises(LimbeckError, match="drops earlier messages of the assistant"):
        go(shelf, "grpo", out, task=Parity(turns=2), template=str(forgetful))


class Fragile(Parity):
    """Episodes of some prompts break off."""

    def __init__(self, breaks: set[str], how: str = "step") -> None:
        super().__init__(turns=2)
        self.breaks, self.how = breaks, how

    def open(self, prompt: Prompt) -> Any:
        if prompt.id in self.breaks and self.how == "open":
            raise EpisodeDied("it did not start")
        episode = super().open(prompt)
        if prompt.id in self.breaks:
            episode.step = lambda text: self._fail()
        return episode

    def _fail(self) -> Any:
        if self.how == "hang":
            raise EpisodeDied("it hung")
        if self.how == "crash":
            raise RuntimeError("boom\nand more")
        if self.how == "an exit":
            raise SystemExit("bye")
        return ODD[self.how][0]


ODD: dict[str, tuple[Any, str]] = {
    "nan": (Observation("x", reward=math.nan), "its reward was nan"),
    "a huge reward": (Observation("x", reward=1e300), r"its reward was 1e\+300"),
    "a reward in words": (Observation("x", reward="much"), "its reward was 'much'"),  # type: ignore[arg-type]
    "nothing": (None, "step gave None instead of an Observation"),
    "a tuple": (("x", 1.0), r"step gave \('x', 1.0\) instead"),
    "a number for a text": (Observation(7), "its text was 7 instead of a text"),  # type: ignore[arg-type]
    "no text": (Observation(None), "its text was None instead"),  # type: ignore[arg-type]
    "feedback that is a number": (Observation("x", feedback=3), "its feedback was 3"),  # type: ignore[arg-type]
    "no verdict": (Observation("x", correct=None), "its correct was None instead of true or false"),  # type: ignore[arg-type]
    "an end in words": (Observation("x", done="no"), "its done was 'no' instead"),  # type: ignore[arg-type]
    "half a character": (Observation("x\ud800"), "its text has half a character"),
    "an exit": (None, "SystemExit: bye"),
    "megabytes": (Observation("x" * 800_000), "its text has 800,000 characters"),
    "hang": (None, "it hung"),
    "crash": (None, "RuntimeError: boom"),
    "open": (None, "it did not start"),
}


@pytest.mark.parametrize("how", ODD)
def test_a_dead_environment_ends_only_its_own_episode(how: str, shelf: Shelf, out: Path, capsys: Any) -> None:
    task = Fragile({"p0", "p1", "p2"}, how)
    distill("grpo", out=out, **shelf.settings("grpo", task=task, prompts=8, steps=1, eval_size=0))
    (first,) = lines(out / "metrics.jsonl")
    assert first["episodes_died"] == 3 * 6
    assert math.isfinite(first["loss"])
    told = " ".join(capsys.readouterr().err.split())
    assert "note: 18 episodes of step 0 were broken off" in told
    assert re.search(ODD[how][1], told)
    assert "and more" not in told


def test_an_object_that_is_no_episode_is_refused(shelf: Shelf, out: Path) -> None:
    class Empty(Parity):
        def open(self, prompt: Prompt) -> Any:
            return None

    with pytest.raises(LimbeckError, match="open gave None, which has no step and close"):
        go(shelf, "grpo", out, task=Empty(turns=2), eval_size=0)


def test_a_class_is_no_task_and_an_environment_opens(shelf: Shelf, out: Path) -> None:
    with pytest.raises(LimbeckError, match="the class Parity is a class; give an object"):
        go(shelf, "grpo", out, task=Parity)

    class Closed(Parity):
        open = property()  # type: ignore[assignment]

    with pytest.raises(LimbeckError, match="has no 'open'"):
        go(shelf, "grpo", out, task=Closed(turns=2))


@pytest.mark.parametrize("where", ["of step 0", "of the evaluation"])
def test_a_step_without_one_living_episode_stops_with_a_sentence(where: str, shelf: Shelf, out: Path) -> None:
    size = 2 if "evaluation" in where else 0
    with pytest.raises(LimbeckError, match=f"every episode {where} was broken off.*the first: it hung"):
        go(shelf, "grpo", out, task=Fragile({f"p{i}" for i in range(12)}, "hang"), eval_size=size)


def test_a_broken_episode_is_a_failed_one_in_an_evaluation(shelf: Shelf, out: Path) -> None:
    """The list of who was right keeps its order, so that two evaluations can be compared problem by problem."""
    go(shelf, "grpo", out, task=Fragile({"p8", "p10"}, "hang"), eval_size=4, steps=1)
    first, last = lines(out / "evaluations.jsonl")
    for measured in (first, last):
        assert measured["n"] == len(measured["correct"]) == 4
        assert (measured["correct"][0], measured["correct"][2]) == (0, 0)


def test_an_evaluation_of_episodes_says_what_changes_along_them(shelf: Shelf, out: Path) -> None:
    go(shelf, "sod", out, task=Parity(turns=3), turns=3, episode_turns=3, eval_size=4, steps=1)
    first, last = lines(out / "evaluations.jsonl")
    for measured in (first, last):
        assert measured["episodes_by_turn"] == [4.0, 4.0, 4.0]
        for name in ("kl_reverse", "entropy"):
            along = measured[f"{name}_by_turn"]
            assert len(along) == 3
            assert min(along) - 1e-6 <= measured[name] <= max(along) + 1e-6
    for row in lines(out / "samples.jsonl"):
        assert len(row["turn"]) == len(row["tokens"])
        assert sorted(set(row["turn"])) == [1, 2, 3]
        assert row["said"] == ["go on", "go on"]
        assert row["reward"] == sum(row["rewards"])
    page = render_report(load_run(out))
    assert page.count("by turn</h3>") == 3
    assert re.search(r'<div class="said">turn 2(, reward 1.00)?: go on</div>', page)


def test_means_by_turn_are_over_the_episodes_that_got_there() -> None:
    prompt = Prompt("p", ({"role": "user", "content": "x"},))

    def row(*lengths: int) -> Trajectory:
        return Trajectory(prompt, [1], tuple(Segment([5] * n, None, STUDENT, reward=0.0) for n in lengths))

    record = assemble([[row(1)], [row(2, 1, 1)], [row(1, 3)]], "main")
    stats = {"entropy": torch.tensor([1.0, 2.0, 3.0, 10.0, 100.0, 6.0, 20.0, 30.0, 40.0])}
    assert turn_measures(record, stats) == {
        "episodes_by_turn": [3.0, 2.0, 1.0],
        "entropy_by_turn": [3.0, 25.0, 100.0],
    }


def test_an_answer_in_one_turn_has_nothing_along_it(shelf: Shelf, out: Path) -> None:
    go(shelf, "opd", out, steps=1)
    assert not any("turn_charts" in key for row in lines(out / "evaluations.jsonl") for key in row)
    assert not any("turn" in row for row in lines(out / "samples.jsonl"))
    page = render_report(load_run(out))
    assert "by turn</h3>" not in page
    assert 'class="said"' not in page


def test_pass_at_k_of_episodes_is_played(shelf: Shelf, out: Path) -> None:
    run = open_run(shelf, "grpo", out, task=Parity(turns=2), eval_size=4)
    torch.manual_seed(0)
    found = run.evaluator.pass_at(8, [1, 8])
    assert 0.0 < found[1] <= found[8]


DERIVED = ("trd", "trd_self", "brts", "lightning_opd", "tcod_back", "dapo", "pi_distill", "vpd")


@pytest.mark.parametrize("method", DERIVED)
def test_sources_made_of_others_live_with_dead_episodes(method: str, shelf: Shelf, out: Path) -> None:
    task = Fragile({"p0", "p1", "p2"}, "crash")
    go(shelf, method, out, task=task, prompts=8, steps=2, eval_size=0)
    assert all(m["episodes_died"] > 0 and math.isfinite(m["loss"]) for m in lines(out / "metrics.jsonl")[:1])


@pytest.mark.parametrize("method", DERIVED)
def test_sources_made_of_others_say_so_where_all_are_dead(method: str, shelf: Shelf, out: Path) -> None:
    with pytest.raises(LimbeckError, match="every episode of step 0 was broken off"):
        go(shelf, method, out, task=Fragile({f"p{i}" for i in range(12)}, "crash"), eval_size=0)


def test_a_conversation_ends_when_nothing_is_said(shelf: Shelf, out: Path) -> None:
    p = writer(shelf, out, task=Parity(), n=4)
    groups = write_episodes(sample(student, 4, turns=2, retry=tried_again), p, p.take())
    rows = [row for group in groups for row in group]
    assert {len(row.turns) for row in rows} == {1, 2}
    for row in rows:
        assert (row.turns[0].reward == 1.0) == (len(row.turns) == 1)
        assert row.correct == (row.turns[-1].reward == 1.0)
        if len(row.turns) == 2:
            between_ids = next(segment for segment in row.segments if not segment.scored).ids
            assert "odd\nTry again." in p.session.policies["student"].tokenizer.decode(between_ids)


def test_replayed_turns_are_read_and_not_scored(shelf: Shelf, out: Path) -> None:
    p = writer(shelf, out, task=Parity(turns=4), n=3)
    start = sample(teacher, turns=4)
    groups = write_episodes(sample(student, 2, turns=4, start=start, back=0), p, p.take())
    rows = [row for group in groups for row in group]
    replayed = [
        [segment for segment in row.segments if segment.author == TEACHER and segment.reward == segment.reward]
        for row in rows
    ]
    assert {len(r) for r in replayed} <= {0, 3}  # an episode that failed is no start
    assert any(len(r) == 3 for r in replayed)
    for row, played in zip(rows, replayed, strict=True):
        assert not any(segment.scored for segment in played)
        assert len(row.turns) == 4 - len(played)


# ---------------------------------------------------------------- sources made of others


def test_a_source_may_choose_by_the_log_probs_of_the_policy_that_wrote(shelf: Shelf, out: Path) -> None:
    """They are in the record, so no model is asked for them."""
    p = writer(shelf, out, task=Parity(), n=3)
    groups = rows_of(p.write(select(sample(student, 4), logp(behavior).total, keep=2)))
    assert [len(group) for group in groups] == [2, 2, 2]
    for best, second in groups:
        assert sum(best.turns[0].logp) >= sum(second.turns[0].logp)


def test_the_best_are_selected_in_order_of_importance(shelf: Shelf, out: Path) -> None:
    p = writer(shelf, out, task=Parity(), n=6)
    likeness = in_top(3, student).over("sequence", "mean")
    torch.manual_seed(0)
    chosen = rows_of(p.write(select(sample(teacher, 6), correct, likeness)))
    p.session.streams["task"].cursor = 0
    torch.manual_seed(0)
    record = p.write(sample(teacher, 6))
    everything = rows_of(record)
    values = evaluate_expression(likeness, record, p.session, 0, Level.SEQUENCE).view(-1, 6)
    for g, group in enumerate(everything):
        best = max(range(6), key=lambda i, g=g, group=group: (group[i].correct, float(values[g, i])))
        assert chosen[g][0].ids == group[best].ids
        assert chosen[g][0].correct == any(row.correct for row in group)


def test_a_refined_sequence_remembers_its_draft(shelf: Shelf, out: Path) -> None:
    p = writer(shelf, out, task=Parity(), n=2)
    (first, _) = rows_of(p.write(refine(sample(student, 2, check=False), teacher.given(draft))))
    assert len(first) == 2
    assert all(row.draft for row in first)
    assert all(segment.author == TEACHER for row in first for segment in row.segments)


def test_a_recast_is_the_same_text_under_another_prompt(shelf: Shelf, out: Path) -> None:
    p = writer(shelf, out, task=Parity(), n=3)
    talk = p.write(sample(student, 4, turns=2, retry=verdict_phrase))
    p = replace(p, name="again", done={"talk": talk})

    def again(*given: Any, **own: Any) -> list[Trajectory]:
        record = p.write(recast("talk", *given, **own)).check()
        assert record.sources == ("again",)
        return [row for group in rows_of(record) for row in group]

    talked = [row for group in rows_of(talk) for row in group]
    kept = again(verdict_phrase, keep=correct)
    assert len(kept) == sum(row.correct for row in talked)
    assert [r.segments for r in kept] == [r.segments for r in talked if r.correct]
    text = p.session.policies["student"].tokenizer.decode(kept[0].prompt_ids)
    assert "The answer above is right" in text
    second = again(response="turn 1", carry={"s": score})
    assert [r.ids for r in second] == [row.turns[1].ids for row in talked]
    assert [r.columns["s"] for r in second] == [sum(t.reward for t in row.turns) for row in talked]
    whole = again(response="{{ turn_0 }}|{{ said_0 }}|{{ turn_1 }}")
    policy = p.session.policies["student"]
    for row, spoken in zip(whole, talked, strict=True):
        phrase = f"The answer above is {'right' if spoken.turns[0].reward else 'not correct'}"
        assert policy.text(row.ids).startswith(f"{policy.text(spoken.turns[0].ids)}|{phrase}")
    assert not again(hint)  # nothing to show: it would be the plain sequence again
    with pytest.raises(LimbeckError, match=r"recast with another text has .* reads only"):
        again(response="{{ turn_0 * 2000 }}.")
    third = again(question="Q {{ turn_0 }}", response="{{ turn_1 }}!")
    policy = p.session.policies["student"]
    assert policy.text(third[0].ids) == policy.text(talked[0].turns[1].ids) + "!"
    assert "Q " in policy.tokenizer.decode(third[0].prompt_ids)
    assert all(math.isnan(x) for x in third[0].turns[0].logp or [])
