"""Statistics of evaluations: pass@k, confidence intervals, paired differences, and where feedback objects.

Pure functions of numbers and arrays, all of them public. ``engine.evaluation`` runs the model and ``report`` draws the
results.
"""

from limbeck.evaluate.feedback_alignment import localisation, objection
from limbeck.evaluate.intervals import (
    Interval,
    mean_interval,
    paired_interval,
    ratio_interval,
    student_quantile,
    wilson,
    wilson_difference,
)
from limbeck.evaluate.paired import PairCounts, pair_counts, paired_difference
from limbeck.evaluate.passk import pass_at_k

__all__ = [
    "Interval",
    "PairCounts",
    "localisation",
    "mean_interval",
    "objection",
    "pair_counts",
    "paired_difference",
    "paired_interval",
    "pass_at_k",
    "ratio_interval",
    "student_quantile",
    "wilson",
    "wilson_difference",
]
