"""The loop: every method trains, however its batch is cut, and touches nothing but the student."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import METHODS, Shelf, first_gradients, furthest, go, lines, llama, open_run, same, tensors
from transformers import AutoModelForCausalLM

from limbeck.engine import distill
from limbeck.engine.config import RunConfig
from limbeck.engine.export import export
from limbeck.engine.loop import learning_rate
from limbeck.engine.models.policy import load_policy
from limbeck.engine.prompt_stream import PromptStream
from limbeck.types import Prompt

ALWAYS = {"step", "length", "truncated", "lr", "loss", "grad_norm", "entropy", "tokens_written", "tokens_read"}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method: str, shelf: Shelf, out: Path) -> None:
    result = go(shelf, method, out)
    metrics = lines(out / "metrics.jsonl")
    assert [m["step"] for m in metrics] == [0, 1]
    for m in metrics:
        assert set(m) >= ALWAYS
        assert all(v is not None and math.isfinite(v) for v in m.values()), m
        assert {"kl_reverse", "kl_forward"} <= set(m)  # the teacher is there
        assert m["kl_reverse"] > 0
        assert m["kl_forward"] > 0
        assert m["grad_norm"] > 0
    before, after = tensors(shelf.student / "model.safetensors"), tensors(result.student / "model.safetensors")
    assert set(before) == set(after)
    assert not any(torch.equal(before[k], after[k]) for k in before)
    evaluations = lines(out / "evaluations.jsonl")
    assert [e["step"] for e in evaluations] == [0, 2]
    assert result.before == {**evaluations[0]}
    assert result.after == {**evaluations[1]}
    model = AutoModelForCausalLM.from_pretrained(result.student)  # a Hugging Face folder
    assert model.config.vocab_size == 112


CUT: dict[str, dict[str, Any]] = {
    "kdrl": {"gate": "response"},
    "minillm": {},
    "dpo": {},
    "gspo": {},
    "grpo": {},
    "gkd": {"lam": 1.0},
}


@pytest.mark.parametrize("method", CUT)
def test_micro_batches_do_not_change_the_gradient(method: str, shelf: Shelf, tmp_path: Path) -> None:
    prompts = 6
    whole, m1 = first_gradients(shelf, method, tmp_path / "a", prompts=prompts, **CUT[method])
    cut, m2 = first_gradients(shelf, method, tmp_path / "b", prompts=prompts, micro_tokens=1, **CUT[method])
    assert max(float(g.abs().max()) for g in whole.values()) > 1e-6
    assert furthest(cut, whole) < 1e-4
    for key in ("loss", "grad_norm", "entropy", "kl_reverse", "kl_forward"):
        assert m1[key] == pytest.approx(m2[key], rel=1e-4, abs=1e-6), key


def test_the_first_loss_of_sft_is_the_mean_over_tokens(shelf: Shelf, tmp_path: Path) -> None:
    """An anchor outside of the engine: Hugging Face's own loss, sequence by sequence."""
    run = open_run(shelf, "sft", tmp_path / "a", micro_tokens=15)
    session, total, count = run.session, 0.0, 0
    stream = PromptStream(session.tasks["task"].train, 0)
    model = run.session.student.model
    for prompt in stream.take(4):
        ids = session.renderer.prompt_ids(prompt)
        text = session.tasks["task"].responses(prompt)[0].text
        answer = run.session.student.tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = answer[:2] if len(answer) >= 2 else [*answer, 2]
        logits = model(input_ids=torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1, :106]
        total -= float(logits.detach().log_softmax(-1).gather(1, torch.tensor(answer).unsqueeze(1)).sum())
        count += len(answer)
    metrics = run.loop.step(0)
    assert metrics["loss"] == pytest.approx(total / count, rel=1e-5)
    assert metrics["tokens_written"] == count
    assert metrics["length"] == pytest.approx(count / 4)


def test_teacher_and_reference_stay_bit_for_bit(shelf: Shelf, out: Path) -> None:
    for method in ("kdrl", "dpo", "grpo"):
        run = open_run(shelf, method, out / method)
        others = {role: p for role, p in run.session.policies.items() if role != "student"}
        assert set(others) == {"teacher"} | ({"ref"} if method in ("dpo", "grpo") else set())
        before = {role: {n: x.clone() for n, x in p.model.state_dict().items()} for role, p in others.items()}
        student = {n: x.clone() for n, x in run.session.student.model.state_dict().items()}
        for step in range(2):
            run.loop.step(step)
        for role, p in others.items():
            assert same(p.model.state_dict(), before[role]), (method, role)
            assert all(x.grad is None and not x.requires_grad for x in p.model.parameters())
        assert not same(run.session.student.model.state_dict(), student)
        if "ref" in others:  # the student before training
            assert same(others["ref"].model.state_dict(), student)


def test_lora_trains_adapters_only_and_exports_both_ways(shelf: Shelf, out: Path) -> None:
    run = open_run(shelf, "sft", out, lora_rank=2)
    before = {n: p.clone() for n, p in run.session.student.model.named_parameters()}
    for step in range(2):
        run.loop.step(step)
    moved = {n for n, p in run.session.student.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if "lora_" in n}
    model = run.session.student.model
    ids = torch.tensor([[1, 4, 20, 30, 5]])
    expected = model(input_ids=ids).logits.detach()
    run.log.describe(run.session, "")
    export(run.session, out)
    assert set(tensors(out / "student" / "model.safetensors")) == set(tensors(shelf.student / "model.safetensors"))
    assert not (out / "student" / "adapter_config.json").exists()  # Transformers would load an adapter's folder, too
    merged = AutoModelForCausalLM.from_pretrained(out / "student")
    assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-4)
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(shelf.student), out / "adapter")
    assert torch.allclose(adapted(input_ids=ids).logits, expected, atol=1e-4)
    assert not torch.allclose(AutoModelForCausalLM.from_pretrained(shelf.student)(input_ids=ids).logits, expected)


def test_lora_has_a_reference_without_adapters(shelf: Shelf, out: Path) -> None:
    run = open_run(shelf, "dpo", out, lora_rank=2)
    assert not any("lora" in n for n, _ in run.session.policies["ref"].model.named_parameters())


@pytest.mark.parametrize("own", [{}, {"lora_rank": 2}], ids=["full", "lora"])
def test_gradient_checkpointing_changes_nothing(own: dict[str, Any], shelf: Shelf, tmp_path: Path) -> None:
    plain, m1 = first_gradients(shelf, "kdrl", tmp_path / "a", **own)
    saved, m2 = first_gradients(shelf, "kdrl", tmp_path / "b", gradient_checkpointing=True, **own)
    assert plain
    assert furthest(saved, plain) < 1e-5
    assert {k: v for k, v in m1.items() if "seconds" not in k} == pytest.approx(
        {k: v for k, v in m2.items() if "seconds" not in k}, rel=1e-5
    )


def test_bf16_runs_on_the_cpu_in_the_same_process(shelf: Shelf, tmp_path: Path) -> None:
    """After runs in full precision: Accelerate's state is global, a run's precision is not."""
    full = lines(go(shelf, "kd", tmp_path / "full", diagnostics=False, eval_size=0).out / "metrics.jsonl")
    half = go(shelf, "kd", tmp_path / "half", precision="bf16", diagnostics=False, eval_size=0)
    rows = lines(half.out / "metrics.jsonl")
    assert rows[0]["loss"] == pytest.approx(full[0]["loss"], rel=0.05)
    assert rows[0]["loss"] != full[0]["loss"]
    weights = tensors(half.student / "model.safetensors")
    assert all(w.dtype == torch.float32 for w in weights.values())
    again = lines(go(shelf, "kd", tmp_path / "again", diagnostics=False, eval_size=0).out / "metrics.jsonl")
    assert again == full


def test_clip_norm_limits_the_step(shelf: Shelf, out: Path) -> None:
    run = open_run(shelf, "sft", out, clip_norm=0.5)
    run.optimizer.step = lambda *a, **k: None
    norm = run.loop.step(0)["grad_norm"]
    squares = [float(p.grad.double().square().sum()) for p in run._module().parameters() if p.grad is not None]
    assert norm > 0.5
    assert math.sqrt(sum(squares)) == pytest.approx(0.5, rel=1e-3)


def test_a_seed_decides_a_run(shelf: Shelf, tmp_path: Path) -> None:
    weights = [
        tensors(go(shelf, "kdrl", tmp_path / str(i), seed=s, eval_size=0).student / "model.safetensors")
        for i, s in enumerate((3, 3, 4))
    ]
    assert same(weights[0], weights[1])
    assert not same(weights[0], weights[2])


def test_seeds_of_more_than_31_bits_are_used_whole(shelf: Shelf, tmp_path: Path) -> None:
    """A seed cut to 31 bits would make the second run equal to the first."""
    runs = [go(shelf, "kdrl", tmp_path / str(s), seed=s, eval_size=0, steps=1) for s in (7, 2**31 + 7)]
    assert [json.loads((run.out / "run.json").read_text())["seed"] for run in runs] == [7, 2**31 + 7]
    assert not same(*(tensors(run.student / "model.safetensors") for run in runs))


def test_the_learning_rate_warms_up_and_follows_its_schedule() -> None:
    def rates(**own: Any) -> list[float]:
        config = RunConfig(method="sft", lr=1.0, **own)
        return [learning_rate(config, s) for s in range(config.steps)]

    assert rates(warmup=4, steps=6) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert rates(warmup=0, steps=4, schedule="linear") == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates(warmup=2, steps=6, schedule="cosine") == pytest.approx(
        [0.5, 1, 1, 0.5 + 0.5 * math.cos(math.pi / 4), 0.5, 0.5 - 0.5 * math.cos(math.pi / 4)]
    )
    assert rates(warmup=9, steps=3) == pytest.approx([1 / 9, 2 / 9, 3 / 9])


def test_the_feed_shows_every_prompt_once_an_epoch() -> None:
    prompts = [Prompt(str(i), ()) for i in range(10)]
    stream = PromptStream(prompts, seed=1)
    seen = [p.id for _ in range(10) for p in stream.take(3)]
    epochs = [seen[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(e) == sorted(p.id for p in prompts) for e in epochs)
    assert epochs[0] != epochs[1] != [p.id for p in prompts]
    assert [p.id for p in PromptStream(prompts, seed=2).take(10)] != epochs[0]
    moved = PromptStream(prompts, seed=1)
    moved.cursor = 13  # across the border of an epoch
    assert [p.id for p in moved.take(12)] == seen[13:25]
    shares = [PromptStream(prompts, 1, rank, 2) for rank in (0, 1)]
    together = [[p.id for p in f.take(4)] for f in shares]
    assert sorted(together[0] + together[1]) == sorted(seen[:8])
    assert shares[0].cursor == 8


def test_model_and_task_objects_can_be_trained(shelf: Shelf, out: Path) -> None:
    model, task = llama(5), _Lengths()
    model.name_or_path = str(shelf.student)
    settings = shelf.settings("grpo", student=model, teacher=None, ref_coef=0)
    del settings["task"]
    result = distill("grpo", task=task, out=out, quiet=True, **settings)
    said = lines(result.out / "samples.jsonl")
    assert said
    assert all(s["reward"] == len(s["response"]) for s in said)


def test_paths_are_accepted_as_folders(shelf: Shelf, out: Path) -> None:
    """``Result.student`` is a Path, and a Path is a natural thing to give back."""
    settings = {**shelf.settings("sft"), "student": shelf.student, "teacher": shelf.teacher, "task": shelf.verified}
    result = distill("sft", out=out, quiet=True, **settings)
    again = distill("sft", out=out.with_name("again"), quiet=True, **{**settings, "student": result.student})
    assert again.before == {**(result.after or {}), "step": 0}


class _Lengths:
    name, serves = "lengths", frozenset({"reward"})
    train = test = tuple(Prompt(str(i), ({"role": "user", "content": str(i)},)) for i in range(4))

    def verify(self, prompt: Prompt, text: str) -> Any:
        from limbeck.tasks import Verdict

        return Verdict(float(len(text)), False)

    def responses(self, prompt: Prompt) -> tuple[Any, ...]:
        return ()


def test_the_report_is_written(shelf: Shelf, out: Path, with_report: None) -> None:
    result = go(shelf, "kdrl", out)
    assert result.report == out / "report.html"
    assert "KDRL" in result.report.read_text()


def test_vocabularies_of_different_padding_share_their_entries(shelf: Shelf) -> None:
    from limbeck.engine.models.policy import share_vocabulary

    student, teacher = load_policy(str(shelf.student), "student"), load_policy(str(shelf.teacher), "teacher")
    assert student.model.config.vocab_size != teacher.model.config.vocab_size
    share_vocabulary(student, teacher)
    assert student.vocabulary == teacher.vocabulary == 106
