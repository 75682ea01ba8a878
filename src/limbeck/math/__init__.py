"""Mathematics on plain tensors: divergences and statistics of next-token distributions, with their gradients.

``divergence``  f-divergences with their gradients; ``composed`` holds mixtures and clipped forms
``statistic``   log-prob, entropy and distances, in the form that ``kernels`` evaluates tile by tile
``autograd``    the gradient of a function of a row that has no closed form

The functions take tensors only; batches, readers and methods are defined in other folders.
"""
