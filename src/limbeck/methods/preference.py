"""Learning from preferences."""

from __future__ import annotations

from ..axes import contrast, group_mean, label, pairs, ref
from ..errors import LimbeckError
from ..space.method import Method
from ..space.registry import method
from ..space.term import Term


@method(paper="arXiv:2305.18290", title="DPO")
def dpo(beta: float = 0.1) -> Method:
    r"""Direct preference optimisation.

    .. math:: L = -\log\sigma\Big(\beta\log\frac{\pi_\theta(y_w)}{\pi_{ref}(y_w)}
              - \beta\log\frac{\pi_\theta(y_l)}{\pi_{ref}(y_l)}\Big)

    The loss is a mean over pairs, and log-probs of sequences are sums over tokens. It is a softmax over two members
    with temperature 1/beta.

    Args:
        beta: strength of the reference; 0.1 (paper).
    """
    if not beta > 0:
        raise LimbeckError(f"dpo(beta={beta}): beta must be positive; the paper uses 0.1.")
    return Method(pairs(), Term(label, contrast(tau=1 / beta, base=ref)), group_mean)
