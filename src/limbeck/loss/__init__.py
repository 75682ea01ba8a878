"""The loss: from a rollout and what models say about it to one number with a gradient.

``scores``  one micro-batch with the models' scores, on which expressions are evaluated
``terms``   prepares a whole batch (signals, totals), cuts it into micro-batches, and adds up the terms

In order: ``hear`` evaluates every detached signal and total once for a batch; ``Prepared.micro`` cuts out some
groups of it;
``loss`` evaluates the surrogates on the student's live logits, through ``kernels``. The callers are ``engine.loop`` and
``functional.objective``. Nothing here loads a model.
"""
