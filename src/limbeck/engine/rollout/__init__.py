"""Rollouts: prompts become responses with rewards, and the responses of a batch become one record.

``sources``     writes every source of a method; ``derived`` sources made of others, ``episodes`` of several turns
``writer``      the parts that the writers of one batch share: models, limits, the verifier
``trajectory``  one response in segments of one author each, and how several responses become a record

In order: ``sources.write`` writes each source. A writer of new text makes groups of trajectories, and
``trajectory.assemble`` turns them into a ``Rollout``. From there on everything is a ``Rollout``: derived sources select
and join records.
"""
