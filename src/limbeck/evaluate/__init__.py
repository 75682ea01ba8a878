"""Numbers about a model and how sure one may be of them: intervals, pass@k, fidelity to a teacher."""

from limbeck.evaluate.fidelity import agreement, entropy, kl_forward, kl_reverse, perplexity
from limbeck.evaluate.intervals import (
    Interval,
    mean_interval,
    paired_interval,
    student_quantile,
    wilson,
    wilson_difference,
)
from limbeck.evaluate.passk import pass_at_k, pass_curve

__all__ = [
    "Interval",
    "agreement",
    "entropy",
    "kl_forward",
    "kl_reverse",
    "mean_interval",
    "paired_interval",
    "pass_at_k",
    "pass_curve",
    "perplexity",
    "student_quantile",
    "wilson",
    "wilson_difference",
]
