"""The teachers of a student: ``limbeck.json`` in its folder, written with the weights and read by later runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...axes.derived_source import Once
from ...space.method import Method
from ...tasks.base import found
from ..models.policy import Policy
from .atomic import write_json
from .fingerprint import of_folder

FILE = "limbeck.json"


def write_provenance(folder: Path, method: Method, policies: Mapping[str, Policy]) -> None:
    """Write the method and the teachers of a student into its folder, with the records of earlier runs.

    ``{"method": ..., "student": name, "teachers": {role: name}, "digests": {role: digest}, "earlier": [the same of
    earlier runs]}``. A folder is named by the last part of its path and identified by its content, because paths of
    this machine should not be published with the student, and mean nothing elsewhere.
    """
    roles = [role for role in method.teachers if role in policies]
    record = {
        "method": method.name or "custom",
        "student": public_name(policies["student"].name),
        "teachers": {role: public_name(policies[role].name) for role in roles},
        "digests": {r: d for r in ("student", *roles) if (d := _digest(policies[r].name))},
    }
    write_json(
        folder / FILE, {**record, "earlier": [_without_paths(r) for r in read_provenance(policies["student"].name)]}
    )


def read_provenance(student: str) -> list[dict[str, Any]]:
    """The records in a student's folder, the latest run first; empty where there are none."""
    folder = _folder(student)
    try:
        last = json.loads((folder / FILE).read_text(encoding="utf-8")) if folder else None
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(last, dict):
        return []
    earlier = last.pop("earlier", [])
    return [r for r in (last, *(earlier if isinstance(earlier, list) else ())) if isinstance(r, dict)]


def teachers(student: str) -> list[str]:
    """Names of the teachers in the latest run that had one."""
    named = (r["teachers"] for r in read_provenance(student) if isinstance(r.get("teachers"), Mapping))
    return [str(name) for name in next(filter(None, named), {}).values()]


def consistency(method: Method, policies: Mapping[str, Policy]) -> list[str]:
    """Notices where stored log-probs come from a teacher that is not known to have trained this student."""
    out = []
    scores = {p.score.role for s in method.sources.values() for p in s.walk() if isinstance(p, Once) and p.score}
    for role in sorted(scores & policies.keys()):
        name, student = policies[role].name, policies["student"].name
        known = teachers(student)
        if _address(name) in known or _digest(name) in _digests(student):
            continue
        says = f"was taught by {' and '.join(map(repr, known))}" if known else "does not name its teacher"
        out.append(
            f"note: {method.name or 'this method'} stores the log-probs of {name!r} once, which holds where the "
            f"same teacher taught the student before, but {student!r} {says}; train it on that teacher's text first "
            "(limbeck pipeline lightning does both)."
        )
    return out


def public_name(name: str) -> str:
    """A model's name without a path: the last part of its folder, with the run's folder for the student of a run."""
    folder = _folder(name)
    if folder is None:
        return name if not Path(name).is_absolute() else Path(name).name
    folder = folder.resolve()
    ours = folder.name in ("student", "adapter") and (folder.parent / "run.json").is_file()
    return f"{folder.parent.name}/{folder.name}" if ours else folder.name


def _without_paths(record: dict[str, Any]) -> dict[str, Any]:
    """A record of an earlier version, which held whole paths, in the form of this version."""
    named = record.get("teachers")
    teachers = {str(k): public_name(str(v)) for k, v in named.items()} if isinstance(named, Mapping) else {}
    return {**record, "student": public_name(str(record.get("student", ""))), "teachers": teachers}


def _digests(student: str) -> set[str]:
    """Digests of the teachers in the latest run that had one."""
    last = next((r for r in read_provenance(student) if isinstance(r.get("teachers"), Mapping) and r["teachers"]), {})
    digests = last.get("digests")
    return {str(d) for r, d in digests.items() if r != "student"} if isinstance(digests, Mapping) else set()


def _digest(name: str) -> str | None:
    """Digest of a folder's content; None for hub names and the embedded pair, whose names identify them."""
    folder = _folder(name)
    return of_folder(folder) if folder is not None else None


def _address(name: str) -> str:
    """A folder by its whole path, as earlier versions wrote it; any other name unchanged."""
    folder = _folder(name)
    return str(folder.resolve()) if folder is not None else name


def _folder(name: str) -> Path | None:
    return found(name, "folder") if name not in ("", "embedded") else None
