"""The processes that a launcher such as ``accelerate launch`` starts for one run.

Read from the environment, so that the command line can ask before PyTorch is imported.
"""

from __future__ import annotations

import os


def is_main_process() -> bool:
    """Whether this process prints and writes files: the only one, or rank 0 under a launcher."""
    return os.environ.get("RANK", "0") == "0"


def several_processes() -> bool:
    """Whether a launcher started more than one process."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1")
