"""The records that all parts of the package exchange: ``Prompt``, ``Rollout`` and ``Scores``.

``rollout``  a problem, and responses to problems with their authors, log-probs and rewards
``scores``   the log-probs, top-k, logits or hidden states of a model on the scored tokens of a rollout

Shape legend (the suffix of a name gives its axes, in the whole package)::

    L  all tokens of a record          N  scored tokens (those a loss may read)
    U  turns                           B  sequences           G  groups
    V  vocabulary                      K  top-k support       H  hidden width
    B1 offsets, B + 1 entries

Records are ragged: flat axes joined by integer maps, so no padding exists that could leak into a loss. Every step makes
new records and changes none.
"""

from .rollout import AUTHORS, DATA, STUDENT, TEACHER, Prompt, Rollout, concatenate, text_of
from .scores import Dense, Head, Hidden, Mixture, Sampled, Scores, TopK

__all__ = [
    "AUTHORS",
    "DATA",
    "STUDENT",
    "TEACHER",
    "Dense",
    "Head",
    "Hidden",
    "Mixture",
    "Prompt",
    "Rollout",
    "Sampled",
    "Scores",
    "TopK",
    "concatenate",
    "text_of",
]
