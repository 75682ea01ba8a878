"""The space of methods: what a method is, and what can be said about one without running it.

``term``        Term (signal, surrogate, where, weight) and weighted sums of terms
``method``      Method: sources, terms and a reduction; everything that its value implies (models, contexts, checks)
``abilities``   what a model serves (text, sampled log-probs, top-k, logits) against what a method reads
``group_size``  refusal of methods that compare responses where a run writes only one a prompt
``registry``    methods by name: the decorator ``@method``, recipes, arguments
``pipeline``    stages in a row, and pipelines by name
``explain``     explain, diff and cite
``taxonomy``    where a method stands on the axes of the survey

Nothing here computes a loss (``loss``), runs a model (``engine``) or names a published method (``methods``).
The parts that
terms and sources are made of are in ``axes``.
"""
