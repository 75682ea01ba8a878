"""Measures of a student, without training: pass@k, intervals, fidelity to a teacher, where errors lie.

Pure functions of numbers and arrays. Running the model is ``engine.evaluation``; drawing the result is ``report``.
"""

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
