"""Who taught a student: ``limbeck.json`` in its folder, written with the weights and read by later runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..axes.rewrite import Once
from ..refusals import DERIVED, walk
from ..tasks.base import found
from .files import write_json

if TYPE_CHECKING:
    from .setup import Workshop

FILE = "limbeck.json"


def write(folder: Path, shop: Workshop) -> None:
    """Write into a student's folder by which method it was trained, who taught it, and what was known before.

    ``{"method": ..., "student": ..., "teachers": {role: name or path}, "earlier": [the same of earlier runs]}``
    """
    own = (*DERIVED, "ref", "init")
    roles = [r for r in shop.method.roles if r.partition("(")[0] not in own and r in shop.policies]
    record = {
        "method": shop.method.name or "custom",
        "student": _address(shop.student.name),
        "teachers": {role: _address(shop.policies[role].name) for role in roles},
    }
    write_json(folder / FILE, {**record, "earlier": read(shop.student.name)})


def read(student: str) -> list[dict[str, Any]]:
    """What a student's folder says of its runs, the latest first; nothing where it says nothing."""
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
    """Who taught it in the latest run that had a teacher."""
    named = (r["teachers"] for r in read(student) if isinstance(r.get("teachers"), Mapping))
    return [str(name) for name in next(filter(None, named), {}).values()]


def consistency(shop: Workshop) -> list[str]:
    """A note where a teacher's log-probs are stored for a student that another teacher taught, or nobody known."""
    out = []
    scores = {p.score.role for s in shop.method.sources.values() for p in walk(s) if isinstance(p, Once) and p.score}
    for role in sorted(scores & shop.policies.keys()):
        name, student = shop.policies[role].name, shop.student.name
        known = teachers(student)
        if _address(name) in known:
            continue
        says = f"was taught by {' and '.join(map(repr, known))}" if known else "does not say who taught it"
        out.append(
            f"note: {shop.method.name or 'this method'} stores the log-probs of {name!r} once, which holds where the "
            f"same teacher taught the student before, but {student!r} {says}; train it on that teacher's text first "
            "(limbeck pipeline lightning does both)."
        )
    return out


def _address(name: str) -> str:
    """A folder by its whole path, so that it is the same from everywhere; any other name as it is."""
    folder = _folder(name)
    return str(folder.resolve()) if folder is not None else name


def _folder(name: str) -> Path | None:
    return found(name, "folder") if name != "embedded" else None
