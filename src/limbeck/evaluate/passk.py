"""pass@k: the chance that at least one of k samples is correct, estimated from n >= k samples.

The estimator is that of Chen et al. 2021 (arXiv:2107.03374, section 2.1); arXiv:2504.13837 uses it to compare a model
before and after reinforcement learning.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import LimbeckError


def pass_at_k(n: npt.ArrayLike, c: npt.ArrayLike, k: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Unbiased pass@k, ``1 - C(n - c, k) / C(n, k)``, as ``1 - prod_{j = n-c+1}^{n} (1 - k/j)``.

    The product form needs no binomial coefficient and so never overflows.

    Args:
        n: int, samples drawn for a problem.
        c: int, how many of them are correct.
        k: int, how many samples a user may draw. The three broadcast against each other.

    Returns:
        float64 probabilities in the broadcast shape.

    Raises:
        LimbeckError: unless ``0 <= c <= n`` and ``1 <= k <= n`` everywhere.
    """
    total, correct, draws = np.broadcast_arrays(*(np.asarray(x, dtype=np.int64) for x in (n, c, k)))
    if ((correct < 0) | (correct > total)).any():
        raise LimbeckError("c must lie between 0 and n, the number of samples of a problem; check the counts.")
    if ((draws < 1) | (draws > total)).any():
        raise LimbeckError("k must lie between 1 and n, the number of samples of a problem; lower k.")
    # Factor i of the product has j = n - i and is kept while i < c. Where n - c < k one of them has j = k and is zero.
    offset = np.arange(int(correct.max(initial=0)), dtype=np.int64)
    j = np.maximum(total[..., None] - offset, 1)
    factors = np.where(offset < correct[..., None], 1.0 - draws[..., None] / j, 1.0)
    return np.asarray(1.0 - factors.prod(axis=-1))
