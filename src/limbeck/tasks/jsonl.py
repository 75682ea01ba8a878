"""A JSONL file as a task: one record a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import LimbeckError
from .base import found
from .records import Record, RecordTask, check_columns, left_out, parse_record, say_left_out
from .split import split


class JsonlTask(RecordTask):
    """A JSONL file, split by a hash of the prompt's text, or with a test file of its own.

    Keys of a line: ``prompt`` (string) or ``messages`` (list of role and content; a last assistant's message is the
    demonstration), and optionally ``answer`` (for the verifier), ``response`` (a demonstration) or ``chosen`` and
    ``rejected`` (a pair), ``solution``, ``hint`` and ``step_feedback`` (for privileged readers), ``id``. ``tools``,
    ``documents`` and ``chat_template_kwargs``, and every further key of a message, go to the chat template. Further
    numbers and strings become columns; lists and objects are left out, with a warning. The task serves what all of
    its lines have.

    Args:
        path: the file; ``~`` is expanded.
        test_path: a file of test prompts; training prompts that are also in it are left out, with a warning.
        test_fraction: share of the prompts that are held out where there is no test file, in [0, 1); at least one
            prompt is held out if it is above 0 and the file has two.
        columns: the file's name of a key where it differs: ``{"prompt": "question"}``.
        reveal: whether feedback names the expected answer.
        per_turn: cut every trajectory into one prompt for each of its assistant's turns, with the earlier ones before
            it (step-level sampling, OPAD). The cut prompts serve responses and no reward.

    Raises:
        LimbeckError: naming file and line.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        test_path: str | Path | None = None,
        test_fraction: float = 0.1,
        columns: Mapping[str, str] | None = None,
        reveal: bool = False,
        per_turn: bool = False,
    ) -> None:
        check_columns(columns)
        held_out = None if test_path is None else read_jsonl(test_path, columns)
        records = read_jsonl(path, columns)
        train, test = split(records, held_out, str(path), test_fraction=test_fraction, per_turn=per_turn)
        super().__init__(Path(path).stem, train, test, reveal)


def read_jsonl(path: str | Path, columns: Mapping[str, str] | None = None) -> list[Record]:
    """All records of a file; blank lines are skipped.

    Raises:
        LimbeckError: no such file, no records in it, or a line that is no record.
    """
    if not isinstance(path, str | Path):
        raise LimbeckError(f"task file {path!r} is not a path: give the name of a .jsonl file.")
    file = found(path, "file")
    if file is None:
        raise LimbeckError(f"task file {str(path)!r} does not exist: check the path.")
    records: list[Record] = []
    unread: set[str] = set()
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    where = f"{path}, line {number}"
                    raw = _decode(line.removeprefix("\ufeff"), where)  # files put together keep each one's mark
                    records.append(parse_record(raw, where, columns))
                    unread |= left_out(raw)
    except UnicodeDecodeError as error:
        raise LimbeckError(f"task file {str(path)!r} is not UTF-8 text ({error.reason}): convert it.") from error
    except OSError as error:
        raise LimbeckError(f"task file {str(path)!r} cannot be read ({error.strerror}): check it.") from error
    if not records:
        raise LimbeckError(f"task file {str(path)!r} holds no records: give a line for each problem.")
    say_left_out(unread, str(path))
    return records


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
