"""Models given as objects, vocabularies with holes, ends that are missing, adapters that are too wide, no network."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_runs import VOCABULARY, Shelf, go, jsonl, lines, llama, put, tensors
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from limbeck.engine import configure, distill, evaluate, train
from limbeck.engine.forecast import few_prompts
from limbeck.engine.models import hub, loading
from limbeck.engine.notices import few_problems
from limbeck.errors import LimbeckError
from limbeck.tasks import load_task


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """No hub; what is asked of it is noted."""
    asked: list[str] = []

    class Session:
        def head(self, url: str, **_: object) -> None:
            asked.append(url)
            raise ConnectionError("refused")

    reachable = hub.reachable
    reachable.cache_clear()
    monkeypatch.setattr(hub.huggingface_hub, "get_session", Session)
    yield asked
    reachable.cache_clear()


def given(shelf: Shelf, **own: Any) -> dict[str, Any]:
    return {**shelf.settings("kd", eval_size=0), **own}


def test_one_object_may_be_student_and_teacher(shelf: Shelf, out: Path) -> None:
    """The teacher is a copy of what it was: the student moves, and moves away from it."""
    model = AutoModelForCausalLM.from_pretrained(shelf.student)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    value = distill("sft", out=out, quiet=True, **given(shelf, student=model, teacher=model, diagnostics=True))
    after = tensors(value.student / "model.safetensors")
    assert not torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    kl = [m["kl_reverse"] for m in lines(out / "metrics.jsonl")]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[1] > 1e-4


def test_a_frozen_object_cannot_learn(shelf: Shelf, out: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(shelf.student).requires_grad_(False)
    with pytest.raises(LimbeckError, match=r"none of its parameters can be trained; call requires_grad_\(True\)"):
        distill("sft", out=out, quiet=True, **given(shelf, student=model))


def test_an_object_without_a_tokenizer_is_refused(shelf: Shelf, out: Path, offline: list[str]) -> None:
    with pytest.raises(LimbeckError, match=r"teacher: the LlamaForCausalLM was not loaded from anywhere.*tokenizer"):
        distill("kd", out=out, quiet=True, **given(shelf, teacher=llama(3)))
    model = llama(3)
    model.name_or_path = "owner/name"
    with pytest.raises(LimbeckError, match=r"teacher='owner/name': there is no such folder, and the hub"):
        distill("kd", out=out, quiet=True, **given(shelf, teacher=model))


@pytest.mark.parametrize(("rank", "fits"), [(16, True), (17, False)])
def test_adapters_wider_than_a_layer_are_refused(rank: int, fits: bool, shelf: Shelf, out: Path) -> None:
    if fits:
        go(shelf, "kd", out, lora_rank=rank, steps=1, eval_size=0)
        return
    with pytest.raises(LimbeckError, match=rf"lora_rank={rank} is more than any layer .* \(at most 16\)"):
        go(shelf, "kd", out, lora_rank=rank)
    assert not out.exists()


# ---------------------------------------------------------------- vocabularies


def with_hole(folder: Path, token: str = "<far>", row: int = 109) -> Path:
    """The tokenizer's next ids stay free, and one token lies behind them."""
    document = json.loads((folder / "tokenizer.json").read_text())
    document["model"]["vocab"][token] = row
    (folder / "tokenizer.json").write_text(json.dumps(document))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([token])
    assert tokenizer.token_to_id(token) == row
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_tokenizer_with_holes_has_rows_for_all_its_ids(shelf: Shelf, out: Path, tmp_path: Path) -> None:
    """Its size is its largest id and one, not the number of its entries."""
    folders = [with_hole(Path(shutil.copytree(f, tmp_path / f.name))) for f in (shelf.student, shelf.teacher)]
    rows = [{"prompt": f"say {i}<far>", "response": f"{i}<far>"} for i in range(4)]
    own = {"student": str(folders[0]), "teacher": str(folders[1]), "task": str(jsonl(tmp_path / "a.jsonl", rows))}
    go(shelf, "kd", out, **own, max_tokens=8, steps=1)
    assert lines(out / "metrics.jsonl")[0]["kl_forward"] > 0


def test_a_token_at_an_id_that_the_other_tokenizer_skips_is_refused(shelf: Shelf, out: Path, tmp_path: Path) -> None:
    own = with_hole(Path(shutil.copytree(shelf.student, tmp_path / "own")))
    other = Path(shutil.copytree(shelf.teacher, tmp_path / "other"))
    tokenizer = Tokenizer.from_file(str(other / "tokenizer.json"))
    tokenizer.add_tokens(["<a>", "<b>", "<c>", "<far>"])
    tokenizer.save(str(other / "tokenizer.json"))
    with pytest.raises(LimbeckError, match=r"different vocabularies: 3 of 110 ids differ \('<a>' is absent / 106"):
        go(shelf, "kd", out, student=str(own), teacher=str(other))


def longer(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["<think>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_response_with_a_token_that_the_teacher_lacks_is_refused(
    method: str, shelf: Shelf, out: Path, tmp_path: Path
) -> None:
    student = longer(shelf.student, tmp_path / "longer")
    texts = {"sft": {"response": "a<think>"}, "dpo": {"chosen": "a", "rejected": "<think>"}}[method]
    task = jsonl(tmp_path / "a.jsonl", [{"prompt": f"p{i}", "id": f"p{i}", **texts} for i in range(3)])
    with pytest.raises(
        LimbeckError, match=r"response of prompt 'p\d' has the token '<think>', which the other model's"
    ):
        go(shelf, method, out, student=str(student), task=str(task))
    assert not out.exists()
    # Alone, the student may use all of its tokens.
    go(shelf, method, out, student=str(student), task=str(task), teacher=None, steps=1)


def test_a_single_end_token_that_the_teacher_lacks_is_refused(shelf: Shelf, out: Path, tmp_path: Path) -> None:
    student = longer(shelf.student, tmp_path / "longer")
    config = json.loads((student / "generation_config.json").read_text())
    (student / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": [VOCABULARY]}))
    with pytest.raises(LimbeckError, match=r"ends a response with '<think>', which the other model's vocabulary lacks"):
        go(shelf, "kd", out, student=str(student))
    (student / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": [VOCABULARY, 2]}))
    go(shelf, "kd", out, student=str(student), steps=1, eval_size=0)


def test_a_student_without_an_end_token_is_refused(shelf: Shelf, out: Path, tmp_path: Path) -> None:
    model = llama(3)
    model.generation_config.eos_token_id = None
    folder = put(model, tmp_path / "endless")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": None}))
    with pytest.raises(LimbeckError, match=r"no token that ends a response; set eos_token_id"):
        go(shelf, "kd", out, student=str(folder))


# ---------------------------------------------------------------- the hub


def test_any_answer_of_the_hub_counts_as_reachable(offline: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert not hub.reachable()
    hub.reachable.cache_clear()
    monkeypatch.setattr(hub.huggingface_hub.get_session, "head", lambda *a, **k: "404")
    assert hub.reachable()


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_model_that_cannot_be_fetched_gives_one_sentence(
    role: str, shelf: Shelf, out: Path, offline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load_policy", lambda *a, **k: pytest.fail("a model was loaded"))
    for _ in range(2):
        with pytest.raises(LimbeckError, match=rf"{role}='owner/no-such-model': there is no such folder, and the hub"):
            go(shelf, "kd", out, **{role: "owner/no-such-model"})
    assert len(offline) == 1
    assert not out.exists()


def test_local_models_need_no_hub(shelf: Shelf, out: Path, offline: list[str]) -> None:
    go(shelf, "kd", out, steps=1, eval_size=0)
    assert offline == []


def test_a_cached_model_is_not_asked_for(offline: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.huggingface_hub, "try_to_load_from_cache", lambda *a: "/a/file")
    assert hub.only_here("owner/name")
    assert len(offline) == 1
    hub.refuse_unreachable("teacher", "owner/name")
    for local in ("embedded", "./a", "/a/b", "a/b/c", "~"):
        assert not hub.only_here(local)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    assert not hub.only_here("owner/name")


# ---------------------------------------------------------------- few problems


@pytest.mark.parametrize(
    ("rows", "size", "said"),
    [(30, 200, "holds out 4 problems"), (300, 200, ""), (30, 0, ""), (30, 2, ""), (1, 5, "holds out no problem")],
)
def test_few_held_out_problems_are_noted(rows: int, size: int, said: str, tmp_path: Path) -> None:
    task = load_task(jsonl(tmp_path / "a.jsonl", [{"prompt": f"{i}", "answer": "1"} for i in range(rows)]))
    assert (len(task.test) < 20) == (rows < 300)
    sentences = few_problems(task, size)
    assert len(sentences) == bool(said)
    assert said in " ".join(sentences)


@pytest.mark.parametrize(
    ("rows", "takes", "said"),
    [(4, 8, "'a' has 4 training prompts and a step takes 8"), (1, 8, "has 1 training prompt and"), (8, 8, "")],
)
def test_fewer_training_prompts_than_a_step_takes_are_noted(rows: int, takes: int, said: str) -> None:
    task = SimpleNamespace(name="a", train=("prompt",) * rows)
    session: Any = SimpleNamespace(tasks={"task": task}, config=SimpleNamespace(prompts=takes))
    sentences = few_prompts(session)
    assert len(sentences) == bool(said)
    assert said in " ".join(sentences)
    assert not said or sentences[0].endswith(f"--set prompts={rows}.")


def test_runs_and_evaluations_note_few_problems(shelf: Shelf, out: Path) -> None:
    console = Console(record=True, width=300, file=io.StringIO())
    config = configure("sft", shelf.settings("sft", eval_size=200, steps=1))
    train(config, out, console=console)
    assert "'verified' holds out" in console.export_text()
    evaluate(str(shelf.student), task=str(shelf.verified), max_tokens=2, cpu=True, console=console)
    assert "'verified' holds out" in console.export_text()
