"""Turn what was typed into a checked ``RunConfig``: ``--set`` overrides flags, which override ``--config``.

Every check that needs no model is made here, before the engine is imported, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import user_files as own_files
from ..errors import LimbeckError, shown
from ..json_files import read_json_object
from ..processes import is_main_process, several_processes
from ..space.method import Method
from ..space.registry import get

if TYPE_CHECKING:
    from ..engine.config import RunConfig

Settings = dict[str, Any]


def run_config(name: str | None, flags: Mapping[str, Any], file: Path | None, pairs: Sequence[str]) -> RunConfig:
    """The configuration that the command line describes.

    Args:
        name: of the method, from the command line.
        flags: options by field; None means that the option was not given.
        file: of ``--config``.
        pairs: ``KEY=VALUE`` of each ``--set``.
    """
    if name and not file and not any(pair.startswith("imports") for pair in pairs):
        get(name)  # report a misspelt method before importing the engine
    from ..engine.config import configure, load_toml, parse_settings

    written = load_toml(file) if file else {}
    given = parse_settings(pairs)
    imports = own_imports(written, given)
    method = next((m for m in (given.get("method"), name, written.get("method")) if m is not None), None)
    if method is not None and not isinstance(method, str):
        raise LimbeckError(f"method={shown(method)} is not the name of a method; `limbeck methods` lists them.")
    if not method:
        raise LimbeckError("no method is given; write `limbeck train NAME ...` (`limbeck methods` lists them).")
    known = get(method).arguments
    merged: Settings = {}
    for layer in (written, {k: v for k, v in flags.items() if v is not None}, given):
        merge_into(merged, _normal(layer, known, method))
    return configure(method, {**merged, **imports})


def own_imports(*layers: Mapping[str, Any]) -> Settings:
    """The setting ``imports``: the files of ``--import``, which have run, and those of the layers, which run here."""
    files = [*own_files.ran(), *(file for layer in layers for file in own_files.run_files(layer.get("imports", ())))]
    return {"imports": tuple(dict.fromkeys(files))} if files else {}


def notes_on_defaults(config: RunConfig) -> list[str]:
    """A note that names the student and the task if they were not given and the defaults are used."""
    silent = [name for name in ("student", "task") if name not in config.model_fields_set]
    if not silent:
        return []
    taken = " and ".join(f"the {name} is {getattr(config, name)!r}" for name in silent)
    return [f"note: without {' and '.join(f'--{name}' for name in silent)}, {taken}."]


def _normal(layer: Mapping[str, Any], arguments: Mapping[str, object], method: str) -> Settings:
    """The layer with our names for settings, and the method's arguments moved to the table ``arguments``."""
    from ..engine.aliases import in_our_words

    out = in_our_words(layer, arguments, method)
    own = out.pop("arguments", {})
    if not isinstance(own, Mapping):
        raise LimbeckError(
            f"arguments={shown(own)}: it is a table of the method's arguments; write arguments.name=value."
        )
    moved = {k: out.pop(k) for k in list(out) if k in arguments}
    return {**out, "arguments": {**in_our_words(own, arguments, method), **moved}}


def merge_into(below: Settings, above: Mapping[str, Any]) -> None:
    """Merge one layer of settings into another, whose values it replaces; tables are merged key by key."""
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(key), dict):
            merge_into(below[key], value)
        else:
            below[key] = dict(value) if isinstance(value, Mapping) else value


def build(name: str, arguments: Mapping[str, Any]) -> Method:
    """Build the method; an argument of the wrong type is reported as the user's mistake."""
    try:
        return get(name)(**arguments)
    except LimbeckError:
        raise
    except (TypeError, ValueError, AttributeError) as e:
        words = ", ".join(f"{k}={shown(v)}" for k, v in arguments.items())
        raise LimbeckError(f"{name}({words}): {e}; `limbeck explain {name}` lists its arguments.") from e


def check(config: RunConfig) -> Method:
    """Build the method, and refuse wrong arguments, a missing teacher, and folders and files that do not exist."""
    method = build(config.method, config.arguments)
    method.validate(**dict.fromkeys(config.named_roles, "model"))
    for role in ("student", "teacher", "ref"):
        check_model(role, getattr(config, role))
    check_task(config.task)
    return method


def check_model(role: str, name: str | None) -> None:
    """Refuse a model folder that does not exist; hub names are checked when the model is loaded."""
    from ..engine.models.hub import refuse_absent_folder

    if name:
        refuse_absent_folder(role, name)


def check_task(task: str) -> None:
    """Refuse a task file that does not exist; other names are checked when the task is loaded."""
    from ..tasks.base import found

    if task.endswith((".jsonl", ".parquet", ".csv")) and found(task, "file") is None:
        raise LimbeckError(f"--task {task}: there is no such file; check the path.")


def output_folder(out: Path | None, method: str, *, overwrite: bool) -> Path:
    """The folder of a new run. Only the folder of a run can be overwritten, and only with ``overwrite``."""
    if out is None:
        if several_processes():
            raise LimbeckError("several processes need one folder; name it with --out.")
        return _fresh(Path("runs") / f"{method}-{datetime.now():%Y%m%d-%H%M%S}")
    if not is_main_process():  # the main process may already be writing to it
        return out
    from ..engine.storage.run_folder import refuse_taken

    refuse_taken(out, overwrite)
    return out


def _fresh(folder: Path) -> Path:
    """The folder, with a number added if another run started in the same second."""
    number, free = 2, folder
    while free.exists():
        free, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return free


def run_record(folder: Path) -> dict[str, Any]:
    """``run.json`` of a run's folder; empty if it is missing or damaged."""
    try:
        return read_json_object(folder / "run.json") or {}
    except OSError:
        return {}
