"""A Hugging Face data set folder as a task. Reads the disk only: no hub, no code of the data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import LimbeckError
from .base import found
from .records import Record, RecordTask, check_columns, left_out, parse_record, say_left_out
from .split import split


class FolderTask(RecordTask):
    """A folder that ``datasets.save_to_disk`` wrote, with the keys of :class:`~limbeck.tasks.jsonl.JsonlTask`.

    Its ``test`` split is the test split; training prompts that are also in it are left out, with a warning. Without
    one, the prompts are split by a hash of their text.

    Args:
        path: the folder; ``~`` is expanded.
        test_fraction: share of the prompts that are held out where there is no ``test`` split, in [0, 1).
        columns: the data set's name of a key where it differs: ``{"prompt": "question"}``.
        reveal: whether feedback names the expected answer.
        per_turn: cut every trajectory into one prompt for each of its assistant's turns, with the earlier ones before
            it (step-level sampling, OPAD). The cut prompts serve responses and no reward.

    Raises:
        LimbeckError: naming the folder, or the split and row (counted from 0).
    """

    def __init__(
        self,
        path: str | Path,
        *,
        test_fraction: float = 0.1,
        columns: Mapping[str, str] | None = None,
        reveal: bool = False,
        per_turn: bool = False,
    ) -> None:
        check_columns(columns)
        splits = _load(path)
        rest = [name for name in splits if name != "test"]
        train_name = "train" if "train" in splits else rest[0] if len(rest) == 1 else None
        if train_name is None:
            names = ", ".join(map(repr, splits))
            raise LimbeckError(f"data set {str(path)!r} has the splits {names}: name the one to train on 'train'.")
        records = _records(splits[train_name], f"{path}, split {train_name}" if train_name else str(path), columns)
        held_out = _records(splits["test"], f"{path}, split test", columns) if "test" in splits else None
        train, test = split(records, held_out, str(path), test_fraction=test_fraction, per_turn=per_turn)
        super().__init__(Path(path).expanduser().resolve().name, train, test, reveal)


def _load(path: str | Path) -> dict[str, Any]:
    """Splits by name; a data set without splits is called ``""``."""
    folder = found(path, "folder")
    if folder is None:
        raise LimbeckError(f"task folder {str(path)!r} does not exist: check the path.")
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        raise LimbeckError(
            f"task folder {str(path)!r} is not a data set: "
            "write one with datasets.Dataset.save_to_disk or give a .jsonl file."
        )
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # Arrow, JSON and file errors alike mean that the folder is damaged
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LimbeckError(f"data set {str(path)!r} cannot be read ({first_line}): write it again.") from error
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}


def _records(rows: Any, where: str, columns: Mapping[str, str] | None) -> list[Record]:
    records: list[Record] = []
    unread: set[str] = set()
    for i, row in enumerate(_read(rows, where)):
        records.append(parse_record(row, f"{where}, row {i}", columns))
        unread |= left_out(row)
    if not records:
        raise LimbeckError(f"{where} holds no records: give a row for each problem.")
    say_left_out(unread, where)
    return records


def _read(rows: Any, where: str) -> Iterator[Mapping[str, Any]]:
    """Rows one by one; reading one decodes its columns (images, sound), which may need what is not installed."""
    try:
        yield from rows
    except Exception as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LimbeckError(f"{where} cannot be read ({first_line}): leave columns other than text out.") from error
