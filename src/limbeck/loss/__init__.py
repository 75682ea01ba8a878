"""The loss: from a rollout and the models' scores of it to one number with a gradient.

``batch``   a batch: a rollout with the scores of every reader, on which expressions are evaluated
``terms``   prepares a whole batch (signals, denominators), cuts it into micro-batches, and adds up the terms

In order: ``prepare`` evaluates every signal without gradient and counts every denominator, once for a batch.
``Prepared.micro`` cuts out some groups. ``loss`` evaluates the surrogates on the student's live scores, through
``kernels``. The callers are ``engine.loop`` and ``functional.objective``. Nothing here loads a model.
"""
