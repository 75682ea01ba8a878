"""Records of a JSONL file: one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import LimbeckError
from .base import found


def read_jsonl(path: str | Path) -> list[tuple[str, Any]]:
    """What every line holds, with the file and line for messages; blank lines are skipped.

    Raises:
        LimbeckError: no such file, or a line that is not JSON.
    """
    file = found(path, "file")
    if file is None:
        raise LimbeckError(f"task file {str(path)!r} does not exist: check the path.")
    rows: list[tuple[str, Any]] = []
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    where = f"{path}, line {number}"
                    rows.append((where, _decode(line.removeprefix("\ufeff"), where)))  # files put together keep marks
    except UnicodeDecodeError as error:
        raise LimbeckError(f"task file {str(path)!r} is not UTF-8 text ({error.reason}): convert it.") from error
    except OSError as error:
        raise LimbeckError(f"task file {str(path)!r} cannot be read ({error.strerror}): check it.") from error
    return rows


def _once(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    """An object, each of whose keys stands in it once: of two values, JSON keeps the last without a word."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise LimbeckError(f"{where} has the key {twice!r} twice in one object: keep one.")
    return made


def _decode(line: str, where: str) -> Any:
    try:
        value: Any = json.loads(line, object_pairs_hook=lambda pairs: _once(pairs, where))
    except LimbeckError:
        raise
    except json.JSONDecodeError as error:
        raise LimbeckError(
            f"{where} is not JSON ({error.msg} at column {error.colno}): give one object a line."
        ) from error
    except ValueError as error:  # more digits than Python reads
        raise LimbeckError(f"{where} holds a number of thousands of digits: give it as a string.") from error
    except RecursionError as error:
        raise LimbeckError(f"{where} is nested too deeply: give one flat object a line.") from error
    return value
