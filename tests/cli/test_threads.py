"""How many threads a run takes."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import torch
from stub_engine import Notes, Run

from limbeck.cli import threads


@pytest.mark.parametrize(
    ("physical", "allowed", "quota", "processes", "expected"),
    [
        (8, 16, "max 100000", "", 8),
        (8, 3, "max 100000", "", 3),
        (8, 16, "250000 100000", "", 2),
        (8, 16, "50000 100000", "", 1),
        (None, 16, "", "", 6),
        (8, 16, "", "4", 2),
        (2, 2, "", "4", 1),
    ],
)
def test_the_number_of_threads_follows_cores_quota_and_processes(
    physical: int | None,
    allowed: int,
    quota: str,
    processes: str,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: physical)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    if quota:
        threads.QUOTA.write_text(quota)
    assert threads.cores() == expected


@pytest.mark.parametrize("words", ["demo", "train sft", "train --resume old", "eval --student embedded"])
def test_every_run_is_held_to_its_cores(
    words: str, limbeck_: Run, notes: Notes, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(threads, "cores", lambda: 8)
    limbeck_(*words.split(), OMP_NUM_THREADS="")
    assert set_to == [8]
    limbeck_(*words.split(), "--seed=1" if "--resume" not in words else "--quiet", OMP_NUM_THREADS="3")
    assert set_to == [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # fewer are the user's own wish
    limbeck_(*words.split(), OMP_NUM_THREADS="")
    assert set_to == [8]
