"""Reading and preparing JSON: the files of a run as they may lie on a disk, and values as JSON can hold them.

Files are read tolerantly, because a run that was killed leaves a line half-written.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_json_object(path: Path) -> dict[str, Any] | None:
    """The JSON object of a file; None if its text is not one.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    return _json_object(path.read_bytes())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file with one on each line; see :func:`read_and_count_json_lines`."""
    return list(read_and_count_json_lines(path)[0])


def read_and_count_json_lines(path: Path) -> tuple[tuple[dict[str, Any], ...], int]:
    """The JSON objects of a file with one on each line, and the number of lines that hold none.

    A broken line is left out wherever it is, because a resumed run writes on after the half-written line of a killed
    one. A file that is missing or cannot be read has no lines.
    """
    try:
        lines = path.read_bytes().split(b"\n")  # bytes, because texts may hold characters that end a line for Python
    except OSError:
        return (), 0
    rows = [_json_object(line) for line in lines if line.strip()]
    found = tuple(row for row in rows if row is not None)
    return found, len(rows) - len(found)


def _json_object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def as_json_value(value: Any) -> Any:
    """Convert a value to JSON types: records become objects, sequences lists, tensors lists, other values text.

    NaN and infinities, which JSON does not have, become None.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): as_json_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json_value(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(map(as_json_value, value), key=str)
    if hasattr(value, "tolist"):  # a tensor or an array, of any rank
        return as_json_value(value.tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and type(value).__str__ is object.__str__:
        return as_json_value(dataclasses.asdict(value))
    return str(value)
