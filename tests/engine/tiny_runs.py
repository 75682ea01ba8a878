"""What the engine's tests share: a tiny student and teacher with the embedded tokenizer, data, and short runs."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import limbeck.methods
from limbeck import embedded
from limbeck.axes.source import Sample
from limbeck.engine import Result, configure, distill
from limbeck.engine.build import build_method, prepare_tasks
from limbeck.engine.loop import Loop
from limbeck.engine.models.generate import SamplingPolicy, generate
from limbeck.engine.models.policy import Policy, conversation_ids, load_policy
from limbeck.engine.rollout.trajectory import Segment, Trajectory, assemble, segment_of, single
from limbeck.engine.run import _Run
from limbeck.tasks import Observation, Response, Verdict
from limbeck.types import DATA, STUDENT, Prompt, Rollout

VOCABULARY = 106  # entries of the embedded tokenizer
METHODS = sorted(limbeck.methods.REGISTRY)
WORDS = ("ab", "ba", "cab", "12", "7+8", "abc", "b", "4-1", "ca", "3*3", "bb", "0")


@dataclass(frozen=True)
class Shelf:
    """Folders and files of the session."""

    student: Path
    teacher: Path
    verified: Path
    pairs: Path
    pretrain: Path

    def settings(self, method: str, **own: Any) -> dict[str, Any]:
        """Settings of a short run of a method, on the data it needs."""
        values: dict[str, Any] = {
            "student": str(self.student),
            "teacher": str(self.teacher),
            "task": str(self.pairs if method == "dpo" else self.verified),
            "steps": 2,
            "prompts": 4,
            "max_tokens": 2,
            "lr": 0.01,
            "warmup": 0,
            "eval_size": 2,
            "save_every": 0,
            "cpu": True,
        }
        if "group" in limbeck.methods.REGISTRY[method].arguments:
            values["group"] = 6
        value = limbeck.methods.REGISTRY[method]()
        walks = [part for source in value.sources.values() for part in source.walk() if isinstance(part, Sample)]
        if any(part.episodic for part in walks):  # answers that a random model gives often enough
            values["task"] = Parity(turns=1 if any(part.retry for part in walks) else 3)
        if method == "mad_opd":
            values["others"] = {"first": str(self.teacher), "second": str(self.teacher)}
        if method == "minillm":
            values["datasets"] = {"pretrain": str(self.pretrain)}
        return {**values, **own}


class Parity:
    """Texts whose code points add up to an even number are right; in one turn, or in several that each count."""

    name = "parity"

    def __init__(self, turns: int = 1) -> None:
        self.turns = turns
        self.serves = frozenset({"reward", "feedback"} | ({"episodes"} if turns > 1 else set()))
        prompts = [
            Prompt(f"p{i}", ({"role": "user", "content": f"say {w}"},), {"answer": "ab", "solution": "a b"})
            for i, w in enumerate(WORDS)
        ]
        self.train, self.test = prompts[:8], prompts[8:]

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        right = sum(map(ord, text)) % 2 == 0
        return Verdict(float(right), right, None if right else "odd")

    def responses(self, prompt: Prompt) -> tuple[Response, ...]:
        return ()

    def open(self, prompt: Prompt) -> Any:
        return _Rounds(self, prompt)


class _Rounds:
    def __init__(self, task: Parity, prompt: Prompt) -> None:
        self.task, self.prompt, self.left = task, prompt, task.turns

    def step(self, text: str) -> Observation:
        verdict = self.task.verify(self.prompt, text)
        self.left -= 1
        return Observation("go on", self.left == 0, verdict.reward, verdict.correct, verdict.feedback)

    def close(self) -> None:
        pass


def llama(seed: int, layers: int = 1, vocabulary: int = 112, **own: Any) -> LlamaForCausalLM:
    """A random Llama whose laws are far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        initializer_range=1.0,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **own,
    )
    return LlamaForCausalLM(config).eval()


def put(model: Any, folder: Path) -> Path:
    """A model folder with the embedded tokenizer."""
    model.save_pretrained(folder)
    source = embedded.path("student")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(source / name, folder / name)
    return folder


def make_shelf(folder: Path) -> Shelf:
    # Matrices padded to different sizes (112 and 120) are no difference between vocabularies.
    student = put(llama(1, tie_word_embeddings=True), folder / "student")
    teacher = put(llama(2, layers=2, vocabulary=120), folder / "teacher")
    policy = load_policy(str(student), "student")
    policy.scorer.vocabulary = VOCABULARY
    lines, both = [], []
    for i, word in enumerate(WORDS):
        lines.append({"prompt": f"say {word}", "answer": likely(policy, f"say {word}", i), "response": word})
        both.append({"prompt": f"say {word}", "chosen": word, "rejected": word[::-1] + "x"})
    pretrain = [{"prompt": "go on", "response": f"{a}{b}"} for a in WORDS[:4] for b in WORDS[:3]]
    return Shelf(
        student,
        teacher,
        jsonl(folder / "verified.jsonl", lines),
        jsonl(folder / "pairs.jsonl", both),
        jsonl(folder / "pretrain.jsonl", [{**p, "prompt": f"go on {i}"} for i, p in enumerate(pretrain)]),
    )


def likely(policy: Policy, text: str, seed: int) -> str:
    """What the policy says most often: an answer that is sometimes given, so that groups have an advantage."""
    torch.manual_seed(seed)
    ids = conversation_ids(policy, [{"role": "user", "content": text}])
    said = [w.ids for w in generate(SamplingPolicy(((policy, 1.0),)), [ids] * 48, 2, 48)]
    texts = [str(policy.tokenizer.decode(i, skip_special_tokens=True)).strip() for i in said]
    return Counter(t for t in texts if t).most_common(1)[0][0]


def jsonl(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def go(shelf: Shelf, method: str, out: Path, **own: Any) -> Result:
    """A short run."""
    return distill(method, out=out, quiet=True, **shelf.settings(method, **own))


def open_run(shelf: Shelf, method: str, out: Path, **own: Any) -> _Run:
    """The same run, opened and not started."""
    settings = shelf.settings(method, **own)
    given = settings["task"] if isinstance(settings["task"], Parity) else None
    config = configure(method, {**settings, "task": given.name} if given else settings)
    value = build_method(config)
    return _Run(config, value, prepare_tasks(config, value, given), {}, out, Console(quiet=True))


def first_gradients(shelf: Shelf, method: str, out: Path, **own: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Gradients and metrics of step 0, before the clip; the optimiser does not move."""
    run = open_run(shelf, method, out, clip_norm=1e9, **own)
    run.loop.method = run.session.method if run.session.method.updates == 1 else run.loop.method
    run.loop = Loop(run.session, run.optimizer)
    run.optimizer.step = lambda *a, **k: None
    metrics = run.loop.step(0)
    named = run._module().named_parameters()
    return {n: p.grad.detach().clone() for n, p in named if p.grad is not None}, metrics


def tensors(file: Path) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = load_file(file)
    return loaded


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Bit for bit."""
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


def furthest(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Largest difference, in units of the largest entry of the tensor."""
    assert set(a) == set(b), set(a) ^ set(b)
    return max(float((a[k] - b[k]).abs().max() / b[k].abs().max().clamp(min=1e-30)) for k in a)


def lines(file: Path) -> list[dict[str, Any]]:
    """JSON lines without what a clock decides."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


class Killed(BaseException):
    """What a test throws where a run would be killed."""


def dies(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], None]:
    """Make runs die before step ``at``; returns what heals them."""
    alive = Loop.step

    def step(self: Loop, number: int) -> dict[str, Any]:
        if number == at:
            raise Killed
        return alive(self, number)

    monkeypatch.setattr(Loop, "step", step)
    return lambda: monkeypatch.setattr(Loop, "step", alive)


def record_of(policy: Policy, texts: list[tuple[str, str]], group: int = 1) -> Rollout:
    """A record from (prompt, response) texts as a data source writes it."""
    rows = []
    for i, (question, answer) in enumerate(texts):
        messages = [{"role": "user", "content": question}]
        ids = policy.tokenizer(answer, add_special_tokens=False)["input_ids"]
        prompt = Prompt(str(i), tuple(messages))
        rows.append(single(prompt, conversation_ids(policy, messages), [*ids, policy.eos[0]], None, DATA))
    return assemble([rows[i : i + group] for i in range(0, len(rows), group)], "main").check()


def rows_of(record: Rollout) -> list[list[Trajectory]]:
    """The sequences of a record as trajectories, group by group: its turns, and the tokens between them."""
    rows = []
    for b, turns in enumerate(record.turns_B):
        at, end = int(record.start_B1[b] + record.root_B[b]), int(record.start_B1[b + 1])
        segments: list[Segment] = []
        for u in turns:
            places = record.pos_N[record.tokens_U[u]].tolist()
            if places and places[0] > at:
                said = record.said_U[u - 1] if u > turns[0] else ""
                segments.append(Segment(record.ids_L[at : places[0]].tolist(), None, STUDENT, scored=False, said=said))
            segments.append(segment_of(record, u))
            at = places[-1] + 1 if places else at
        assert at == end
        columns = {name: float(x[b]) for name, x in record.columns_B.items()}
        rest = record.truncated_B[b], record.correct_B[b], record.feedback_B[b], record.label_B[b]
        truncated, correct, feedback, label = bool(rest[0]), bool(rest[1]), rest[2], float(rest[3])
        row = record.prompts_B[b], record.prompt_ids(b), tuple(segments), truncated, correct, feedback, label, columns
        rows.append(Trajectory(*row, record.drafts_B[b]))
    return [[rows[b] for b in members] for members in record.sequences_G]


@torch.no_grad()
def naive_logits(policy: Policy, ids: list[int]) -> Tensor:
    """Logits of one text on the shared vocabulary, by a plain forward: no cache, no padding, no batch."""
    logits: Tensor = policy.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
    return logits[:, : policy.vocabulary]


def naive_logp(policy: Policy, prompt: list[int], response: list[int], tau: float = 1.0) -> Tensor:
    """Log-prob of each token of a response."""
    rows = naive_logits(policy, prompt + response)[len(prompt) - 1 : -1] / tau
    return rows.log_softmax(-1).gather(1, torch.tensor(response).unsqueeze(1)).squeeze(1)


def tokenizer_of(shelf: Shelf) -> Any:
    return AutoTokenizer.from_pretrained(shelf.student)
