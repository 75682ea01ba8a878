"""Atomic writes: a file is written under another name first and then renamed, so it is whole or absent."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ...errors import LimbeckError, is_disk_full


@contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Turn the error of a full disk into one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as e:
        if not is_disk_full(e):
            raise
        raise LimbeckError(
            f"the disk is full: {path} could not be written; earlier files are unchanged, so free some space "
            f"and continue with `limbeck train --resume`."
        ) from None


def write_text(path: Path, text: str) -> None:
    """Write a whole file, atomically and durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    with explain_full_disk(path):
        try:
            with beside.open("w", encoding="utf-8") as f:
                f.write(text)
                f.flush()
                os.fsync(f.fileno())
            beside.replace(path)
            sync(path.parent)
        finally:
            beside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Put a file's content, or a folder's list of names, onto the disk, so that a power cut cannot lose it."""
    if not path.is_dir():
        with path.open("rb") as f:
            os.fsync(f.fileno())
        return
    if os.name == "nt":  # folders cannot be opened there, and names are written at once
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some network file systems sync no folder
            raise
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, a folder or a link of this name; the target of a link stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document, atomically; NaN and infinity become null."""
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n")


def finite(value: Any) -> Any:
    """The same structure with NaN and infinities as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one JSON object as a line to a file."""
    with explain_full_disk(path), path.open("a", encoding="utf-8") as f:
        f.write(json.dumps(finite(value), ensure_ascii=False) + "\n")


def whole_number_in(row: Mapping[str, Any], key: str) -> int | None:
    """A whole number of a row, or None for anything else."""
    value = row.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of JSON objects, one a line, atomically."""
    write_text(path, "".join(json.dumps(finite(v), ensure_ascii=False) + "\n" for v in values))


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to be filled that gets its name once it is complete, and then replaces an older one of that name."""
    beside, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    remove(beside)
    beside.mkdir(parents=True)
    with explain_full_disk(path):
        try:
            yield beside
            for inner in [*beside.rglob("*"), beside]:
                sync(inner)
            if os.path.lexists(path):
                remove(old)
                os.rename(path, old)
            beside.replace(path)
            sync(path.parent)
            remove(old)
        finally:
            remove(beside)
