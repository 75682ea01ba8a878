"""Two processes on one machine: forked from the test, joined by gloo."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORLD = 2


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def _member(work: Callable[..., None], rank: int, port: int, errors: Path, arguments: tuple[Any, ...]) -> None:
    import torch
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()  # the test's own process was alone
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORLD),
        "LOCAL_WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    torch.set_num_threads(1)
    try:
        work(*arguments)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    except BaseException:
        errors.write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


def together(work: Callable[..., None], folder: Path, *arguments: Any) -> None:
    """Run ``work(*arguments)`` in every process."""
    context = multiprocessing.get_context("fork")
    port = _free_port()
    errors = [folder / f"error-{rank}" for rank in range(WORLD)]
    members = [
        context.Process(target=_member, args=(work, rank, port, errors[rank], arguments)) for rank in range(WORLD)
    ]
    for m in members:
        m.start()
    for m in members:
        m.join(120)
    told = "\n".join(e.read_text() for e in errors if e.exists())
    for m in members:
        if m.exitcode is None:
            m.kill()
    assert all(m.exitcode == 0 for m in members), told or "a process did not come back"
