"""Models: loaded, checked, asked for text.

``policy``     a model with its tokenizer in the role that it plays; ``weights`` and ``hub`` find and load it,
               ``checks`` refuse what cannot be trained or read
``chat``       prompts through the chat template; ``written`` whether the template writes all of a conversation,
               ``template_variables`` what it reads
``generate``   responses, with the log-probs under which they were drawn
``following``  moving copies of the student

How a record is scored is in ``scoring``; what a run remembers is in ``storage``.
"""
