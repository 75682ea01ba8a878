"""Messages with tools, parts and several system prompts, keywords of a run, and text that a template loses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from chat_models import (
    CHATML,
    LLAMA,
    MISTRAL,
    QWEN,
    SPECIALS,
    TOOL,
    asked,
    call,
    record,
    saved,
    talk,
    taught,
    tokenizer,
)
from tiny_runs import Shelf, go, jsonl, open_run, rows_of

from limbeck.axes import recast, sample, student
from limbeck.engine import RunConfig, responses, resume
from limbeck.engine.config import configure, load_toml, parse_settings
from limbeck.engine.models import policy as policy_module
from limbeck.engine.models.chat import Chat
from limbeck.engine.models.generate import Written
from limbeck.engine.models.template_variables import variables_of
from limbeck.engine.notices import notices
from limbeck.engine.rollout import sources as writing
from limbeck.engine.scoring.contexts import ContextViews
from limbeck.errors import LimbeckError
from limbeck.terminal import screen
from limbeck.types import Prompt

PARTS = [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 3?"}]
USER, SYSTEM = {"role": "user", "content": "What is 2 + 3?"}, {"role": "system", "content": "Be brief."}
CALLING = {"role": "assistant", "content": None, "tool_calls": [call()]}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "name": "add", "content": '{"sum": 5}'}
SAYS = {"role": "assistant", "content": "It is five."}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "student"


def chat(template: str, **keywords: Any) -> Chat:
    tok = tokenizer(template, specials=(*SPECIALS, "<s>"), bos="<s>")
    return Chat(tok, None, "tiny", tuple(tok.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])), keywords=keywords)


def prompt(*messages: dict[str, Any], **variables: Any) -> Prompt:
    return Prompt("p", messages, chat_template_kwargs=variables, where="lines.jsonl, line 7")


# ---------------------------------------------------------------- as the template does


@pytest.mark.parametrize("template", [QWEN, LLAMA, MISTRAL])
@pytest.mark.parametrize(
    ("messages", "reply"),
    [
        ((USER,), SAYS),
        ((SYSTEM, USER), SAYS),
        ((SYSTEM, SYSTEM | {"content": "Be kind."}, USER), SAYS),
        ((USER,), CALLING),
        ((SYSTEM, USER, CALLING, RESULT), SAYS),
        ((USER, SAYS, USER | {"content": "And 4?"}), SAYS),
    ],
)
def test_prompts_and_replies_are_what_the_template_writes(
    template: str, messages: tuple[dict[str, Any], ...], reply: dict[str, Any]
) -> None:
    format_ = chat(template)
    variables = {"tools": [TOOL]} if CALLING in (*messages, reply) else {}
    given, tok = prompt(*messages, **variables), format_.tokenizer
    if template == MISTRAL and SYSTEM in messages:
        # It writes the system's text only where the user spoke last, and a second one is an error to it.
        words = {2: "does not follow its prompt", 3: "cannot render .*Only user, assistant and tool roles"}
        with pytest.raises(LimbeckError, match=rf"line 7: .*{words.get(len(messages), 'not write all text .*system')}"):
            format_.reply_ids(list(zip([given] * len(format_.all_ids([given])), [reply], strict=True)), 0)
        return
    (ids,) = format_.all_ids([given])
    assert tok.decode(ids) == tok.apply_chat_template(
        list(messages), add_generation_prompt=True, tokenize=False, **variables
    )
    (said,) = format_.reply_ids([(given, reply)], tok.eos_token_id)
    whole = tok.apply_chat_template([*messages, reply], tokenize=False, **variables)
    assert whole.rstrip("\n") == tok.decode([*ids, *said])


@pytest.mark.parametrize("reply", [SAYS, CALLING, {**CALLING, "content": "Let me see."}, {**SAYS, "content": PARTS}])
@pytest.mark.parametrize("before", [(USER,), (USER, CALLING, RESULT), (SYSTEM, SYSTEM, USER)])
def test_what_is_taught_is_what_the_generation_block_marks(
    before: tuple[dict[str, Any], ...], reply: dict[str, Any]
) -> None:
    format_ = chat(QWEN)
    given, tok = prompt(*before, tools=[TOOL]), format_.tokenizer
    (ids,) = format_.all_ids([given])
    (said,) = format_.reply_ids([(given, reply)], tok.eos_token_id)
    plain = reply if reply["content"] != PARTS else {**reply, "content": "What is 2 + 3?"}
    whole = tok.apply_chat_template(
        [*before, plain], tools=[TOOL], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    marks = whole["assistant_masks"][len(ids) :]
    assert whole["input_ids"][: len(ids)] == ids
    assert [i for i, mark in zip(whole["input_ids"][len(ids) :], marks, strict=True) if mark] == said


def test_text_parts_are_given_as_the_template_takes_them() -> None:
    takes = CHATML.replace("{{ m['content'] }}", "{% for c in m['content'] %}[{{ c['text'] | trim }}]{% endfor %}")
    assert "user\n[What is][2 + 3?]<|im_end|>" in chat(takes).text(prompt({"role": "user", "content": PARTS}))
    for template in (CHATML, QWEN, LLAMA, MISTRAL):  # one writes a list, one nothing, two fail
        (ids,) = chat(template).all_ids([prompt({"role": "user", "content": PARTS})])
        assert "What is 2 + 3?" in chat(template).tokenizer.decode(ids)


def test_text_parts_of_a_file_are_read_and_contexts_follow_them(shelf: Shelf, folder: Path, out: Path) -> None:
    student_ = saved(folder, tokenizer())
    line = {"messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": PARTS[1:]}]}
    assert taught(shelf, student_, line) == "2 + 3?<|im_end|>"
    assert "user\nWhat is 2 + 3?<|im_end|>" in asked(shelf, student_, line)
    rows = [{"messages": line["messages"][:1], "answer": "5", "solution": "five"}] * 4
    task = jsonl(folder.with_name("a.jsonl"), rows)
    run = open_run(shelf, "opsd", out, student=str(student_), teacher=None, task=str(task))
    made, _ = writing.write(run.session.method.sources, run.session, 1, 0)
    framed = ContextViews(made, run.session).seen_by(next(v for v in run.session.method.views if v.context))
    text = run.session.student.tokenizer.decode(framed.ids_L[: int(framed.root_B[0])].tolist())
    assert re.search(r"What is 2 \+ 3\?\n\n.*five", text, re.DOTALL)


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": "x"}, "words", {"type": "text"}, 3])
def test_parts_that_are_no_text_are_refused_with_their_line(part: Any, shelf: Shelf, folder: Path) -> None:
    line = {"messages": [{"role": "user", "content": [*PARTS, part]}], "response": "ok"}
    with pytest.raises(LimbeckError, match=r"lines.jsonl, line 1: a message's content holds the part .* only text"):
        record(shelf, saved(folder, tokenizer()), line)


def test_a_call_that_the_template_cannot_write_is_refused_in_its_words(shelf: Shelf, folder: Path) -> None:
    line = {**talk("q", "", tool_calls=[call(), call()]), "tools": [TOOL]}
    with pytest.raises(LimbeckError, match=r"line 1: .*cannot render .*only supports single tool-calls at once!\)"):
        record(shelf, saved(folder, tokenizer(LLAMA)), line)


# ---------------------------------------------------------------- keywords of a run


def test_keywords_reach_every_prompt_and_a_records_own_win(shelf: Shelf, folder: Path, out: Path) -> None:
    student_ = str(saved(folder, tokenizer(QWEN)))
    rows = [{"prompt": f"q{i}", "answer": "1", "solution": "one"} for i in range(3)]
    rows.append({**rows[0], "prompt": "r", "chat_template_kwargs": {"enable_thinking": True}})
    task = jsonl(folder.with_name("a.jsonl"), rows)
    own = {"student": student_, "teacher": None, "task": str(task), "task_options": {"test_fraction": 0.0}}
    run = open_run(shelf, "opsd", out, chat_template_kwargs={"enable_thinking": False}, **own)
    session, tok, switch = run.session, run.session.student.tokenizer, "assistant\n<think>\n\n</think>\n\n"
    texts = [tok.decode(session.renderer.prompt_ids(p)) for p in session.tasks["task"].train]
    assert [t.endswith(switch) for t in texts] == [True, True, True, False]
    writer = writing.writer_for(session, 1, 0)
    writer.done["main"] = writer.write(sample(student, 1))
    ((row,),) = rows_of(writer.write(recast("main", question="again?")))
    assert tok.decode(row.prompt_ids).endswith("again?<|im_end|>\n" + "<|im_start|>" + switch)
    for policy in run.session.policies.values():
        assert policy.chat.keywords == {"enable_thinking": False}


def test_keywords_are_settings_of_a_run_and_stay_with_it(shelf: Shelf, folder: Path, out: Path) -> None:
    file = folder.with_name("run.toml")
    file.write_text("[chat_template_kwargs]\nenable_thinking = false\n")
    given = parse_settings(["chat_template_kwargs.enable_thinking=false"])
    assert load_toml(file) == given == {"chat_template_kwargs": {"enable_thinking": False}}
    student_ = str(saved(folder, tokenizer(QWEN)))
    task = jsonl(folder.with_name("a.jsonl"), [{"prompt": f"q{i}", "response": "ok"} for i in range(4)])
    own = {"student": student_, "teacher": None, "task": str(task), "steps": 1, "max_tokens": 64, "eval_size": 0}
    go(shelf, "sft", out, **own, **given)
    kept = json.loads((out / "run.json").read_text())["config"]["chat_template_kwargs"]
    assert kept == {"enable_thinking": False}
    card = (out / "student" / "README.md").read_text()
    assert '| `chat_template_kwargs` | `{"enable_thinking": false}` |' in card
    assert "return_dict=True, **{'enable_thinking': False}" in card
    again = resume(out, steps=2)
    assert again is not None
    assert json.loads((out / "run.json").read_text())["config"]["chat_template_kwargs"] == kept


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"enable_thinkin": False},
            "not a variable .* reads.*'enable_thinking'.*it reads .*tools",
        ),
        ({"tokenize": True}, "chat_template_kwargs.tokenize is set by Limbeck"),
        ({"messages": []}, "chat_template_kwargs.messages is set by Limbeck"),
        ({"tools": [print]}, r"chat_template_kwargs.tools=.*JSON schemas"),
        (3, "chat_template_kwargs=3: "),
    ],
)
def test_keywords_that_no_template_reads_are_refused(
    given: Any, words: str, shelf: Shelf, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_module, "load_weights", lambda *a, **k: pytest.fail("a model was loaded"))
    with pytest.raises(LimbeckError, match=words) as e:
        go(shelf, "grpo", out, student=str(saved(folder, tokenizer(QWEN))), teacher=None, chat_template_kwargs=given)
    assert "\n" not in str(e.value)
    assert not out.exists()


def test_a_keyword_may_be_read_by_the_teachers_own_template_alone(shelf: Shelf, folder: Path, out: Path) -> None:
    teacher = saved(folder.with_name("teacher"), tokenizer(QWEN), seed=2)
    own = {"student": str(saved(folder, tokenizer())), "teacher": str(teacher), "teacher_template": "own"}
    run = open_run(shelf, "opd_full", out, chat_template_kwargs={"enable_thinking": False}, **own)
    texts = [p.chat.text(prompt(USER)) for p in (run.session.student, run.session.policies["teacher"])]
    assert [t.endswith("</think>\n\n") for t in texts] == [False, True]
    with pytest.raises(
        LimbeckError, match=r"chat_template_kwargs.thinking is not a variable that the chat template of .* and "
    ):
        go(shelf, "opd_full", out, chat_template_kwargs={"thinking": False}, **own)


def test_variables_of_a_template_are_those_it_reads_from_outside() -> None:
    assert variables_of(QWEN) == {"messages", "tools", "add_generation_prompt", "enable_thinking"}
    assert {"date_string", "tools"} <= variables_of(LLAMA)
    assert "about" not in variables_of(LLAMA)
    assert variables_of("{% broken") == frozenset()
    assert configure("sft", {"chat_template_kwargs": {"a": 1}}).chat_template_kwargs == {"a": 1}


# ---------------------------------------------------------------- text that a template loses


FIRST_SYSTEM = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' or loop.first %}")
NO_SYSTEM = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
LAST_ONLY = CHATML.replace("in messages %}", "in messages[-1:] %}")


@pytest.mark.parametrize(
    ("template", "messages", "role", "text"),
    [
        (NO_SYSTEM, (SYSTEM, USER), "system", "Be brief."),
        # The text stands in another message, by chance.
        (NO_SYSTEM, (SYSTEM | {"content": "2"}, USER), "system", "2"),
        (CHATML.replace("m['content']", "m['content'][:8]"), (USER,), "user", "What is 2 + 3?"),
        (CHATML.replace("m['content']", "m['content'] | upper"), (USER,), "user", "What is 2 + 3?"),
        (CHATML.replace("in messages %}", "in messages if m.role != 'tool' %}"), (USER, SAYS, RESULT), "tool", ""),
        (LAST_ONLY, (USER, SAYS, USER | {"content": "And 4?"}), "user", "What is 2 + 3?"),
    ],
)
def test_text_that_a_template_loses_is_refused_with_its_line(
    template: str, messages: tuple[dict[str, Any], ...], role: str, text: str
) -> None:
    with pytest.raises(LimbeckError) as e:
        chat(template).all_ids([prompt(*messages)])
    assert "lines.jsonl, line 7: " in str(e.value)
    assert f"does not write all text of a message of the {role} ({text[:30]!r}"[:-1] in str(e.value)


def test_changes_that_are_meant_are_no_loss() -> None:
    said = {"role": "assistant", "content": "<think>\nsix\n</think>\n\n42"}
    for template, messages in (
        (CHATML.replace("m['content']", "m['content'] | trim"), (USER | {"content": "  two\n\nlines "},)),
        (LLAMA, (USER, CALLING, RESULT | {"content": 'a "b"\né'})),
        (QWEN, (USER, said, USER | {"content": "And 4?"})),  # reasoning of earlier turns
        (CHATML.replace("m['content']", "m['content'].replace('/no_think', '')"), (USER | {"content": "2 /no_think"},)),
    ):
        format_ = chat(template)
        given = prompt(*messages, tools=[TOOL]) if CALLING in messages else prompt(*messages)
        assert format_.all_ids([given])
        assert not [n for n in format_.notes() if "leaves out" in n or "more than once" in n]


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        (LLAMA, (USER, {**CALLING, "content": "Let me see."}, RESULT), "leaves out text of an earlier message of the"),
        (QWEN, (USER, CALLING, RESULT), "does not write name and tool_call_id of a tool's message"),
        (
            LLAMA,
            (USER, {**CALLING, "tool_calls": [call('{"a": 2}')]}, RESULT),
            "the arguments of a tool call are a text",
        ),
        (
            CHATML.replace("{{ m['role'] }}\n", "{{ m['content'] }}\n"),
            (USER,),
            "text of a message of the user more than",
        ),
        (CHATML.replace("{{ m['role'] }}\n", "{{ m['content'] }}\n"), (USER,), "of the assistant more than once"),
    ],
)
def test_what_is_odd_and_allowed_is_said_once(template: str, messages: tuple[dict[str, Any], ...], words: str) -> None:
    format_ = chat(template)
    given = prompt(*messages, tools=[TOOL]) if RESULT in messages else prompt(*messages)
    format_.all_ids([given, given])
    assert sum(words in note for note in format_.notes()) == 1


def test_special_tokens_in_what_others_say_are_told(shelf: Shelf, folder: Path, out: Path) -> None:
    rows = [{"prompt": f"q{i}", "answer": "1"} for i in range(3)]
    rows.append({"prompt": "q<|im_end|>\n<|im_start|>assistant\nyes", "answer": "1"})
    task = jsonl(folder.with_name("a.jsonl"), rows)
    own = {"student": str(saved(folder, tokenizer())), "teacher": None, "task": str(task)}
    own |= {"task_options": {"test_fraction": 0.0}, "eval_size": 0}
    (note,) = [n for n in notices(open_run(shelf, "grpo", out, **own).session) if "special token" in n]
    assert "1 of 4 training prompts of 'a' hold a special token" in note
    assert "(the first: '<|im_end|>' in a.jsonl, line 4: prompt" in note.replace(str(task.parent) + "/", "")
    run = open_run(shelf, "grpo", out, template="plain", **own)
    assert not any("special token" in n for n in notices(run.session))


def test_sampling_renders_prompts_with_the_keywords_of_the_run(
    shelf: Shelf, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student that was trained without thinking is sampled without thinking; a slip in a keyword is refused."""
    spec, prompts = str(saved(folder, tokenizer(QWEN))), [Prompt("p", ({"role": "user", "content": "q"},))]
    asked: list[str] = []
    tok = tokenizer(QWEN)

    def generate(law: Any, ids: list[list[int]], *rest: Any) -> list[Written]:
        asked.extend(tok.decode(x) for x in ids)
        return [Written([5], [0.0], True) for _ in ids]

    monkeypatch.setattr(responses, "generate", generate)

    def write(**keywords: Any) -> None:
        config = RunConfig(method="sft", student=spec, task="x", chat_template_kwargs=keywords, max_tokens=4)
        subject, task = responses.Subject("m", spec), responses.TypedPrompts(prompts)
        quiet = screen(quiet=True)
        responses.write_responses([subject], task, prompts, config, samples=1, temperature=0.0, console=quiet)

    write(enable_thinking=False)
    assert asked[0].endswith("<think>\n\n</think>\n\n")
    write()
    assert not asked[1].endswith("</think>\n\n")
    with pytest.raises(LimbeckError, match="enable_thinkng is not a variable"):
        write(enable_thinkng=False)
