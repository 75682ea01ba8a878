"""A tiny teacher and student that come with Limbeck, so that a run can be tried in seconds and without a download.

Both are trained on the task ``two_digit_sums``; the model card in each folder gives their accuracy.
``scripts/train_embedded_pair.py`` trained them.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import LimbeckError, nearest

NAMES = ("teacher", "student")
TASK = "two_digit_sums"
"""Name of the task that the pair is trained on, for :func:`limbeck.tasks.load_task`."""


def path(name: str) -> Path:
    """Folder of ``"teacher"`` or ``"student"``, to be loaded with ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        LimbeckError: the name is another one, or the model files are not installed.
    """
    if name not in NAMES:
        raise LimbeckError(f"embedded model {name!r} does not exist{nearest(name, NAMES)}; give {' or '.join(NAMES)}.")
    folder = Path(__file__).parent / name
    if not (folder / "model.safetensors").is_file():
        raise LimbeckError(f"embedded model {name!r} is missing from {str(folder)!r}; reinstall limbeck.")
    return folder
