"""Two processes are one: DDP through Accelerate, and FSDP2 around the same module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fleet import WORLD, together
from safetensors.torch import load_file, save_file
from tiny_runs import (
    VOCABULARY,
    Killed,
    Shelf,
    first_gradients,
    furthest,
    go,
    lines,
    open_run,
    record_of,
    same,
    tensors,
)
from torch import Tensor

from limbeck.engine import resume
from limbeck.engine.batch import read_view, run_model
from limbeck.engine.loop import Loop
from limbeck.engine.models import load_policy
from limbeck.kernels.tiles import Ask, fused, statistics
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


def test_runs_of_two_processes(shelf: Shelf, tmp_path: Path) -> None:
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


# ---------------------------------------------------------------- FSDP2

TEXTS = [("a", "12+3"), ("longer prompt", "x"), ("b", ""), ("c", "ab" * 9)]


def _loss_and_gradients(shelf: Shelf, name: str, shard: bool, way: str) -> tuple[float, dict[str, Tensor]]:
    student = load_policy(str(getattr(shelf, name)), "student")
    teacher = load_policy(str(shelf.teacher), "teacher")
    student.scorer.vocabulary = teacher.scorer.vocabulary = VOCABULARY
    record = record_of(student, TEXTS)
    view = read_view(teacher, record, frozenset({"dense"}), 10_000, None)
    if shard:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import DTensor

        mesh = init_device_mesh("cpu", (WORLD,))
        for layer in student.model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(student.scorer, mesh=mesh)
        for p in student.model.parameters():
            assert isinstance(p, DTensor)
            assert p.to_local().numel() <= (p.numel() + 2) // WORLD
    asks = [Ask(LogProb()), Ask(Distance(fkl), None, view.carrier)]

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
