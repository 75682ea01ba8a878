"""Abilities: what a model serves, what a method reads from it, and the refusal where the two do not meet."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ..errors import LimbeckError, expect

CARRIERS: dict[str, frozenset[str]] = {
    "text": frozenset({"text"}),
    "sampled": frozenset({"sampled"}),
    "topk": frozenset({"topk"}),
    "dense": frozenset({"sampled", "topk", "at", "dense"}),
    "model": frozenset({"sampled", "topk", "at", "dense", "text"}),
}
"""What each carrier serves. Abilities are sets, not a chain: top-k ids do not hold the sampled token's log-prob."""

_REMEDIES = {
    "dense": "use a method that reads sampled log-probs (opd instead of gkd or opd_full), pass top_k=..., or host the "
    "model so that it serves logits or hidden states",
    "at": "host the model, or have it score the entries that the student chose",
    "topk": "ask the server for its top log-probs, or host the model",
    "sampled": "have the server score the sampled tokens, or use a method that reads top-k (opd_full(top_k=...))",
    "text": "give a model that can generate",
}


# ---------------------------------------------------------------- meeting the models


def refuse_absent(name: str, roles: Mapping[str, frozenset[str]], absent: Sequence[str]) -> None:
    """Raise where models that a method reads are missing.

    Args:
        name: of the method; empty for one without a name.
        roles: the abilities that the method asks of each role.
        absent: roles that were not given.
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
    """Raise where a role serves less than the method of that name reads from it."""
    expect(f"what {role} serves", offer, (str, frozenset, set), f"give one of {', '.join(CARRIERS)}")
    able = CARRIERS.get(offer, frozenset()) if isinstance(offer, str) else offer
    refuse_lacking(name, role, asked, able, offer if isinstance(offer, str) else ", ".join(sorted(offer)))


def refuse_lacking(name: str, who: str, asked: Collection[str], able: Collection[str], offer: str) -> None:
    """Raise where abilities are asked that a carrier has not."""
    for ability in sorted(set(asked) - set(able)):
        raise LimbeckError(
            f"{name or 'this method'} reads {ability} from {who}, which serves only {offer!r}: {_REMEDIES[ability]}."
        )
