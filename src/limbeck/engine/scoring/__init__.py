"""Scoring: the log-probs, logits or hidden states of a model on responses that are already written.

``contexts``   the view that a reader has of a record: the prompt with extra text, followed by the same response tokens
``templates``  the Jinja templates of contexts, filled and checked
``forward``    the forward pass: ragged records to padded rectangles and back; the only place that shifts by one
"""
