"""Numbers about a model and how sure one may be of them: intervals, pass@k, fidelity to a teacher, where it objects."""

from limbeck.evaluate.fidelity import agreement, entropy, kl_forward, kl_reverse, perplexity
from limbeck.evaluate.intervals import (
    Interval,
    mean_interval,
    paired_interval,
    ratio_interval,
    student_quantile,
    wilson,
    wilson_difference,
)
from limbeck.evaluate.localisation import localisation, objection
from limbeck.evaluate.paired import PairCounts, pair_counts, paired_difference
from limbeck.evaluate.passk import pass_at_k, pass_curve

__all__ = [
    "Interval",
    "PairCounts",
    "agreement",
    "entropy",
    "kl_forward",
    "kl_reverse",
    "localisation",
    "mean_interval",
    "objection",
    "pair_counts",
    "paired_difference",
    "paired_interval",
    "pass_at_k",
    "pass_curve",
    "perplexity",
    "ratio_interval",
    "student_quantile",
    "wilson",
    "wilson_difference",
]
