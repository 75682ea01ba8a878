"""Check once whether the Hugging Face hub can be reached: its own client retries for about a minute."""

from __future__ import annotations

import functools

import huggingface_hub
from huggingface_hub import constants

SECONDS = 5
"""Seconds that an answer may take (ours)."""


@functools.cache
def reachable() -> bool:
    """Whether the hub answers, through proxies where the environment names some."""
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # no network, no proxy, offline by choice: all count as unreachable
        return False
    return True
