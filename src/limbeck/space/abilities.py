"""Abilities: what a method reads from a model, what the model serves, and the error where they do not match."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ..errors import LimbeckError, expect

SERVED: dict[str, frozenset[str]] = {
    "text": frozenset({"text"}),
    "sampled": frozenset({"sampled"}),
    "topk": frozenset({"topk"}),
    "dense": frozenset({"sampled", "topk", "at", "dense"}),
    "model": frozenset({"sampled", "topk", "at", "dense", "text"}),
}
"""The abilities that each form of scores serves. They are sets and not a chain: top-k ids need not contain the sampled
token."""

_WORDS = {
    "dense": "the full next-token distributions (dense)",
    "at": "log-probs of the entries that the student chose (at)",
    "topk": "the top-k log-probs (topk)",
    "sampled": "the log-prob of each sampled token (sampled)",
    "text": "responses (text)",
}

_REMEDIES = {
    "dense": "use a method that reads sampled log-probs (opd instead of gkd or opd_full), pass top_k=..., or host the "
    "model so that it serves logits or hidden states",
    "at": "host the model, or let it score the entries that the student chose",
    "topk": "ask the server for its top log-probs, or host the model",
    "sampled": "let the server score the sampled tokens, or use a method that reads top-k (opd_full(top_k=...))",
    "text": "give a model that can generate",
}


def refuse_absent(name: str, roles: Mapping[str, frozenset[str]], absent: Sequence[str]) -> None:
    """Raise LimbeckError where models that a method reads are missing.

    Args:
        name: the name of the method; empty for a method without a name.
        roles: the abilities that the method reads from each role.
        absent: the roles that were not given.
    """
    if not absent:
        return
    asked = " and ".join(f"{role} ({', '.join(sorted(roles[role]))})" for role in absent)
    missing = f"no {absent[0]} was given; name one" if len(absent) == 1 else "they were not given; name them"
    raise LimbeckError(f"{name or 'this method'} reads {asked}, but {missing} with {_options(absent)}.")


def _options(roles: Sequence[str]) -> str:
    own = [f"{role}=... (--{role} on the command line)" for role in roles if role in ("teacher", "ref")]
    others = [role for role in roles if role not in ("teacher", "ref")]
    if others:
        table = ", ".join(f"{role!r}: ..." for role in others)
        sets = " ".join(f"--set others.{role}=..." for role in others)
        own.append(f"others={{{table}}} ({sets} on the command line)")
    return " and ".join(own)


def refuse_unserved(name: str, role: str, asked: frozenset[str], offer: str | frozenset[str]) -> None:
    """Raise LimbeckError where a role does not serve everything that the method of that name reads from it."""
    expect(f"what {role} serves", offer, (str, frozenset, set), f"give one of {', '.join(SERVED)}")
    able = SERVED.get(offer, frozenset()) if isinstance(offer, str) else offer
    refuse_lacking(name, role, asked, able, offer if isinstance(offer, str) else ", ".join(sorted(offer)))


def refuse_lacking(name: str, who: str, asked: Collection[str], able: Collection[str], offer: str) -> None:
    """Raise LimbeckError for abilities that a method reads and a model does not serve."""
    for ability in sorted(set(asked) - set(able)):
        raise LimbeckError(
            f"{name or 'this method'} needs {_WORDS[ability]} of {who}, which serves only {offer!r}; "
            f"{_REMEDIES[ability]}."
        )
