"""Pure functions of tensors, without any type of this library.

``divergence``  f-divergences with their gradients; ``composed`` mixtures and clipped ones of them
``statistic``   log-probs, entropy and distances as rows that ``kernels`` can evaluate
``autograd``    the gradient of a row function that has no closed form
"""
