"""The subclass of TRL's ``GRPOTrainer`` of ``docs/own-trainer.md``, run against TRL's own on tiny random models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainers.pages import block, run

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
pytest.importorskip("trl", "1.16.0")

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

import limbeck as lb
from limbeck.space.method import Method
from limbeck.space.term import Sum

WORDS = ["<pad>", "<eos>", *"abcdefgh"]
TEXT = block("DistilledGRPO")
PAGE = run(TEXT)
METHOD: Method = PAGE["method"]
ALONE = Method(METHOD.source, Sum(METHOD.parts[:1]), METHOD.reduction)
"""Without the teacher: TRL's ``dapo``."""


def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


def tiny(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), **shape, **ids))


def reward(completions: list[str], **columns: Any) -> list[float]:
    del columns
    return [text.count("b") + 0.1 * len(text.split()) for text in completions]


def trained(cls: Any, out: Path, settings: dict[str, Any], **more: Any) -> dict[str, Tensor]:
    """The weights after two steps."""
    args = GRPOConfig(
        output_dir=str(out),
        max_completion_length=6,
        num_generations=4,
        loss_type="dapo",
        epsilon=0.2,
        epsilon_high=0.28,
        beta=0.0,
        max_steps=2,
        optim="sgd",
        learning_rate=0.5,
        lr_scheduler_type="constant",
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        seed=1,
        **settings,
    )
    data = Dataset.from_list([{"prompt": text} for text in ["a b", "c d e", "f", "g h"] * 2])
    trainer = cls(
        model=tiny(0), reward_funcs=reward, args=args, train_dataset=data, processing_class=tokenizer(), **more
    )
    trainer.train()
    return {name: x.clone() for name, x in trainer.model.state_dict().items()}


def furthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[k] - b[k]).abs().max()) for k in a)


SETTINGS: dict[str, dict[str, Any]] = {
    "at once": {"per_device_train_batch_size": 8},
    "two micro-batches": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "off-policy": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_without_a_teacher_it_takes_the_steps_of_trl(name: str, tmp_path: Path) -> None:
    """The shift, the mask, the old log-probs and the denominator are TRL's."""
    theirs = trained(GRPOTrainer, tmp_path, SETTINGS[name])
    objective = lb.objective(ALONE)
    ours = trained(PAGE["DistilledGRPO"], tmp_path, SETTINGS[name], objective=objective, teacher=tiny(1))
    assert furthest(theirs, tiny(0).state_dict()) > 1e-2
    assert furthest(ours, theirs) < 1e-6


def test_a_temperature_divides_the_logits(tmp_path: Path) -> None:
    """As the page says."""
    settings = SETTINGS["at once"] | {"temperature": 0.7}
    theirs = trained(GRPOTrainer, tmp_path, settings)
    assert "model(**text).logits / self.temperature" in (Path(__file__).parents[2] / "docs/own-trainer.md").read_text()
    divided = run(
        TEXT.replace("            model(**text).logits,", "            model(**text).logits / self.temperature,")
    )
    given = {"objective": lb.objective(ALONE), "teacher": tiny(1)}
    assert furthest(trained(divided["DistilledGRPO"], tmp_path, settings, **given), theirs) < 1e-6
    assert furthest(trained(PAGE["DistilledGRPO"], tmp_path, settings, **given), theirs) > 1e-4


def test_the_teacher_counts(tmp_path: Path) -> None:
    """With the page's method the weights are others, and more so the larger its coefficient."""
    far = []
    for coefficient in (0.0, 0.01, 1.0):
        policy, distillation = (term for _, term in METHOD.parts)
        method = Method(METHOD.source, policy + coefficient * distillation, METHOD.reduction)
        given = {"objective": lb.objective(method), "teacher": tiny(1)}
        far.append(trained(PAGE["DistilledGRPO"], tmp_path, SETTINGS["at once"], **given))
    near, wide = (furthest(x, far[0]) for x in far[1:])
    assert 1e-6 < near < wide
