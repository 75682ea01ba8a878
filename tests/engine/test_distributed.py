"""Two processes are one: DDP through Accelerate, and FSDP2 around the same module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from tiny_runs import (
    VOCABULARY,
    Killed,
    Shelf,
    first_gradients,
    furthest,
    go,
    jsonl,
    lines,
    open_run,
    record_of,
    same,
    tensors,
)
from torch import Tensor
from two_processes import WORLD, together

from limbeck.engine import resume
from limbeck.engine.loop import Loop
from limbeck.engine.models.policy import Scorer, load_policy
from limbeck.engine.scoring.forward import run_model, score_record
from limbeck.kernels.tiles import StatisticRequest, fused, statistics
from limbeck.math.divergence import fkl
from limbeck.math.statistic import Distance, LogProb

# Texts of the data do not depend on the process that reads them. DPO looks at groups, kd at a teacher.
METHODS = ("kd", "dpo")


def _gradients(shelf: Shelf, out: Path) -> None:
    import os

    for method in METHODS:
        gradients, metrics = first_gradients(shelf, method, out / method, prompts=6, micro_tokens=25)
        if int(os.environ.get("RANK", 0)) == 0:
            save_file(gradients, out / f"{method}.safetensors")
            (out / f"{method}.json").write_text(json.dumps(metrics))


def test_gradients_of_two_processes_are_those_of_one(shelf: Shelf, tmp_path: Path) -> None:
    """Unequal lengths, several micro-batches, global denominators."""
    together(_gradients, tmp_path, shelf, tmp_path)
    (tmp_path / "alone").mkdir()
    _gradients(shelf, tmp_path / "alone")
    for method in METHODS:
        two, one = (load_file(folder / f"{method}.safetensors") for folder in (tmp_path, tmp_path / "alone"))
        assert furthest(two, one) < 1e-5, method
        m2, m1 = (json.loads((folder / f"{method}.json").read_text()) for folder in (tmp_path, tmp_path / "alone"))
        assert set(m2) == set(m1)
        for key in set(m1) - {k for k in m1 if k.startswith("seconds")}:
            assert m2[key] == pytest.approx(m1[key], rel=1e-5), (method, key)


OWN: dict[str, Any] = {"prompts": 6, "steps": 4, "save_every": 1, "eval_every": 2}


def _runs(shelf: Shelf, out: Path) -> None:
    go(shelf, "kd", out / "kd", **OWN)
    go(shelf, "kdrl", out / "straight", **OWN)
    alive = Loop.step

    def step(self: Loop, number: int) -> dict[str, Any]:
        if number == 2:
            raise Killed
        return alive(self, number)

    Loop.step = step  # type: ignore[method-assign]
    with pytest.raises(Killed):
        go(shelf, "kdrl", out / "stopped", **OWN)
    Loop.step = alive  # type: ignore[method-assign]
    resume(out / "stopped")


def test_runs_of_two_processes_equal_those_of_one(shelf: Shelf, tmp_path: Path) -> None:
    together(_runs, tmp_path, shelf, tmp_path)
    alone = go(shelf, "kd", tmp_path / "alone", **OWN).out
    two, one = (tensors(out / "student" / "model.safetensors") for out in (tmp_path / "kd", alone))
    assert furthest(two, one) < 1e-4  # four steps of Adam, which divides by small numbers
    for a, b in zip(lines(tmp_path / "kd" / "metrics.jsonl"), lines(alone / "metrics.jsonl"), strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    assert [e["step"] for e in lines(tmp_path / "kd" / "evaluations.jsonl")] == [0, 2, 4]
    # Resuming is exact here, too, also where every process samples its own text.
    two, one = (tensors(tmp_path / n / "student" / "model.safetensors") for n in ("straight", "stopped"))
    assert same(two, one)
    assert lines(tmp_path / "straight" / "metrics.jsonl") == lines(tmp_path / "stopped" / "metrics.jsonl")


def _texts(shelf: Shelf, out: Path) -> None:
    import os

    run = open_run(shelf, "gkd", out / "run", prompts=6, lam=0.5)
    said: list[Any] = []
    wrote = run.loop.update

    def update(record: Any, scores: Any, step: int) -> Any:
        said.append((record.author_N.tolist(), record.ids_L.tolist()))
        return wrote(record, scores, step)

    run.loop.update = update  # type: ignore[method-assign]
    for step in range(6):
        run.loop.step(step)
    (out / f"said-{os.environ['RANK']}.json").write_text(json.dumps(said))


def test_processes_write_their_own_text_under_one_coin(shelf: Shelf, tmp_path: Path) -> None:
    """GKD's coin is for the batch, which all processes share."""
    together(_texts, tmp_path, shelf, tmp_path)
    a, b = (json.loads((tmp_path / f"said-{rank}.json").read_text()) for rank in range(WORLD))
    coins = [[set(authors) for authors, _ in said] for said in (a, b)]
    assert coins[0] == coins[1]
    assert {0} in coins[0]
    assert {-1} in coins[0]
    assert all(x[1] != y[1] for x, y in zip(a, b, strict=True))


# ---------------------------------------------------------------- unequal numbers of micro-batches

# At 60 tokens a micro-batch the process with the long text has two or three, and the other has one.
UNEQUAL = [("a", "b"), ("c", "d"), ("e" * 50, "f" * 8), ("g", "h"), ("i", "j"), ("k", "l")]


def _shard(module: Any) -> Any:
    """FSDP2 around every layer and the whole; each forward and backward exchanges parameters and gradients."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in module.model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(module, mesh=mesh)


def _unequal(shelf: Shelf, out: Path, sharded: bool) -> None:
    import os

    rank = os.environ.get("RANK", "alone")
    if sharded:
        Accelerator.prepare = lambda self, module, optimizer: (_shard(module), optimizer)  # type: ignore[assignment]
        Accelerator.clip_grad_norm_ = lambda *_: torch.ones(())  # type: ignore[method-assign]
    kept, keep_step = [], Loop._keep_step
    Loop._keep_step = lambda *a: (kept.append(1), keep_step(*a))[1]  # type: ignore[method-assign]
    task = jsonl(out / f"{rank}.jsonl", [{"prompt": p, "response": r} for p, r in UNEQUAL])
    own = {"prompts": 6, "micro_tokens": 60, "max_tokens": 16, "eval_size": 0, "task_options": {"test_fraction": 0}}
    gradients, _ = first_gradients(shelf, "kd", out / "run", task=str(task), **own)
    whole = {n: (g.full_tensor() if hasattr(g, "full_tensor") else g).contiguous() for n, g in gradients.items()}
    save_file(whole, out / f"{rank}.safetensors")
    (out / f"{rank}.json").write_text(json.dumps(len(kept)))


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_processes_with_fewer_micro_batches_keep_step(sharded: bool, shelf: Shelf, tmp_path: Path) -> None:
    together(_unequal, tmp_path, shelf, tmp_path, sharded)
    kept = sorted(json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(WORLD))
    assert kept[0] == 0 < kept[1]
    alone, metrics = first_gradients(
        shelf,
        "kd",
        tmp_path / "alone",
        task=str(tmp_path / "0.jsonl"),
        prompts=6,
        max_tokens=16,
        eval_size=0,
        task_options={"test_fraction": 0},
    )
    assert metrics["length"] > 1
    for rank in range(WORLD):
        assert furthest(tensors(tmp_path / f"{rank}.safetensors"), alone) < 1e-4


@pytest.mark.parametrize("method", ["minillm", "kd"])
def test_additional_empty_micro_batches_change_nothing(
    method: str, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two more forwards a stage, the reading of ``old`` included, and the same numbers."""
    passes: list[int] = []
    forward = Scorer.forward

    def counted(self: Scorer, *arguments: Any) -> Any:
        passes[-1] += any(p.requires_grad for p in self.parameters())
        return forward(self, *arguments)

    monkeypatch.setattr(Scorer, "forward", counted)
    found = []
    for more in (0, 2):
        monkeypatch.setattr(Loop, "_most", lambda self, n, more=more: n + more)
        passes.append(0)
        own = {"updates": 2} if method == "minillm" else {}
        found.append(first_gradients(shelf, method, tmp_path / str(more), eval_size=0, **own))
    (one, told), (two, again) = found
    assert same(one, two)
    assert {k: v for k, v in told.items() if "seconds" not in k} == {
        k: v for k, v in again.items() if "seconds" not in k
    }
    assert passes[1] - passes[0] == {"minillm": 6, "kd": 2}[method]


# ---------------------------------------------------------------- FSDP2

TEXTS = [("a", "12+3"), ("longer prompt", "x"), ("b", ""), ("c", "ab" * 9)]


def _loss_and_gradients(shelf: Shelf, name: str, shard: bool, way: str) -> tuple[float, dict[str, Tensor]]:
    student = load_policy(str(getattr(shelf, name)), "student")
    teacher = load_policy(str(shelf.teacher), "teacher")
    student.scorer.vocabulary = teacher.scorer.vocabulary = VOCABULARY
    record = record_of(student, TEXTS)
    view = score_record(teacher, record, frozenset({"dense"}), 10_000, None)
    if shard:
        from torch.distributed.tensor import DTensor

        _shard(student.scorer)
        for p in student.model.parameters():
            assert isinstance(p, DTensor)
            assert p.to_local().numel() <= (p.numel() + 2) // WORLD
    asks = [StatisticRequest(LogProb()), StatisticRequest(Distance(fkl), None, view)]

    def general(carrier: Any) -> Tensor:
        logp, kl = statistics(carrier, record.token_N, asks)
        return (kl - 0.3 * logp).mean()

    def separable(carrier: Any) -> Tensor:
        n = record.n_tokens
        return fused(carrier, record.token_N, asks, lambda v, _: (v[1] - 0.3 * v[0]).sum() / n, tile=3)

    loss = run_model(student, record, {"general": general, "separable": separable}[way])
    loss.backward()
    gradients = {}
    for n, p in student.model.named_parameters():
        g = p.grad
        gradients[n] = (g.full_tensor() if hasattr(g, "full_tensor") else g).detach().clone().contiguous()
    return float(loss.detach()), gradients


CASES = [(name, way) for name in ("student", "teacher") for way in ("general", "separable")]  # tied and untied heads


def _sharded(shelf: Shelf, out: Path) -> None:
    import os

    torch.distributed.init_process_group("gloo")
    for name, way in CASES:
        loss, gradients = _loss_and_gradients(shelf, name, True, way)
        if os.environ["RANK"] == "0":
            save_file(gradients, out / f"{name}-{way}.safetensors", metadata={"loss": repr(loss)})
            (out / f"{name}-{way}.json").write_text(json.dumps(loss))


def test_fsdp2_gives_the_same_loss_and_gradients(shelf: Shelf, tmp_path: Path) -> None:
    together(_sharded, tmp_path, shelf, tmp_path)
    for name, way in CASES:
        loss, gradients = _loss_and_gradients(shelf, name, False, way)
        assert json.loads((tmp_path / f"{name}-{way}.json").read_text()) == pytest.approx(loss, rel=1e-5)
        assert furthest(load_file(tmp_path / f"{name}-{way}.safetensors"), gradients) < 1e-4, (name, way)
