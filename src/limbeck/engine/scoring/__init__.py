"""Scoring: what a model says about a record that is already written.

``contexts``   the record as a reader sees it: extra text behind the prompt, the response copied behind that
``templates``  the Jinja templates of contexts, filled and checked
``forward``    the forward pass: ragged records to padded rectangles and back; the only place that shifts by one
"""
