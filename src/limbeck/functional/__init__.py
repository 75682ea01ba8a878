"""Losses on plain tensors, for other people's training loops: ``lb.objective(method)(logits, ...)``.

``objective``  the callable; ``memory`` what it remembers between calls
``arguments``  reads and checks what is given; ``scores`` the logits, hidden states or log-probs among it
``labels``     shifts Hugging Face labels to the positions that they score
``rows``       turns rectangles ``[B, T]`` into the ragged records that ``loss`` works on
``finite``     refuses NaN and infinity, but only in values that the method uses

The loss itself is in ``loss``; this folder only translates.
"""
