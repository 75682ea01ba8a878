"""The number of threads of a run: one for each physical core that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Holds a container's limit: microseconds of processor time in a period, and the length of the period."""


def limit_threads() -> None:
    """Limit PyTorch to one thread for each core, unless ``OMP_NUM_THREADS`` is set.

    Two threads on one core, or more threads than a container's share of time, wait for each other in every matrix
    product.
    """
    if os.environ.get("OMP_NUM_THREADS"):
        return
    import torch

    if (n := cores()) < torch.get_num_threads():
        torch.set_num_threads(n)


def cores() -> int:
    """Physical cores for this process, at least 1; the processes of a launcher share the cores of a machine."""
    known = [_physical(), _allowed(), _share()]
    return max(1, min(n for n in known if n) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1)))


def _physical() -> int:
    import psutil  # comes with Accelerate

    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def _allowed() -> int | None:
    """Cores that the scheduler lets this process run on; None if the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _share() -> int | None:
    """The time limit of a container in whole cores, at least 1; None if there is no limit."""
    try:
        quota, period = QUOTA.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or "max"
        return None
