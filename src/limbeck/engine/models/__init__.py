"""Models: loading, checks, sampling.

``policy``     a model with its tokenizer; ``weights`` and ``hub`` find and load it, ``checks`` refuse models that
               cannot be trained or read
``loading``    all models of a run
``chat``       messages through the chat template; ``written`` checks that the template writes all of them,
               ``template_variables`` lists the variables that it reads
``generate``   responses, with the log-probs under which they were sampled
``following``  moving copies of the student

Scoring a record is in ``scoring``; the files of a run are in ``storage``.
"""
