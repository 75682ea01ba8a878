"""Check once whether the Hugging Face hub can be reached; its own client retries for almost a minute.

The answer is remembered for the life of the process.
"""

from __future__ import annotations

import functools

import huggingface_hub
from huggingface_hub import constants

SECONDS = 5
"""Time limit of the check (ours)."""


@functools.cache
def reachable() -> bool:
    """Whether the hub answers, through the proxies in the environment."""
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # no network, no name resolution, no proxy, or offline mode
        return False
    return True
