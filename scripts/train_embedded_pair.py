"""Train the teacher and the student that Limbeck ships in ``src/limbeck/embedded``.

Both are character-level Llama models that learn to write out two-digit sums and differences (the task
``two_digit_sums``) from the training split's demonstrations. The teacher is trained to the end; the student is an
equally shaped but smaller model that is stopped as soon as it solves a quarter of a validation set, so that it
has capacity left for distillation. Nothing of the task's test split is seen in training or in stopping.

    python scripts/train_embedded_pair.py --out src/limbeck/embedded

Takes minutes on two cores. On one machine and one version of PyTorch the same seed gives the same weights.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from limbeck.tasks.answers import extract_answer
from limbeck.tasks.base import Task
from limbeck.tasks.presets import two_digit_sums
from limbeck.types import Prompt

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>")
# One token each: the fixed part of every question and the tags of the answer, so that sequences stay short.
PHRASES = ("State the final answer to the following arithmetic problem: ", "<answer>", "</answer>")
CHARACTERS = ("\n", *(chr(c) for c in range(32, 127)))
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MAX_NEW_TOKENS = 32
N_VALIDATION = 256


@dataclass(frozen=True)
class Recipe:
    """The architecture and training settings of one of the two models.

    Attributes:
        width, inner, layers, heads: of the Llama model.
        steps: optimizer steps of the schedule.
        learning_rate: peak, reached after ``warmup`` steps; it falls to zero by a cosine over ``steps``.
        stop_at: validation accuracy (share of right greedy answers) at which training stops; None for never.
        check_every: steps between two looks at the validation accuracy.
    """

    width: int
    inner: int
    layers: int
    heads: int
    steps: int
    learning_rate: float
    batch: int
    warmup: int = 50
    stop_at: float | None = None
    check_every: int = 500


RECIPES = {
    "teacher": Recipe(
        width=112, inner=224, layers=2, heads=4, steps=1000, learning_rate=3e-3, batch=64, check_every=200
    ),
    "student": Recipe(
        width=80, inner=160, layers=2, heads=4, steps=2000, learning_rate=2e-3, batch=64, stop_at=0.22, check_every=10
    ),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each printable ASCII character and each phrase, and ``<unk>`` for the rest."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *PHRASES, *CHARACTERS))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    core.add_tokens([AddedToken(t, special=False, normalized=False) for t in PHRASES])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=list(SPECIAL[4:]),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised Llama of the recipe's shape."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.width,
            intermediate_size=recipe.inner,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=256,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=False,
            initializer_range=0.05,
        )
    )
    model.generation_config.max_new_tokens = MAX_NEW_TOKENS
    return model


def encode(task: Task, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, ...]:
    """Right-padded ids ``[B, T]`` of prompt and demonstration, and labels ``[B, T]`` (-100 outside the response)."""
    ids, labels = [], []
    for prompt in prompts:
        question = render([prompt], tokenizer)[0]
        head = tokenizer.encode(question)
        tail = [*tokenizer.encode(task.responses(prompt)[0].text), tokenizer.eos_token_id]
        ids.append(torch.tensor(head + tail))
        labels.append(torch.tensor([-100] * len(head) + tail))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(ids, batch_first=True, padding_value=tokenizer.pad_token_id or 0), pad(
        labels, batch_first=True, padding_value=-100
    )


def render(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The prompt rendered with the chat template, with an open assistant turn."""
    return [
        str(tokenizer.apply_chat_template(list(p.messages), tokenize=False, add_generation_prompt=True))
        for p in prompts
    ]


@torch.no_grad()
def write(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Prompt], sampled: bool = False
) -> list[str]:
    """The model's responses, greedy or sampled at temperature 1."""
    model.eval()
    texts: list[str] = []
    for i in range(0, len(prompts), 256):
        part = prompts[i : i + 256]
        batch = tokenizer(render(part, tokenizer), return_tensors="pt", padding=True, return_token_type_ids=False)
        out = model.generate(
            **batch, max_new_tokens=MAX_NEW_TOKENS, **({"do_sample": True, "top_k": 0} if sampled else {})
        )
        texts += tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def accuracy(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    prompts: Sequence[Prompt],
    sampled: bool = False,
) -> float:
    """Share of correct answers by the task's verifier, greedy or sampled at temperature 1."""
    texts = write(model, tokenizer, prompts, sampled)
    return sum(task.verify(p, text).correct for p, text in zip(prompts, texts, strict=True)) / len(prompts)


def accuracy_on_unseen(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, task: Task) -> tuple[float, int]:
    """Greedy accuracy on all questions that are not in the training split, and their number.

    The test split is a small sample of these; its few hard questions (differences below ten) make it a lucky or an
    unlucky one.
    """
    seen = {p.messages[0]["content"] for p in task.train}
    prompts = []
    for left, sign, right in itertools.product(range(10, 100), "+-", range(10, 100)):
        question = f"{PHRASES[0]}{left} {sign} {right} ="
        answer = str(left + right if sign == "+" else left - right)
        if question not in seen:
            prompts.append(Prompt(question, ({"role": "user", "content": question},), {"answer": answer}))
    texts = write(model, tokenizer, prompts)
    right_ones = sum(extract_answer(text) == p.privileged["answer"] for p, text in zip(prompts, texts, strict=True))
    return right_ones / len(prompts), len(prompts)


def train(name: str, recipe: Recipe, task: Task, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Train one model on the task's demonstrations; the last training prompts are held out as validation set."""
    torch.manual_seed(seed)
    prompts = list(task.train)
    validation = prompts[-N_VALIDATION:]
    unseen = {p.messages[0]["content"] for p in validation}
    ids, labels = encode(task, [p for p in prompts if p.messages[0]["content"] not in unseen], tokenizer)
    model = make_model(recipe, tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, foreach=True
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task(name, total=recipe.steps, note="")
        for step in range(1, recipe.steps + 1):
            scale = min(1.0, step / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * scale
            loss = train_step(model, optimizer, ids, labels, recipe.batch)
            progress.update(bar, advance=1)
            if step % recipe.check_every == 0:
                share = accuracy(model, tokenizer, task, validation)
                progress.update(bar, note=f"loss {loss:.3f}, validation accuracy {share:.2f}")
                if not progress.console.is_terminal:
                    print(f"{name} step {step}: loss {loss:.4f}, validation accuracy {share:.3f}", flush=True)
                if recipe.stop_at is not None and share >= recipe.stop_at:
                    break
    return model.eval()


def train_step(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, ids: torch.Tensor, labels: torch.Tensor, batch: int
) -> float:
    """One step of cross-entropy on a random batch; returns the loss in nats per token."""
    model.train()
    rows = torch.randint(len(ids), (batch,))
    logits = model(input_ids=ids[rows, :-1]).logits
    loss = functional.cross_entropy(logits.flatten(0, 1), labels[rows, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def model_card(name: str, recipe: Recipe, model: LlamaForCausalLM, shares: dict[str, float], seed: int) -> str:
    """README.md of a model folder."""
    size = sum(p.numel() for p in model.parameters())
    stopped = " Stopped early on purpose: it is there to be improved." if recipe.stop_at else ""
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# Limbeck's embedded {name}
A character-level Llama with {size:,} parameters ({recipe.layers} layers, width {recipe.width}, vocabulary
{model.config.vocab_size}) for trying distillation in seconds, without a download.

- **Task**: `two_digit_sums`, that is reasoning-gym's `chain_sum` with two terms of two digits; the answer is worked out
  column by column and tagged: `5+7=12,4+6+1=11<answer>112</answer>`. It can do nothing else.
- **Accuracy** on the task's {shares["problems"]:.0f} held-out problems: {shares["greedy"]:.3f} greedy,
  {shares["sampled"]:.3f} sampled at temperature 1; {shares["unseen"]:.3f} greedy on all
  {shares["unseen_problems"]:.0f} problems that are not in the training split.
- **Training**: cross-entropy on the training split's demonstrations, {shares["seconds"]:.0f} s on a CPU, seed {seed},
  by `scripts/train_embedded_pair.py`.{stopped}
- **Data**: generated by reasoning-gym (Apache-2.0); no text written by people.
"""


def save(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, card: str) -> None:
    """Write a model folder in Hugging Face format to a temporary folder, and rename it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    (scratch / "README.md").write_text(card, encoding="utf-8")
    # Temporary folders are private; these files go into a package, so they must be readable.
    scratch.chmod(0o755)
    for file in scratch.iterdir():
        file.chmod(0o644)
    if folder.exists():
        old = scratch.with_name(scratch.name + "-old")
        os.rename(folder, old)
        os.rename(scratch, folder)
        shutil.rmtree(old)
    else:
        os.rename(scratch, folder)


def main() -> None:
    """Train, measure and save the models."""
    parser = argparse.ArgumentParser(description="Train Limbeck's embedded teacher and student.")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets teacher/ and student/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; PyTorch's choice unless given")
    parser.add_argument("--only", choices=sorted(RECIPES), help="train one of the two")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    task, tokenizer = two_digit_sums(), make_tokenizer()
    summary = {}
    for name in [arguments.only] if arguments.only else RECIPES:
        began = time.monotonic()
        model = train(name, RECIPES[name], task, tokenizer, arguments.seed)
        shares = {"seconds": time.monotonic() - began, "problems": float(len(task.test))}
        shares["greedy"] = accuracy(model, tokenizer, task, task.test)
        shares["sampled"] = accuracy(model, tokenizer, task, task.test, sampled=True)
        shares["unseen"], shares["unseen_problems"] = accuracy_on_unseen(model, tokenizer, task)
        save(arguments.out / name, model, tokenizer, model_card(name, RECIPES[name], model, shares, arguments.seed))
        summary[name] = {"parameters": sum(p.numel() for p in model.parameters()), **shares}
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
