"""The embedded pair as a user gets it: loads, renders, round-trips, and is as good as its card says."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from limbeck import embedded
from limbeck.errors import LimbeckError
from limbeck.tasks import load_task

QUESTION = "State the final answer to the following arithmetic problem: 45 + 67 ="
ANSWER = "5+7=12,4+6+1=11<answer>112</answer>"


@functools.cache
def load(name: str) -> tuple[Any, Any]:
    folder = embedded.path(name)
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def accuracy(name: str, n: int, sampled: bool = False) -> float:
    model, tokenizer = load(name)
    task = load_task(embedded.TASK)
    prompts = task.test[:n]
    torch.manual_seed(0)
    right = 0
    for part in (prompts[i : i + 100] for i in range(0, n, 100)):
        batch = tokenizer.apply_chat_template(
            [list(p.messages) for p in part],
            add_generation_prompt=True,
            return_tensors="pt",
            padding=True,
            return_dict=True,
        )
        choice = {"do_sample": True, "top_k": 0} if sampled else {"do_sample": False}
        out = model.generate(**batch, max_new_tokens=32, **choice)
        texts = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(task.verify(p, t).correct for p, t in zip(part, texts, strict=True))
    return right / n


@pytest.mark.parametrize(("name", "low", "high"), [("teacher", 200_000, 2_000_000), ("student", 50_000, 200_000)])
def test_the_pair_is_as_small_as_documented(name: str, low: int, high: int) -> None:
    model, tokenizer = load(name)
    assert low <= sum(p.numel() for p in model.parameters()) <= high
    assert model.config.vocab_size == len(tokenizer)
    assert sum(f.stat().st_size for f in embedded.path(name).iterdir()) < 3_000_000
    assert (embedded.path(name) / "README.md").read_text().startswith("---\nlicense: apache-2.0")


def test_both_share_vocabulary_and_template() -> None:
    (_, teacher), (_, student) = load("teacher"), load("student")
    assert teacher.get_vocab() == student.get_vocab()
    assert teacher.chat_template == student.chat_template
    assert student.padding_side == "left"
    assert len({student.pad_token_id, student.eos_token_id, student.bos_token_id, student.unk_token_id}) == 4


def test_the_chat_template_renders_and_an_answered_chat_begins_with_its_prompt() -> None:
    _, tokenizer = load("student")
    user, assistant = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
    prompt = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    assert prompt == f"<s><|user|>{QUESTION}<|assistant|>"
    whole = tokenizer.apply_chat_template([user, assistant], tokenize=False)
    assert whole == f"{prompt}{ANSWER}</s>"
    ids = tokenizer.encode(whole)
    assert ids[: len(tokenizer.encode(prompt))] == tokenizer.encode(prompt)
    assert tokenizer.unk_token_id not in ids
    assert len(ids) <= 45
    masked = tokenizer.apply_chat_template([user, assistant], return_assistant_tokens_mask=True, return_dict=True)
    own = [i for i, m in zip(masked["input_ids"], masked["assistant_masks"], strict=True) if m]
    assert own == [*tokenizer.encode(ANSWER), tokenizer.eos_token_id]


@pytest.mark.parametrize("text", [QUESTION, ANSWER, "".join(map(chr, range(32, 127))), "a  b\n c .", ""])
def test_text_survives_encoding_and_decoding(text: str) -> None:
    _, tokenizer = load("teacher")
    ids = tokenizer.encode(text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_unknown_characters_become_one_token_each() -> None:
    _, tokenizer = load("teacher")
    assert tokenizer.encode("é漢") == [tokenizer.unk_token_id] * 2


def test_the_teacher_solves_nine_problems_in_ten() -> None:
    assert accuracy("teacher", 200) > 0.9


def test_the_student_solves_less_than_half_of_the_problems() -> None:
    assert 0.1 <= accuracy("student", 200) <= 0.45
    assert 0.05 <= accuracy("student", 200, sampled=True) <= 0.4


def test_wrong_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LimbeckError, match="'techer' does not exist \\(did you mean 'teacher'\\?\\)"):
        embedded.path("techer")
    monkeypatch.setattr(embedded, "__file__", "/nowhere/__init__.py")
    with pytest.raises(LimbeckError, match="'student' is missing from '/nowhere/student'"):
        embedded.path("student")
