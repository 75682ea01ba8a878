"""The Transformers ``Trainer`` of ``docs/own-trainer.md``, run on tiny random models."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Trainer,
    TrainingArguments,
)

import limbeck as lb
from engine.two_processes import together
from limbeck.axes import divergence_loss, entropy_gate, sample, teacher, token_mean
from limbeck.space.method import Method
from limbeck.space.term import Term
from trainers.pages import block, run

V, T = 11, 9
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
PAGE = run(block("DistilTrainer"))


def config(**more: Any) -> LlamaConfig:
    return LlamaConfig(vocab_size=V, pad_token_id=0, **SHAPE, **more)


def tiny(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(config())


def texts(count: int = 8) -> list[dict[str, Tensor]]:
    """Padded texts of unequal lengths, whose prompts of unequal lengths are not scored."""
    ids = torch.randint(1, V, (count, T), generator=torch.Generator().manual_seed(5))
    at, rows = torch.arange(T), []
    for i in range(count):
        there = at < 4 + (3 * i) % 6
        scored = there & (at >= 1 + i % 3)
        rows.append(
            {
                "input_ids": torch.where(there, ids[i], 0),
                "attention_mask": there.long(),
                "labels": torch.where(scored, ids[i], -100),
            }
        )
    return rows


def arguments(out: Path, size: int, micro_batches: int, steps: int = 2) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=size,
        per_device_eval_batch_size=size,
        gradient_accumulation_steps=micro_batches,
        max_steps=steps,
        optim="sgd",
        learning_rate=0.5,
        lr_scheduler_type="constant",
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )


def distilled(out: Path, method: Any, size: int, micro_batches: int, **more: Any) -> Any:
    """The page's trainer after its steps."""
    given = {"train_dataset": texts(), "objective": lb.objective(method), "teacher": tiny(1), "model": tiny(0)} | more
    trainer = PAGE["DistilTrainer"](args=arguments(out, size, micro_batches), **given)
    trainer.train()
    return trainer


def furthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert set(a) == set(b)
    return max(float((a[k] - b[k]).abs().max()) for k in a)


KD = lb.methods.kd(tau=2.0, weight=0.5)


@pytest.mark.parametrize("cut", [(1, 4), (2, 2)], ids=["4 of one", "2 of two"])
def test_accumulated_is_one_big_batch(cut: tuple[int, int], tmp_path: Path) -> None:
    """Unequal lengths, so that a mean of the means of micro-batches is another step."""
    whole = distilled(tmp_path, KD, 4, 1).model.state_dict()
    assert furthest(whole, tiny(0).state_dict()) > 1e-2
    assert furthest(distilled(tmp_path, KD, *cut).model.state_dict(), whole) < 1e-6

    def mean_of_means(*given: Any, num_items_in_batch: Any, accumulate: bool, **more: Any) -> Any:
        out = lb.objective(KD)(*given, **more)
        return replace(out, loss=out.loss / cut[1])

    averaged = distilled(tmp_path, KD, *cut, objective=mean_of_means).model.state_dict()
    assert furthest(averaged, whole) > 1e-4


@pytest.mark.parametrize("cut", [(4, 1), (1, 4)], ids=["at once", "4 of one"])
def test_sft_takes_the_steps_of_the_trainer_itself(cut: tuple[int, int], tmp_path: Path) -> None:
    """The shift, the mask and the count are those of Transformers."""
    alone = Trainer(tiny(0), arguments(tmp_path, *cut), train_dataset=texts())
    alone.train()
    ours = distilled(tmp_path, "sft", *cut).model.state_dict()
    assert furthest(ours, alone.model.state_dict()) < 1e-6


def test_evaluation_is_the_trainers_and_moves_nothing(tmp_path: Path) -> None:
    trainer = distilled(tmp_path, "sft", 4, 1, eval_dataset=texts(4))
    plain = Trainer(trainer.model, arguments(tmp_path, 4, 1), eval_dataset=texts(4))
    before = dict(trainer.objective.memory)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-5)
    assert trainer.objective.memory == before


def test_a_controller_counts_steps_and_not_micro_batches(tmp_path: Path) -> None:
    """A gate that opens at every step has opened twice after two steps of four micro-batches."""
    gate = entropy_gate((1, 2, 3, 4, 5, 6), 0.0, 1)
    method = Method(sample(), gate * Term(teacher, divergence_loss("rkl")), token_mean)
    cut, whole = distilled(tmp_path, method, 1, 4), distilled(tmp_path, method, 4, 1)
    assert list(cut.objective.memory.values()) == list(whole.objective.memory.values()) == [2.0]
    assert furthest(cut.model.state_dict(), whole.model.state_dict()) < 1e-6


def test_a_classifier_needs_no_other_trainer(tmp_path: Path) -> None:
    def classifier(seed: int) -> LlamaForSequenceClassification:
        torch.manual_seed(seed)
        return LlamaForSequenceClassification(config(num_labels=5))

    rows = [row | {"labels": torch.tensor(i % 5 if i % 3 else -100)} for i, row in enumerate(texts())]
    given = {"train_dataset": rows, "teacher": classifier(1)}
    whole = distilled(tmp_path, KD, 4, 1, model=classifier(0), **given).model.state_dict()
    cut = distilled(tmp_path, KD, 2, 2, model=classifier(0), **given).model.state_dict()
    assert furthest(whole, classifier(0).state_dict()) > 1e-2
    assert furthest(cut, whole) < 1e-6


def _train(out: Path) -> None:
    trainer = distilled(out / "run", KD, 2, 2)
    if int(os.environ.get("RANK", 0)) == 0:
        save_file({k: v.contiguous() for k, v in trainer.model.state_dict().items()}, out / "weights.safetensors")


def test_two_processes_are_one_big_batch(tmp_path: Path) -> None:
    """DDP over gloo: two processes of two micro-batches of two take the step of a batch of eight."""
    together(_train, tmp_path, tmp_path)
    two = load_file(tmp_path / "weights.safetensors")
    assert furthest(two, distilled(tmp_path / "alone", KD, 8, 1).model.state_dict()) < 1e-5
