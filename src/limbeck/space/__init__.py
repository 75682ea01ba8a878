"""The space of methods: the definition of a method, and everything that follows from its value without running it.

``term``        Term (signal, surrogate, where, weight) and weighted sums of terms
``method``      Method: sources, terms and a reduction; the models, contexts and checks that follow from them
``abilities``   the abilities that a method reads (text, sampled log-probs, top-k, logits) against those of a model
``group_size``  refusal of methods that compare responses in runs that write only one response per prompt
``registry``    methods by name: the decorator ``@method``, recipes and their arguments
``pipeline``    sequences of stages, and pipelines by name
``explain``     explain, diff and cite
``taxonomy``    the place of a method on the axes of the survey

Nothing here computes a loss (``loss``), runs a model (``engine``) or names a published method (``methods``). The parts
of terms and sources are in ``axes``.
"""
