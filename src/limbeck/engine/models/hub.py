"""Models of the Hugging Face hub: whether one is in this machine's cache, and whether it can be fetched."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub import constants

from ... import embedded
from ...errors import LimbeckError
from ...online import reachable
from ...tasks.base import found


def is_hub_name(spec: str) -> bool:
    """Whether a spec names a model of the hub: ``name`` or ``owner/name``, and not an existing folder."""
    local = spec.startswith((".", "/", "~")) or spec.count("/") > 1 or found(spec, "folder") is not None
    return spec != "embedded" and not local


def _cached(name: str) -> bool:
    try:
        return isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str)
    except ValueError:  # not a valid hub name: loading it says so
        return True


def only_here(spec: str) -> bool:
    """Whether a model of the hub must come from this machine's cache."""
    return is_hub_name(spec) and _cached(spec) and not reachable()


def refuse_absent_model(role: str, spec: str) -> None:
    """Refuse a model that is neither on this machine nor can be fetched.

    Raises:
        LimbeckError: naming the role, the model and the remedy.
    """
    refuse_absent_folder(role, spec)
    refuse_unreachable(role, spec)


def refuse_absent_folder(role: str, spec: str) -> None:
    """Refuse a path that leads to no folder, and the embedded models where they are not installed.

    Raises:
        LimbeckError: naming the role, the path and the remedy.
    """
    if spec == "embedded":
        embedded.path(role if role in embedded.NAMES else "student")
        return
    # A hub name is ``name`` or ``owner/name``; anything else with a slash can only be a path.
    path = spec.startswith((".", "/", "~")) or spec.count("/") > 1
    if path and found(spec, "folder") is None:
        raise LimbeckError(f"{role}={spec!r}: there is no such folder; give a model folder, a hub name, or 'embedded'.")


def refuse_unreachable(role: str, spec: str) -> None:
    """Refuse a hub name that is not in the cache while the hub cannot be reached.

    Raises:
        LimbeckError: naming the role, the model and the hub.
    """
    if is_hub_name(spec) and not _cached(spec) and not reachable():
        raise LimbeckError(
            f"{role}={spec!r}: there is no such folder, and the hub ({constants.ENDPOINT}) cannot be reached; give a "
            "model folder, or go online."
        )


def cached(name: str, file: str) -> Path | None:
    """A file of a model of the hub in this machine's cache; None where it is not there."""
    try:
        there = huggingface_hub.try_to_load_from_cache(name, file)
    except ValueError:  # not a valid hub name
        return None
    return Path(there) if isinstance(there, str) else None


def cached_commit(name: str) -> str | None:
    """The commit of a hub model in this machine's cache, which identifies its content; None where it is not there."""
    file = cached(name, "config.json")
    return file.parent.name if file is not None else None
