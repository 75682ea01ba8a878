"""Statistics of logits in bounded memory, with closed-form gradients: the full ``[N, V]`` logits never exist at once.

``tiles``  log-probs, entropies and divergences of hidden states with a head, some rows at a time

Tests compare them with the plain functions of ``math``.
"""
