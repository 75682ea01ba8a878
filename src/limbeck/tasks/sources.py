"""Read the rows of a task from data in memory, a file, a saved folder, or a data set of the hub.

Every row comes with its place for messages; ``records`` parses rows, and ``dataset`` makes a task of them. No pickle is
loaded, and no code of a data set is run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from ..errors import LimbeckError, nearest
from ..online import reachable
from .base import found
from .jsonl import read_jsonl

Rows = list[tuple[str, Any]]
"""Rows, each with its place (``problems.csv, row 3``)."""

FILES = (".jsonl", ".parquet", ".csv")
"""Suffixes of files with problems."""

KINDS = (
    "a Dataset or DatasetDict, a list of dictionaries, a .jsonl, .parquet or .csv file, a folder, or the name of a "
    "data set on the hub"
)


@dataclass(frozen=True)
class DataSource:
    """Data with one or more splits.

    Attributes:
        name: default name of a task made of it.
        where: its name in messages.
        splits: for each split, a function that reads its rows; data without splits has one split named ``""``.
        part: reads slices such as ``train[:500]``, as ``datasets`` writes them; None if the data has none.
    """

    name: str
    where: str
    splits: Mapping[str, Callable[[], Rows]]
    part: Callable[[str], Rows] | None = None

    def rows(self, split: str, option: str) -> Rows:
        """The rows of a split; ``option`` is the option that named it.

        Raises:
            LimbeckError: there is no such split, or it is empty.
        """
        if split in self.splits:
            rows = self.splits[split]()
        elif self.part is not None and split.partition("[")[0] in self.splits:
            rows = self.part(split)
        else:
            has = f"has the splits {', '.join(map(repr, self.splits))}" if any(self.splits) else "has no splits"
            remedy = "name one of them" if any(self.splits) else "leave it out, or give a file"
            raise LimbeckError(f"{option}={split!r}: {self.where} {has}{nearest(split, self.splits)}; {remedy}.")
        if not rows:
            raise LimbeckError(f"{self.at(split)} holds no records; give a row for each problem.")
        return rows

    def at(self, split: str) -> str:
        """The name of a split in messages."""
        return f"{self.where}, split {split}" if split else self.where

    def training(self, split: str | None) -> str:
        """The split to train on: the named one, else ``train``, else the only one other than ``test``.

        Raises:
            LimbeckError: none was named, and there are several.
        """
        if split is not None:
            return split
        rest = [name for name in self.splits if name != "test"]
        name = "train" if "train" in self.splits else rest[0] if len(rest) == 1 else None
        if name is None:
            names = ", ".join(map(repr, self.splits))
            raise LimbeckError(
                f"{self.where} has the splits {names}; name the one to train on 'train', or give split=... "
                "(--set task_options.split=...)."
            )
        return name


def open_source(data: object, what: str, config: str | None = None, texts: Collection[str] = ()) -> DataSource:
    """Open data of any supported kind.

    Args:
        data: see ``KINDS``.
        what: name in messages of data in memory.
        config: the configuration of a data set of the hub.
        texts: columns of a CSV file that are always read as text.

    Raises:
        LimbeckError: the data is of another kind, or cannot be read.
    """
    if isinstance(data, str | Path):
        return _named(data, what, config, texts)
    if config is not None:
        raise LimbeckError(f"config={config!r} is only for hub data sets, and {what} is in memory; leave it out.")
    if isinstance(data, list | tuple):
        return DataSource("data", what, {"": lambda: [(f"{what}, row {i}", row) for i, row in enumerate(data)]})
    return _of_datasets(data, "data", what)


def _named(data: str | Path, what: str, config: str | None, texts: Collection[str]) -> DataSource:
    name = str(data)
    ending = Path(name).suffix
    if is_local(name) and config is not None:
        raise LimbeckError(f"config={config!r} is only for hub data sets, and {name!r} is a local path; leave it out.")
    if ending in FILES and found(name, "folder") is None:
        reader = {".jsonl": read_jsonl, ".parquet": _parquet, ".csv": lambda path: _csv(path, texts)}[ending]
        return DataSource(Path(name).stem, name, {"": lambda: reader(name)})
    if found(name, "folder") is not None:
        return _folder(name)
    if found(name, "file") is not None:
        raise LimbeckError(f"{what} {name!r} is a file of another kind; give {', '.join(FILES)}, or a data set folder.")
    if isinstance(data, Path) or not on_hub(name):
        raise LimbeckError(f"{what} {name!r} does not exist; check the path.")
    return _hub(name, config)


def is_local(name: str) -> bool:
    """Whether a name is that of a file or folder, existing or not."""
    named = Path(name).suffix in FILES or name.startswith((".", "/", "~"))
    return named or found(name, "folder") is not None or found(name, "file") is not None


def on_hub(name: str) -> bool:
    """Whether a name has the form of a hub name: ``name`` or ``owner/name``."""
    parts = name.split("/")
    plain = all(part and part.replace("-", "").replace("_", "").replace(".", "").isalnum() for part in parts)
    return len(parts) <= 2 and plain and len(name) <= 200 and name[0] not in ".~"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _file(path: str) -> Path:
    file = found(path, "file")
    if file is None:
        raise LimbeckError(f"task file {path!r} does not exist; check the path.")
    return file


def _parquet(path: str) -> Rows:
    import pyarrow.parquet

    file = _file(path)
    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    except Exception as error:  # Arrow raises errors of many classes
        raise LimbeckError(f"task file {path!r} is not Parquet ({_first_line(error)}); write it again.") from error
    return [(f"{path}, row {i}", row) for i, row in enumerate(rows)]


def _csv(path: str, texts: Collection[str]) -> Rows:
    """Read a CSV file. Empty cells are null; columns in ``texts`` stay text, so ``007`` and ``2024-05-01`` are kept."""
    import pyarrow
    import pyarrow.csv

    file = _file(path)
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(texts, pyarrow.string()),
        null_values=[""],
        strings_can_be_null=True,
        timestamp_parsers=[],
    )
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    try:
        table = pyarrow.csv.read_csv(file, parse_options=parse, convert_options=convert)
    except Exception as error:
        raise LimbeckError(f"task file {path!r} cannot be read as CSV ({_first_line(error)}); correct it.") from error
    if len(set(table.column_names)) < len(table.column_names):
        twice = next(name for name in table.column_names if table.column_names.count(name) > 1)
        raise LimbeckError(f"task file {path!r} has two columns named {twice!r}; rename one.")
    return [(f"{path}, row {i}", row) for i, row in enumerate(table.to_pylist())]


def _folder(path: str) -> DataSource:
    """Open a folder written by ``save_to_disk``."""
    folder = found(path, "folder")
    assert folder is not None
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        raise LimbeckError(
            f"task folder {path!r} is no saved data set; write one with datasets.Dataset.save_to_disk, or give a file "
            f"({', '.join(FILES)})."
        )
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # Arrow, JSON and file errors all mean that the folder is damaged
        raise LimbeckError(f"data set {path!r} cannot be read ({_first_line(error)}); write it again.") from error
    return _of_datasets(loaded, folder.resolve().name, path)


def _of_datasets(data: object, name: str, where: str) -> DataSource:
    import datasets

    if isinstance(data, datasets.IterableDataset | datasets.IterableDatasetDict):
        raise LimbeckError(
            f"{where} is streamed ({type(data).__name__}), and a run needs its length; load it without streaming=True, "
            "or give list(data.take(1000))."
        )
    if isinstance(data, datasets.DatasetDict):
        return DataSource(name, where, {n: partial(rows_of, rows, f"{where}, split {n}") for n, rows in data.items()})
    if isinstance(data, datasets.Dataset):
        return DataSource(name, where, {"": lambda: rows_of(data, where)})
    raise LimbeckError(f"{where} is of type {type(data).__name__}; give {KINDS}.")


def rows_of(rows: Iterable[Any], where: str) -> Rows:
    """Read rows one by one. Reading a row decodes images and sound, which may need packages that are not installed.

    Raises:
        LimbeckError: a row cannot be decoded.
    """
    try:
        return [(f"{where}, row {i}", row) for i, row in enumerate(rows)]
    except Exception as error:
        raise LimbeckError(
            f"{where} cannot be read ({_first_line(error)}); leave out columns that are not text."
        ) from error


# ---------------------------------------------------------------- the hub


def _hub(name: str, config: str | None) -> DataSource:
    """Open a hub data set; if the hub cannot be reached, it is read from the local cache."""
    loaded = _load(name, config, None)
    source = _of_datasets(loaded, name.rpartition("/")[2], name)
    return DataSource(
        source.name, name, source.splits, lambda split: rows_of(_load(name, config, split), f"{name}, {split}")
    )


def _load(name: str, config: str | None, split: str | None) -> Any:
    import datasets

    online = reachable()
    try:
        with contextlib.nullcontext() if online else _offline():
            return datasets.load_dataset(name, config, split=split)
    except Exception as error:  # errors of the hub, the network, the cache or the builder
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if split is not None:
            raise LimbeckError(
                f"{name}: the split {split!r} cannot be read ({reason}); write it as train[:500]."
            ) from None
        if (
            "onfig" in reason and type(error) is ValueError
        ):  # the configuration is missing or unknown; the message of datasets lists them
            raise LimbeckError(
                f"data set {name!r} with config={config!r}: {reason}; give one of these as config=..."
            ) from None
        if not online:
            raise LimbeckError(
                f"data set {name!r} is neither on this disk nor in the local cache of hub data sets, and the hub "
                f"({constants.ENDPOINT}) cannot be reached; check the name, give a file, or go online."
            ) from None
        raise LimbeckError(f"data set {name!r} cannot be loaded from the hub ({reason}); check the name.") from None


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Stop ``datasets`` from contacting a hub that does not answer; it would retry for half a minute."""
    import datasets

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
