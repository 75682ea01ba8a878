"""From words to a checked ``RunConfig``: ``--set`` over flags over ``--config`` over defaults.

Whatever can be refused without loading a model is refused here, before the seconds that importing the engine takes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import user_files as own_files
from ..errors import LimbeckError, shown
from ..space.method import Method
from ..space.registry import get
from .app import is_main_process, several_processes

if TYPE_CHECKING:
    from ..engine.config import RunConfig

Settings = dict[str, Any]


def run_config(name: str | None, flags: Mapping[str, Any], file: Path | None, pairs: Sequence[str]) -> RunConfig:
    """The run that the command line asks for.

    Args:
        name: the method's, from the command line.
        flags: options by field; None means that the option was not given.
        file: of ``--config``.
        pairs: the words of ``--set``.
    """
    if name and not file and not any(pair.startswith("imports") for pair in pairs):
        get(name)  # a misspelt method is told before the engine is imported
    from ..engine.config import configure, load_toml, parse_settings

    written = load_toml(file) if file else {}
    given = parse_settings(pairs)
    imports = own_imports(written, given)
    method = next((m for m in (given.get("method"), name, written.get("method")) if m is not None), None)
    if method is not None and not isinstance(method, str):
        raise LimbeckError(f"method={shown(method)} is not the name of a method; `limbeck methods` lists them.")
    if not method:
        raise LimbeckError("a run needs a method: `limbeck train kdrl ...`; `limbeck methods` lists them.")
    known = get(method).arguments
    merged: Settings = {}
    for layer in (written, {k: v for k, v in flags.items() if v is not None}, given):
        lay(merged, _normal(layer, known, method))
    return configure(method, {**merged, **imports})


def own_imports(*layers: Mapping[str, Any]) -> Settings:
    """The setting ``imports``: files of ``--import``, which ran already, and those of the layers, which run here."""
    files = [*own_files.ran(), *(file for layer in layers for file in own_files.run_files(layer.get("imports", ())))]
    return {"imports": tuple(dict.fromkeys(files))} if files else {}


def defaults(config: RunConfig) -> list[str]:
    """A word on what decides a run and was not given."""
    silent = [name for name in ("student", "task") if name not in config.model_fields_set]
    if not silent:
        return []
    taken = " and ".join(f"the {name} is {getattr(config, name)!r}" for name in silent)
    return [f"note: without {' and '.join(f'--{name}' for name in silent)}, {taken}."]


def _normal(layer: Mapping[str, Any], arguments: Mapping[str, object], method: str) -> Settings:
    """The layer under our names, with the method's arguments in their table: ``group`` is ``arguments.group``."""
    from ..engine.aliases import in_our_words

    out = in_our_words(layer, arguments, method)
    own = out.pop("arguments", {})
    if not isinstance(own, Mapping):
        raise LimbeckError(
            f"arguments={shown(own)}: it is a table of the method's arguments; write arguments.name=value."
        )
    moved = {k: out.pop(k) for k in list(out) if k in arguments}
    return {**out, "arguments": {**in_our_words(own, arguments, method), **moved}}


def lay(below: Settings, above: Mapping[str, Any]) -> None:
    """Lay one layer over another; tables are merged key by key."""
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(key), dict):
            lay(below[key], value)
        else:
            below[key] = dict(value) if isinstance(value, Mapping) else value


def build(name: str, arguments: Mapping[str, Any]) -> Method:
    """The method's value; an argument of the wrong kind is the user's mistake, not ours."""
    try:
        return get(name)(**arguments)
    except LimbeckError:
        raise
    except (TypeError, ValueError, AttributeError) as e:
        words = ", ".join(f"{k}={shown(v)}" for k, v in arguments.items())
        raise LimbeckError(f"{name}({words}): {e}; `limbeck explain {name}` shows what its arguments are.") from e


def check(config: RunConfig) -> Method:
    """Refuse what cannot run: arguments of the method, a missing teacher, folders and files that do not exist."""
    method = build(config.method, config.arguments)
    method.validate(**dict.fromkeys(config.named_roles, "model"))
    for role in ("student", "teacher", "ref"):
        check_model(role, getattr(config, role))
    check_task(config.task)
    return method


def check_model(role: str, name: str | None) -> None:
    """Refuse a folder that is not there; a hub name is left to the hub."""
    from ..engine.models.hub import refuse_absent_folder

    if name:
        refuse_absent_folder(role, name)


def check_task(task: str) -> None:
    """Refuse a task file that is not there; names are left to the tasks."""
    from ..tasks.base import found

    if task.endswith((".jsonl", ".parquet", ".csv")) and found(task, "file") is None:
        raise LimbeckError(f"--task {task}: there is no such file; check the path.")


def output_folder(out: Path | None, method: str, *, overwrite: bool) -> Path:
    """The folder of a new run. Only a run is ever overwritten, and only where that was asked for."""
    if out is None:
        if several_processes():
            raise LimbeckError("several processes need to agree on one folder: name it with --out.")
        return _fresh(Path("runs") / f"{method}-{datetime.now():%Y%m%d-%H%M%S}")
    if not is_main_process():  # the main process may be writing already
        return out
    from ..engine.storage.run_folder import refuse_taken

    refuse_taken(out, overwrite)
    return out


def _fresh(folder: Path) -> Path:
    """The folder, numbered where two runs start in one second."""
    number, free = 2, folder
    while free.exists():
        free, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return free


def run_record(folder: Path) -> dict[str, Any]:
    """``run.json`` of a run's folder; empty where it is missing or damaged."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
