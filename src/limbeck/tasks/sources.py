"""Where the records of a task come from: data in memory, a file, a saved folder, or a data set of the hub.

Everything here gives rows with a name for messages; ``records`` reads them, ``dataset`` makes a task of them. No pickle
is loaded and no code of a data set runs.
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
"""Rows, each with where it stands (``problems.csv, row 3``)."""

FILES = (".jsonl", ".parquet", ".csv")
"""Endings of files that hold problems."""

KINDS = (
    "a Dataset or DatasetDict, a list of dictionaries, a .jsonl, .parquet or .csv file, a folder, or a name of the hub"
)


@dataclass(frozen=True)
class Source:
    """Data that can be read by split.

    Attributes:
        name: what a task of it is called.
        where: how messages call it.
        splits: what each split holds, by name; data without splits has one that is called ``""``.
        part: reads what ``datasets`` understands beyond names, such as ``train[:500]``; None where nothing does.
    """

    name: str
    where: str
    splits: Mapping[str, Callable[[], Rows]]
    part: Callable[[str], Rows] | None = None

    def rows(self, split: str, option: str) -> Rows:
        """The rows of a split; ``option`` named it.

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
            raise LimbeckError(f"{self.at(split)} holds no records: give a row for each problem.")
        return rows

    def at(self, split: str) -> str:
        """How messages call a split."""
        return f"{self.where}, split {split}" if split else self.where

    def training(self, split: str | None) -> str:
        """The split to train on: the one that is named, else ``train``, else the only one besides ``test``.

        Raises:
            LimbeckError: none was named, and several could be meant.
        """
        if split is not None:
            return split
        rest = [name for name in self.splits if name != "test"]
        name = "train" if "train" in self.splits else rest[0] if len(rest) == 1 else None
        if name is None:
            names = ", ".join(map(repr, self.splits))
            raise LimbeckError(
                f"{self.where} has the splits {names}: name the one to train on 'train', or give split=... "
                "(--set task_options.split=...)."
            )
        return name


def open_source(data: object, what: str, config: str | None = None, texts: Collection[str] = ()) -> Source:
    """Data of any kind that a task can be made of.

    Args:
        data: see ``KINDS``.
        what: how messages call data in memory.
        config: the configuration of a data set of the hub.
        texts: columns of a CSV file that are read as text, whatever they look like.

    Raises:
        LimbeckError: what is none of these, or cannot be read.
    """
    if isinstance(data, str | Path):
        return _named(data, what, config, texts)
    if config is not None:
        raise LimbeckError(
            f"config={config!r} is for data sets of the hub, but {what} is given in memory; leave it out."
        )
    if isinstance(data, list | tuple):
        return Source("data", what, {"": lambda: [(f"{what}, row {i}", row) for i, row in enumerate(data)]})
    return _of_datasets(data, "data", what)


def _named(data: str | Path, what: str, config: str | None, texts: Collection[str]) -> Source:
    name = str(data)
    ending = Path(name).suffix
    if is_local(name) and config is not None:
        raise LimbeckError(
            f"config={config!r} is for data sets of the hub, but {name!r} is on this disk; leave it out."
        )
    if ending in FILES and found(name, "folder") is None:
        reader = {".jsonl": read_jsonl, ".parquet": _parquet, ".csv": lambda path: _csv(path, texts)}[ending]
        return Source(Path(name).stem, name, {"": lambda: reader(name)})
    if found(name, "folder") is not None:
        return _folder(name)
    if found(name, "file") is not None:
        raise LimbeckError(f"{what} {name!r} is a file of another kind: give {', '.join(FILES)}, or a data set folder.")
    if isinstance(data, Path) or not on_hub(name):
        raise LimbeckError(f"{what} {name!r} does not exist: check the path.")
    return _hub(name, config)


def is_local(name: str) -> bool:
    """Whether a name is that of a file or folder, there or not."""
    named = Path(name).suffix in FILES or name.startswith((".", "/", "~"))
    return named or found(name, "folder") is not None or found(name, "file") is not None


def on_hub(name: str) -> bool:
    """Whether a name could be one of the hub: ``name`` or ``owner/name``."""
    parts = name.split("/")
    plain = all(part and part.replace("-", "").replace("_", "").replace(".", "").isalnum() for part in parts)
    return len(parts) <= 2 and plain and len(name) <= 200 and name[0] not in ".~"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _file(path: str) -> Path:
    file = found(path, "file")
    if file is None:
        raise LimbeckError(f"task file {path!r} does not exist: check the path.")
    return file


def _parquet(path: str) -> Rows:
    import pyarrow.parquet

    file = _file(path)
    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    except Exception as error:  # Arrow raises errors of many classes
        raise LimbeckError(f"task file {path!r} is no Parquet file ({_first_line(error)}): write it again.") from error
    return [(f"{path}, row {i}", row) for i, row in enumerate(rows)]


def _csv(path: str, texts: Collection[str]) -> Rows:
    """An empty cell is null. Columns that a task reads as text stay text: ``007`` and ``2024-05-01`` are answers."""
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
        raise LimbeckError(f"task file {path!r} cannot be read as CSV ({_first_line(error)}): mend it.") from error
    if len(set(table.column_names)) < len(table.column_names):
        twice = next(name for name in table.column_names if table.column_names.count(name) > 1)
        raise LimbeckError(f"task file {path!r} has two columns named {twice!r}: rename one.")
    return [(f"{path}, row {i}", row) for i, row in enumerate(table.to_pylist())]


def _folder(path: str) -> Source:
    """What ``save_to_disk`` wrote."""
    folder = found(path, "folder")
    assert folder is not None
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        raise LimbeckError(
            f"task folder {path!r} is not a data set: write one with datasets.Dataset.save_to_disk, or give a file "
            f"({', '.join(FILES)})."
        )
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # Arrow, JSON and file errors alike mean that the folder is damaged
        raise LimbeckError(f"data set {path!r} cannot be read ({_first_line(error)}): write it again.") from error
    return _of_datasets(loaded, folder.resolve().name, path)


def _of_datasets(data: object, name: str, where: str) -> Source:
    import datasets

    if isinstance(data, datasets.IterableDataset | datasets.IterableDatasetDict):
        raise LimbeckError(
            f"{where} is streamed ({type(data).__name__}), and a run needs its length; load it without streaming=True, "
            "or give list(data.take(1000))."
        )
    if isinstance(data, datasets.DatasetDict):
        return Source(name, where, {n: partial(rows_of, rows, f"{where}, split {n}") for n, rows in data.items()})
    if isinstance(data, datasets.Dataset):
        return Source(name, where, {"": lambda: rows_of(data, where)})
    raise LimbeckError(f"{where} is of type {type(data).__name__}; give {KINDS}.")


def rows_of(rows: Iterable[Any], where: str) -> Rows:
    """Rows one by one; reading one decodes its columns (images, sound), which may need what is not installed.

    Raises:
        LimbeckError: a row cannot be decoded.
    """
    try:
        return [(f"{where}, row {i}", row) for i, row in enumerate(rows)]
    except Exception as error:
        raise LimbeckError(
            f"{where} cannot be read ({_first_line(error)}): leave columns other than text out."
        ) from error


# ---------------------------------------------------------------- the hub


def _hub(name: str, config: str | None) -> Source:
    """A data set of the hub; from this machine's cache where the hub cannot be reached."""
    loaded = _load(name, config, None)
    source = _of_datasets(loaded, name.rpartition("/")[2], name)
    return Source(
        source.name, name, source.splits, lambda split: rows_of(_load(name, config, split), f"{name}, {split}")
    )


def _load(name: str, config: str | None, split: str | None) -> Any:
    import datasets

    online = reachable()
    try:
        with contextlib.nullcontext() if online else _offline():
            return datasets.load_dataset(name, config, split=split)
    except Exception as error:  # of the hub, the network, the cache or the builder
        told = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if split is not None:
            raise LimbeckError(
                f"{name}: the split {split!r} cannot be read ({told}); write it as train[:500]."
            ) from None
        if "onfig" in told and type(error) is ValueError:  # a missing or unknown configuration; the sentence lists them
            raise LimbeckError(f"data set {name!r} with config={config!r}: {told}; give config=... of these.") from None
        if not online:
            raise LimbeckError(
                f"data set {name!r} is neither on this disk nor in the cache of the hub's data sets, and the hub "
                f"({constants.ENDPOINT}) cannot be reached; check the name, give a file, or go online."
            ) from None
        raise LimbeckError(f"data set {name!r} cannot be loaded from the hub ({told}); check the name.") from None


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Keep ``datasets`` from asking a hub that does not answer: it retries for half a minute."""
    import datasets

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
