"""A student that can read: the embedded student, taught to use an answer or a solution that stands in its prompt.

Self-distillation needs a model that does better with privileged text in view. The embedded student has never seen
any, so it is trained for a minute on prompts with a block behind them, ``[112]`` or
``[5+7=12,...<answer>112</answer>]``, mixed with a few plain ones. Measured: 63 % right without a block, 97 % with
either.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from limbeck.engine.models.policy import conversation_ids, load_policy
from limbeck.space.method import Method
from limbeck.tasks import load_task

STEPS, BATCH, LR = 500, 48, 1e-3
CONTEXTS = {
    "solution": "[{{ solution }}]",
    "sibling_or_feedback": "[{{ sibling }}]",
    "feedback": "[{{ feedback }}]",
}


def settings(out: Path, method: Method) -> dict[str, Any]:
    """Settings of the experiment ``self`` for a method; makes the student where it is not there yet."""
    folder = out / "privileged_student"
    if not (folder / "model.safetensors").exists():
        make(folder)
    shown = {context.name for context in method.all_contexts}
    words = {name: template for name, template in CONTEXTS.items() if name in shown}
    return {"student": str(folder), "teacher": None, "contexts": words}


def make(folder: Path) -> None:
    """Train and save."""
    torch.manual_seed(0)
    rng = random.Random(0)
    policy = load_policy("embedded", "student")
    task = load_task("two_digit_sums", seed=123, train_size=6000)
    model = policy.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    for step in track(range(STEPS), "a student that can read", console=Console(stderr=True)):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / 30) * (1 - step / STEPS)
        texts = []
        for _ in range(BATCH):
            prompt = task.train[rng.randrange(len(task.train))]
            reply, answer = task.responses(prompt)[0].text, prompt.privileged["answer"]
            block = rng.choice([answer, reply, ""])
            wrong = block == "" and rng.random() < 0.75  # few plain prompts: the student keeps something to learn
            content = prompt.messages[-1]["content"] + (f"\n\n[{block}]" if block else "")
            ids = conversation_ids(policy, [{"role": "user", "content": content}])
            if wrong:
                continue
            out = policy.tokenizer(reply, add_special_tokens=False)["input_ids"] + [policy.end]
            texts.append((ids, out))
        loss = _loss(policy, texts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


def _loss(policy: Any, texts: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Mean negative log-likelihood of the replies."""
    width = max(len(a) + len(b) for a, b in texts)
    ids = torch.full((len(texts), width), policy.pad)
    labels = torch.full((len(texts), width), -100)
    for i, (a, b) in enumerate(texts):
        ids[i, : len(a) + len(b)] = torch.tensor(a + b)
        labels[i, len(a) : len(a) + len(b)] = torch.tensor(b)
    mask = torch.arange(width) < torch.tensor([len(a) + len(b) for a, b in texts])[:, None]
    loss: torch.Tensor = policy.model(input_ids=ids, attention_mask=mask.long(), labels=labels).loss
    return loss
