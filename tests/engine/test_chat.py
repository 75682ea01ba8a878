"""Chat formats: what demonstrations teach, what ends a turn, what a template writes, and prompts that do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_models import (
    ALPACA,
    CHATML,
    GLM,
    MOVING,
    PHI,
    SPECIALS,
    STRIPPING,
    THINKING,
    TOOLS,
    asked,
    record,
    saved,
    sentencepiece,
    talk,
    taught,
    tokenizer,
)
from tiny_runs import Parity, Shelf, go, jsonl, lines, open_run
from transformers import AutoTokenizer

from limbeck.axes import sample, student
from limbeck.engine import resume
from limbeck.engine.rollout import sources as writing
from limbeck.engine.rollout.episodes import between
from limbeck.engine.scoring.contexts import ContextViews
from limbeck.errors import LimbeckError
from limbeck.tasks import Observation
from limbeck.types import Prompt

CALL = {"type": "function", "function": {"name": "add", "arguments": "{}"}}
ADD = [{"type": "function", "function": {"name": "add", "parameters": {}}}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "student"


# ---------------------------------------------------------------- what a demonstration teaches


@pytest.mark.parametrize("eos", [("<|endoftext|>", "<|im_end|>"), ("<|endoftext|>",), ("<|im_end|>",)])
@pytest.mark.parametrize("template", [CHATML, PHI])
def test_a_demonstration_ends_as_its_template_ends(
    template: str, eos: tuple[str, ...], shelf: Shelf, folder: Path
) -> None:
    """Whatever comes first in the model's own list (Llama 3, Gemma 3); text behind the end is not taught."""
    assert taught(shelf, saved(folder, tokenizer(template), eos), talk("q", "ok")) == "ok<|im_end|>"


@pytest.mark.parametrize(("template", "end"), [(GLM, "<|user|>"), (ALPACA, "<|endoftext|>")])
def test_a_template_without_an_end_ends_turns_where_the_model_stops(
    template: str, end: str, shelf: Shelf, folder: Path
) -> None:
    """The next message's first token ends a turn where the model stops at it; else the model's own end does."""
    tok = tokenizer(template, specials=(*SPECIALS, "<|user|>", "<|assistant|>"))
    assert taught(shelf, saved(folder, tok, ("<|endoftext|>", "<|user|>")), talk("q", "ok")) == f"ok{end}"


@pytest.mark.parametrize(
    ("template", "line", "said"),
    [
        (THINKING, talk("q", "<think>\nsix\n</think>\n\n42"), "six\n</think>\n\n42<|im_end|>"),
        (MOVING, talk("q", "42"), "<think>\n\n</think>\n\n42<|im_end|>"),
        (MOVING, talk("q", "<think>six</think>42"), "<think>\nsix\n</think>\n\n42<|im_end|>"),
        (MOVING, talk("q", "42", reasoning_content="six"), "<think>\nsix\n</think>\n\n42<|im_end|>"),
        (MOVING, {"prompt": "q", "response": "42"}, "<think>\n\n</think>\n\n42<|im_end|>"),
    ],
)
def test_reasoning_stands_where_the_template_puts_it(
    template: str, line: dict[str, Any], said: str, shelf: Shelf, folder: Path
) -> None:
    assert taught(shelf, saved(folder, tokenizer(template)), line) == said


@pytest.mark.parametrize(
    ("template", "line", "words"),
    [
        (THINKING, talk("q", "42"), ["does not follow its prompt", "'<think>", "'42<|im_end|>"]),
        (STRIPPING, talk("q", "<think>six</think>42"), ["is not written whole", "it leaves text out"]),
        (CHATML, talk("q", "ok<|im_end|>"), ["holds '<|im_end|>', which ends a response"]),
        (CHATML, talk("q", "ok<|endoftext|>"), ["holds '<|endoftext|>'"]),
        (CHATML, {"prompt": "q", "response": "a<|im_end|>b"}, ["holds '<|im_end|>'"]),
        (CHATML, talk("q", "ok<|im_end|>", "r", "fine"), ["message of the assistant", "holds '<|im_end|>'"]),
    ],
)
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_text_that_does_not_fit_its_template_is_refused_with_its_line(
    template: str, line: dict[str, Any], words: list[str], method: str, shelf: Shelf, folder: Path, out: Path
) -> None:
    fine = talk("q", "<think>\nsix\n</think>\n\n41" if template == THINKING else "41")
    own = [fine, fine, line]
    if method == "dpo":
        text = line.get("response") or line["messages"][-1]["content"]
        before = line.get("messages", talk("q", "")["messages"])[:-1]
        kept = fine["messages"][-1]["content"]
        own = [{"prompt": f"p{i}", "chosen": kept, "rejected": f"{kept}!"} for i in range(2)]
        own.append({"messages": before, "chosen": kept, "rejected": text})
    task = jsonl(folder.with_name("mine.jsonl"), own)
    with pytest.raises(LimbeckError) as e:
        go(
            shelf,
            method,
            out,
            student=str(saved(folder, tokenizer(template))),
            teacher=None,
            task=str(task),
            max_tokens=64,
        )
    for word in ("mine.jsonl, line 3: ", *words):
        assert word in str(e.value)
    assert "\n" not in str(e.value)
    assert not out.exists()


@pytest.mark.parametrize("scheme", ["first", "always"])
@pytest.mark.parametrize("template", ["plain", None])
def test_no_space_is_put_in_front_of_a_reply(scheme: str, template: str | None, shelf: Shelf, folder: Path) -> None:
    """SentencePiece marks a space in front of a text, and a reply is none of its own."""
    run, made = record(shelf, saved(folder, sentencepiece(scheme=scheme)), talk("q:", "ok"), template=template)
    tok = run.session.student.tokenizer
    ids = made.token_N.tolist()
    assert tok.convert_ids_to_tokens(ids[:2]) == ["o", "k"]
    whole = tok.decode(made.ids_L.tolist(), skip_special_tokens=False)
    assert "q:ok" in whole if template else "assistant\nok<|im_end|>" in whole


def test_tokens_never_reach_over_the_border_of_a_prompt(shelf: Shelf, folder: Path) -> None:
    """Generation reads the prompt alone, so ``1`` and ``2`` stay two tokens although ``12`` is one."""
    tok = tokenizer(merges=[("1", "2"), ("o", "k")])
    run, made = record(shelf, saved(folder, tok), {"prompt": "say 1", "response": "2 ok"}, template="plain")
    root = int(made.root_B[0])
    assert made.ids_L[:root].tolist() == tok("say 1")["input_ids"]
    assert tok.convert_ids_to_tokens(made.token_N.tolist()) == ["2", "\u0120", "ok", "<|endoftext|>"]
    assert run.session.renderer.prompt_ids(made.prompts_B[0]) == made.ids_L[:root].tolist()


def test_a_text_begins_once(shelf: Shelf, folder: Path) -> None:
    """A chat template writes the beginning itself; ``plain`` leaves it to the tokenizer."""
    tok = tokenizer("{{ bos_token }}" + CHATML, specials=(*SPECIALS, "<s>"), bos="<s>", post="<s> $A")
    student_ = saved(folder, tok)
    assert asked(shelf, student_, talk("q", "ok")).count("<s>") == 1
    assert asked(shelf, student_, talk("q", "ok"), template="plain") == "<s>q"
    assert asked(shelf, student_, talk("<s>q", "ok"), template="plain") == "<s>q"


def test_a_plain_prompt_carries_no_end_of_a_chat(shelf: Shelf, folder: Path) -> None:
    tok = tokenizer(specials=(*SPECIALS, "<s>"), bos="<s>", post="<s> $A <|endoftext|>")
    student_ = saved(folder, tok, ("<|im_end|>", "<|endoftext|>"))
    assert asked(shelf, student_, talk("q", "ok"), template="plain") == "<s>q"
    assert taught(shelf, student_, talk("q", "ok"), template="plain") == "ok<|endoftext|>"


def test_a_demonstration_cut_at_the_limit_has_no_end(shelf: Shelf, folder: Path) -> None:
    student_ = saved(folder, tokenizer())
    assert taught(shelf, student_, talk("q", "abcd"), max_tokens=3) == "abc"
    assert taught(shelf, student_, talk("q", "abc"), max_tokens=3) == "abc"
    assert taught(shelf, student_, talk("q", "ab"), max_tokens=3) == "ab<|im_end|>"


def test_the_evaluations_reference_texts_are_rendered_too(shelf: Shelf, folder: Path) -> None:
    """Perplexity is that of the texts as the template writes them; one that is cut has no end."""
    task = jsonl(folder.with_name("a.jsonl"), [{"prompt": f"q{i}", "response": "ok, then"} for i in range(4)])
    for limit, said in ((64, "ok, then<|im_end|>"), (3, "ok,")):
        own = {"student": str(saved(folder, tokenizer())), "task": str(task), "teacher": None, "max_tokens": limit}
        run = open_run(shelf, "sft", folder.with_name("run"), **own)
        made = run.evaluator._reference_record()
        assert made is not None
        assert run.session.student.tokenizer.decode(made.token_N[made.seq_N == 0].tolist()) == said


def test_a_text_recast_as_a_response_ends_as_its_template_ends(shelf: Shelf, folder: Path) -> None:
    from limbeck.axes import recast

    run = open_run(
        shelf, "grpo", folder.with_name("run"), student=str(saved(folder, tokenizer())), teacher=None, task=Parity()
    )
    writer = writing.writer_for(run.session, 1, 0)
    writer = replace(writer, done={"main": writer.write(sample(student, 1))})
    record = writer.write(recast("main", response="so be it"))
    assert run.session.student.tokenizer.decode(record.token_N.tolist()) == "so be it<|im_end|>"


# ---------------------------------------------------------------- what ends a turn


def test_generation_stops_where_the_template_ends_and_the_student_remembers_it(
    shelf: Shelf, folder: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A base model under a chat template: its own list does not hold the template's end."""
    from limbeck.engine import distill

    student_ = saved(folder, tokenizer(), ("<|endoftext|>",))
    run = open_run(shelf, "grpo", out, student=str(student_), teacher=None)
    policy = run.session.student
    end = policy.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in policy.eos
    assert all(end in p.eos for p in run.session.policies.values())
    task = jsonl(folder.with_name("a.jsonl"), [{"prompt": f"q{i}", "response": "ok"} for i in range(4)])
    settings = {"steps": 1, "prompts": 2, "eval_size": 0, "warmup": 0, "cpu": True}
    distill("sft", student=str(student_), task=str(task), out=out, **settings)
    said = " ".join(capsys.readouterr().err.split())
    assert "ends a turn with '<|im_end|>', which is not among the tokens at which it stops ('<|endoftext|>')" in said
    config = json.loads((out / "student" / "generation_config.json").read_text())
    assert config["eos_token_id"] == policy.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    distill("sft", student=str(out / "student"), task=str(task), out=out.with_name("again"), **settings)
    assert "not among" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("theirs", "eos", "own", "noted"),
    [
        (CHATML, ("<|im_end|>",), {}, False),
        # The lists overlap, and the formats end with different tokens.
        (CHATML.replace("<|im_end|>", "<|endoftext|>"), ("<|endoftext|>", "<|im_end|>"), {}, True),
        (None, ("<|im_end|>",), {}, False),
        (None, ("<|endoftext|>",), {}, True),
        (None, ("<|endoftext|>",), {"template": "plain"}, False),
        (CHATML, ("<|endoftext|>",), {"template": "plain"}, False),
        (CHATML, ("<|endoftext|>", "<|im_end|>"), {"teacher_template": "plain"}, False),
    ],
)
def test_a_teacher_that_ends_turns_with_another_token_is_noted(
    theirs: str | None, eos: tuple[str, ...], own: dict[str, Any], noted: bool, shelf: Shelf, folder: Path
) -> None:
    from limbeck.engine.notices import notices

    teacher = saved(folder.with_name("teacher"), tokenizer(theirs), eos, 2)
    student_ = saved(folder, tokenizer())
    run = open_run(shelf, "opd", folder.with_name("run"), student=str(student_), teacher=str(teacher), **own)
    assert any("finds every end unlikely" in n for n in notices(run.session)) is noted


def test_between_two_turns_a_message_ends_once(shelf: Shelf, folder: Path, out: Path) -> None:
    """Also where the student ended it with another of its tokens than the template does."""
    policy = open_run(shelf, "grpo", out, student=str(saved(folder, tokenizer())), teacher=None).session.student
    follows = "\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"
    for end, first in (("<|im_end|>", ""), ("<|endoftext|>", ""), ("a", "<|im_end|>")):
        ids = policy.tokenizer.convert_tokens_to_ids(["b", end])
        assert policy.tokenizer.decode(between(policy, Observation("more"), ids)) == first + follows


# ---------------------------------------------------------------- what a template writes


def test_tools_and_calls_are_rendered(shelf: Shelf, folder: Path) -> None:
    student_ = saved(folder, tokenizer(TOOLS))
    line = {**talk("q", "", tool_calls=[CALL]), "tools": ADD}
    assert taught(shelf, student_, line) == "<call>add</call><|im_end|>"
    assert '"name": "add"' in asked(shelf, student_, line)
    line["messages"][-1]["content"] = None
    assert taught(shelf, student_, line) == "<call>add</call><|im_end|>"
    history = {"messages": [*line["messages"], {"role": "tool", "content": "7"}], "response": "it is 7", "tools": ADD}
    assert "<call>add</call><|im_end|>\n<|im_start|>tool\n7" in asked(shelf, student_, history)
    both = {**talk("q", "let me see", tool_calls=[CALL])}
    assert taught(shelf, student_, both) == "let me see<call>add</call><|im_end|>"


def test_readers_with_a_context_see_the_tools_too(shelf: Shelf, folder: Path, out: Path) -> None:
    rows = [{"prompt": f"q{i}", "answer": "1", "solution": "one", "tools": ADD} for i in range(4)]
    task = jsonl(folder.with_name("a.jsonl"), rows)
    run = open_run(shelf, "opsd", out, student=str(saved(folder, tokenizer(TOOLS))), teacher=None, task=str(task))
    made, _ = writing.write(run.session.method.sources, run.session, 1, 0)
    framed = ContextViews(made, run.session).seen_by(next(v for v in run.session.method.views if v.context))
    text = run.session.student.tokenizer.decode(framed.ids_L[: int(framed.root_B[0])].tolist())
    assert '"name": "add"' in text
    assert "one" in text


def test_what_earlier_turns_lose_on_purpose_is_no_loss(shelf: Shelf, folder: Path) -> None:
    line = talk("q", "a", "r", "b")
    line["messages"][1]["reasoning_content"] = "because"
    student_ = saved(folder, tokenizer(MOVING))
    assert "because" not in asked(shelf, student_, line)
    assert taught(shelf, student_, line).endswith("b<|im_end|>")


@pytest.mark.parametrize(
    ("template", "line", "what"),
    [
        (CHATML, talk("q", "a", reasoning_content="six"), "'reasoning_content' of a message of the assistant"),
        (CHATML, talk("q", "a", tool_calls=[CALL]), "'tool_calls'"),
        (CHATML, talk("q", "a", weight=0), "'weight'"),
        (CHATML, talk("q", "a", "r", name="Ann") | {"response": "x"}, "'name' of a message of the user"),
        # The word stands in the template, for another thing.
        (TOOLS, talk("q", "a", "r", name="Ann") | {"response": "x"}, "'name' of a message of the user"),
        (CHATML, {"prompt": "q", "response": "a", "tools": ADD}, "'tools'"),
        (CHATML, {"prompt": "q", "response": "a", "documents": [{"text": "d"}]}, "'documents'"),
        (CHATML, {"prompt": "q", "response": "a", "chat_template_kwargs": {"thinking": True}}, "'thinking'"),
    ],
)
def test_what_a_template_does_not_write_is_refused_with_its_line(
    template: str, line: dict[str, Any], what: str, shelf: Shelf, folder: Path, out: Path
) -> None:
    with pytest.raises(LimbeckError) as e:
        record(shelf, saved(folder, tokenizer(template)), line)
    assert f"does not use {what}" in str(e.value)
    assert "lines.jsonl, line 1: " in str(e.value)
    assert "template=FILE.jinja" in str(e.value)


def test_null_and_empty_keys_are_nothing(shelf: Shelf, folder: Path) -> None:
    """A data set's folder has every message's keys in every message."""
    line = talk("q", "a", tool_calls=None, name=None, reasoning_content="")
    assert taught(shelf, saved(folder, tokenizer()), line) == "a<|im_end|>"


def test_variables_of_the_template_can_be_set(shelf: Shelf, folder: Path, out: Path) -> None:
    switch = CHATML.replace("assistant\n{%", "assistant\n{% if enable_thinking is false %}<think></think>{% endif %}{%")
    student_ = saved(folder, tokenizer(switch))
    for value, ends in ((False, "<think></think>"), (True, "assistant\n")):
        line = {"prompt": "q", "answer": "1", "chat_template_kwargs": {"enable_thinking": value}}
        task = jsonl(folder.with_name("a.jsonl"), [line] * 3)
        run = open_run(shelf, "grpo", out, student=str(student_), teacher=None, task=str(task))
        session, prompt = run.session, run.session.tasks["task"].train[0]
        tok = run.session.student.tokenizer
        assert tok.decode(session.renderer.prompt_ids(prompt)).endswith(ends)
        assert tok.decode(between(run.session.student, Observation("r"), [], prompt)).endswith(ends)
    with pytest.raises(LimbeckError, match="names 'tokenize', which Limbeck sets"):
        record(shelf, student_, {"prompt": "q", "response": "a", "chat_template_kwargs": {"tokenize": True}})


def test_the_same_messages_with_other_tools_are_another_prompt(shelf: Shelf, folder: Path, out: Path) -> None:
    rows = [{"prompt": "q", "response": "a", "tools": [{**ADD[0], "n": n}]} for n in (7, 8)]
    task = jsonl(folder.with_name("a.jsonl"), rows)
    own = {"student": str(saved(folder, tokenizer(TOOLS))), "task": str(task), "task_options": {"test_fraction": 0.0}}
    run = open_run(shelf, "sft", out, teacher=None, max_tokens=64, eval_size=0, **own)
    made, _ = writing.write(run.session.method.sources, run.session, 2, 0)
    text = run.session.student.tokenizer.decode(made.ids_L.tolist())
    assert '"n": 7' in text
    assert '"n": 8' in text


# ---------------------------------------------------------------- the format is kept, and its problems are told


@pytest.mark.parametrize("template", ["file", "plain"])
def test_a_student_keeps_the_format_that_it_learned(template: str, shelf: Shelf, folder: Path, out: Path) -> None:
    tok = tokenizer(None, specials=(*SPECIALS, "<s>"), bos="<s>", post="<s> $A")
    student_ = str(saved(folder, tok))
    file = folder.with_name("chat.jinja")
    file.write_text("\ufeff" + CHATML, encoding="utf-8")
    task = jsonl(folder.with_name("a.jsonl"), [{"prompt": f"q{i}", "response": "ok"} for i in range(4)])
    own = {"task": str(task), "teacher": None, "steps": 1, "max_tokens": 64}
    named = str(file) if template == "file" else template
    go(shelf, "sft", out, student=student_, template=named, **own)
    left = AutoTokenizer.from_pretrained(out / "student").chat_template
    assert left == CHATML if template == "file" else left
    before = open_run(
        shelf,
        "sft",
        out.with_name("b"),
        student=student_,
        template=str(file) if template == "file" else template,
        **own,
    )
    after = open_run(shelf, "sft", out.with_name("a"), student=str(out / "student"), **own)
    prompt = Prompt("p", ({"role": "user", "content": "q"},))
    ids = before.session.renderer.prompt_ids(prompt)
    assert after.session.renderer.prompt_ids(prompt) == ids
    assert tok.decode(ids).startswith("<|im_start|>" if template == "file" else "<s>q")


def test_errors_of_the_teachers_format_name_the_teacher(shelf: Shelf, folder: Path, out: Path) -> None:
    bad = folder.with_name("bad.jinja")
    bad.write_text("{{ raise_exception('no') }}")
    bare = saved(folder.with_name("teacher"), tokenizer(None), seed=2)
    student_ = saved(folder, tokenizer())
    for value, words in (("none.jinja", "teacher_template='none.jinja'"), (str(bad), ""), ("own", "no chat template")):
        with pytest.raises(LimbeckError) as e:
            go(shelf, "opd_full", out, student=str(student_), teacher=str(bare), teacher_template=value)
        assert not out.exists()
        assert words in str(e.value)
        assert "teacher_template=" in str(e.value)
        assert "--set template=" not in str(e.value)


# ---------------------------------------------------------------- prompts that do not fit, responses that are cut


def late(file: Path, n: int = 2100, long: int = 3) -> Path:
    """Short problems, and a few behind them that no window holds."""
    rows = [{"prompt": f"p{i}", "answer": "1", "response": "ok"} for i in range(n)]
    return jsonl(file, [*rows, *({**rows[0], "prompt": "x" * 2000 + str(i)} for i in range(long))])


def test_every_prompt_is_measured_before_the_first_step(shelf: Shelf, folder: Path, out: Path) -> None:
    task = late(folder.with_name("late.jsonl"))
    with pytest.raises(LimbeckError, match=r"late.jsonl, line 2101: prompt .* reads only 1024.*skip_overlong=true"):
        go(shelf, "grpo", out, task=str(task), teacher=None, task_options={"test_fraction": 0.0})
    assert not out.exists()


def test_prompts_that_are_too_long_are_left_out_where_asked(
    shelf: Shelf, folder: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from limbeck.engine import distill

    task = late(folder.with_name("late.jsonl"), n=5, long=5)
    settings = shelf.settings("sft", task=str(task), skip_overlong=True, steps=8, prompts=3, save_every=1, teacher=None)
    settings |= {"task_options": {"test_fraction": 0.0}, "eval_size": 0}
    distill("sft", out=out, **settings)
    said = " ".join(capsys.readouterr().err.split())
    assert "note: 5 of 10 training prompts of 'late' leave no room" in said
    assert "late.jsonl, line 6: prompt" in said
    whole = lines(out / "metrics.jsonl")
    assert len(whole) == 8
    # A resumed run takes the prompts that the whole one took.
    distill("sft", out=out.with_name("half"), quiet=True, **{**settings, "steps": 4})
    resume(out.with_name("half"), steps=8)
    assert lines(out.with_name("half") / "metrics.jsonl") == whole
    settings["task"] = str(jsonl(folder.with_name("none.jsonl"), [{"prompt": "x" * 2000, "response": "ok"}]))
    with pytest.raises(LimbeckError, match="every training prompt of 'none' is too long"):
        distill("sft", out=out.with_name("none"), **settings)


class Made(Parity):
    """Prompts that the task makes when they are read; the last ones are too long."""

    def __init__(self) -> None:
        super().__init__()
        self.train = _Lazy(self.train)


class _Lazy:
    def __init__(self, prompts: Any) -> None:
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, i: int) -> Prompt:
        prompt = self.prompts[i]
        return Prompt(prompt.id, ({"role": "user", "content": "x" * 2000},)) if i >= 4 else prompt


def test_prompts_that_a_task_makes_are_measured_as_they_come(
    shelf: Shelf, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start-up is bounded; what is found later can be left out as well, and ends no run."""
    from limbeck.engine import prompt_checks as prompts
    from limbeck.engine.notices import notices

    with pytest.raises(LimbeckError, match="prompt 'p4' has"):
        go(shelf, "grpo", out, task=Made(), teacher=None)
    monkeypatch.setattr(prompts, "PATIENCE", 0.0)
    monkeypatch.setattr(prompts, "AT_ONCE", 1)
    run = open_run(shelf, "grpo", out, task=Made(), teacher=None, skip_overlong=True, group=2)
    assert any(
        "1 of 8 training prompts of 'parity' were measured before the first step" in n for n in notices(run.session)
    )
    taken = [p.id for _ in range(4) for p in run.session.streams["task"].take(4)]
    assert set(taken) == {"p0", "p1", "p2", "p3"}


def test_held_out_prompts_are_measured_too(shelf: Shelf, folder: Path, out: Path) -> None:
    train = jsonl(folder.with_name("a.jsonl"), [{"prompt": f"p{i}", "answer": "1"} for i in range(4)])
    test = jsonl(folder.with_name("t.jsonl"), [{"prompt": "y", "answer": "1"}, {"prompt": "x" * 2000, "answer": "1"}])
    own = {"task": str(train), "task_options": {"test_path": str(test)}, "teacher": None}
    with pytest.raises(LimbeckError, match=r"t.jsonl, line 2: prompt"):
        go(shelf, "grpo", out, **own)
    run = open_run(shelf, "grpo", out, skip_overlong=True, **own)
    assert [p.messages[0]["content"] for p in run.evaluator.prompts] == ["y"]


@pytest.mark.parametrize(("method", "alike"), [("sft", ""), ("dpo", "; 3 pairs are the same up to there")])
def test_the_share_of_responses_that_a_limit_cuts_is_said(
    method: str, alike: str, shelf: Shelf, folder: Path, out: Path
) -> None:
    from limbeck.engine.notices import notices

    texts = {"sft": {"response": "abcdef"}, "dpo": {"chosen": "abcdef", "rejected": "abcdeg"}}[method]
    short = {"sft": {"response": "a"}, "dpo": {"chosen": "a", "rejected": "b"}}[method]
    rows = [{"prompt": f"p{i}", **(texts if i < 3 else short)} for i in range(4)]
    task = jsonl(folder.with_name("a.jsonl"), rows)
    own = {"task": str(task), "task_options": {"test_fraction": 0.0}, "teacher": None, "eval_size": 0}
    run = open_run(shelf, method, out, max_tokens=3, **own)
    (note,) = [n for n in notices(run.session) if "are cut there" in n]
    of = "3 of 4" if method == "sft" else "6 of 8"
    assert f"{of} training responses of 'a' (75%) are longer than max_tokens=3" in note
    assert f"without an end{alike}; --set max_tokens=7 takes all of them whole" in note
    run = open_run(shelf, method, out, max_tokens=7, **own)
    assert not any("cut" in n for n in notices(run.session))


def test_a_line_that_lacks_a_key_of_the_others_is_named(shelf: Shelf, folder: Path, out: Path) -> None:
    rows = [{"prompt": f"p{i}", "answer": "1", "response": "ok", "chosen": None} for i in range(8)]
    for key, method, service in (("response", "sft", "responses"), ("answer", "grpo", "reward")):
        own = [dict(row) for row in rows]
        del own[5][key]
        task = jsonl(folder.with_name("a.jsonl"), own)
        with pytest.raises(
            LimbeckError, match=rf"reads {service} from 'a', .*1 of 8 records lack it, first .*line 6\)"
        ):
            go(shelf, method, out, task=str(task), teacher=None)
