"""Losses on plain tensors, for training loops outside of Limbeck: ``lb.objective(method)(logits, ...)``.

``objective``  the callable; ``memory`` the numbers that it keeps between calls
``arguments``  reads and checks what is given; ``scores`` the logits, hidden states or log-probs among it
``labels``     shifts Hugging Face labels to the positions that they score
``rows``       turns rectangles ``[B, T]`` into the ragged records that ``loss`` works on
``finite``     refuses NaN and infinity, but only in values that the method uses

The loss itself is in ``loss``; this folder converts arguments to its types and back.
"""
