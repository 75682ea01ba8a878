"""A teacher and a student that come with Limbeck, for trying a run in seconds and without a download.

Both know one task, ``two_digit_sums``; the model card in each folder says how well. ``scripts/train_embedded_pair.py``
made them.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import LimbeckError, nearest

NAMES = ("teacher", "student")
TASK = "two_digit_sums"
"""The task the pair is trained on, as :func:`limbeck.tasks.load_task` knows it."""


def path(name: str) -> Path:
    """Folder of ``"teacher"`` or ``"student"``, to be loaded with ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        LimbeckError: another name, or an installation without the model files.
    """
    if name not in NAMES:
        raise LimbeckError(f"embedded model {name!r} does not exist{nearest(name, NAMES)}; give {' or '.join(NAMES)}.")
    folder = Path(__file__).parent / name
    if not (folder / "model.safetensors").is_file():
        raise LimbeckError(f"embedded model {name!r} is missing from {str(folder)!r}; install limbeck again.")
    return folder
