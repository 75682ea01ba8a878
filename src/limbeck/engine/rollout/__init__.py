"""Rollouts: prompts become responses with rewards, and responses become one record.

``sources``     writes every source of a method; ``derived`` those made of others, ``episodes`` those of several turns
``behavior``      what the writers of one batch share: the models, the limits, the verifier
``trajectory``  one response in segments (who wrote which tokens), and how several become a record

In order: ``sources.write`` calls a writer for each source, which returns groups of trajectories;
``trajectory.assemble`` makes
a ``Rollout`` of them, and nothing goes back.
"""
