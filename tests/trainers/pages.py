"""The code of ``docs/own-trainer.md``, as a reader would copy it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

import limbeck as lb

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own-trainer.md"


def block(name: str) -> str:
    """The block of Python that defines a class."""
    found = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (text,) = [code for code in found if f"class {name}(" in code]
    return str(text)


def run(text: str) -> dict[str, Any]:
    """The names that a block defines, with what the page's first block imports."""
    names: dict[str, Any] = {"lb": lb, "torch": torch, "__name__": "__page__"}
    exec(compile(text, str(PAGE), "exec"), names)
    return names
