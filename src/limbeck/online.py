"""Whether the Hugging Face hub can be reached, asked once: its own client retries for most of a minute."""

from __future__ import annotations

import functools

import huggingface_hub
from huggingface_hub import constants

SECONDS = 5
"""How long an answer may take; ours."""


@functools.cache
def reachable() -> bool:
    """Whether the hub answers, through proxies where the environment names some."""
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # no network, no name, no proxy, offline by choice: all mean the same here
        return False
    return True
