"""Trackers come through Accelerate."""

from __future__ import annotations

import importlib.util

import pytest
from tiny_runs import Shelf, go, lines

from limbeck.errors import LimbeckError


def test_tensorboard_gets_every_number(shelf: Shelf, out) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    go(shelf, "kdrl", out, trackers=["tensorboard"], eval_size=0)
    events = list((out / "trackers").rglob("events.out.tfevents*"))
    assert events
    metrics = lines(out / "metrics.jsonl")
    seen: dict[str, list[tuple[int, float]]] = {}
    for folder in {e.parent for e in events}:
        reader = EventAccumulator(str(folder))
        reader.Reload()
        for tag in reader.Tags()["scalars"]:
            seen[tag] = [(s.step, s.value) for s in reader.Scalars(tag)]
    for key in ("loss", "kl_reverse", "grad_norm", "coef/2"):
        assert seen[key] == [(m["step"], pytest.approx(m[key], rel=1e-5)) for m in metrics]


def test_a_tracker_that_is_not_installed_is_refused(shelf: Shelf, out, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Accelerate alone would leave it out without a word."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else find(name, *a))
    with pytest.raises(LimbeckError, match=r"wandb.*pip install wandb"):
        go(shelf, "sft", out, trackers=["wandb"])
    assert not out.exists()
