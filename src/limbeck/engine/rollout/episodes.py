"""Responses of several turns: the sampling policy and an environment take turns.

Tokens that were sampled stay as they are: a conversation is never rendered again. Between two turns stand the tokens
that the chat template puts there: the end of the assistant's message, the environment's message, and the beginning of
the next reply. These tokens are read and never scored. If an environment fails, only its own episode is dropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import numpy as np

from ...axes.context import Context
from ...axes.source import Sample, Source
from ...errors import LimbeckError, shown
from ...tasks.base import (
    MOST_REWARD,
    Episode,
    EpisodeDied,
    Observation,
    Unjudged,
    half_character,
    judge_response,
)
from ...types import STUDENT, TEACHER, Prompt
from ..models.generate import SamplingPolicy, Written, generate
from ..models.policy import Policy
from ..scoring.contexts import prompt_evidence
from ..scoring.templates import fill
from ..session import Session
from .trajectory import Segment, Trajectory
from .writer import RolloutWriter, limit_of, sampling_author, sampling_policy_of, sampling_prompts

LONGEST = 100_000
"""Most characters of one observation (ours): more take minutes to tokenize and fit into no context window."""


@dataclass
class EpisodeState:
    """One episode in progress.

    Attributes:
        prompt: the problem.
        prompt_ids: tokens of the prompt as the student reads it.
        seen_ids: tokens of the prompt as the sampling policy reads it.
        episode: the environment.
        segments: turns and the tokens between them.
        done: whether the environment has ended it.
        died: the reason why it broke off; empty: it did not.
        truncated: whether the last turn was cut at its limit.
        correct: the environment's last verdict.
        feedback: the environment's feedback texts.
    """

    prompt: Prompt
    prompt_ids: list[int]
    seen_ids: list[int]
    episode: Episode
    segments: list[Segment] = field(default_factory=list)
    done: bool = False
    died: str = ""
    truncated: bool = False
    correct: bool = False
    feedback: list[str] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        """Token ids that the sampling policy reads next."""
        return self.seen_ids + [i for p in self.segments for i in p.ids]

    def act(self, written: Written, author: int, scored: bool, policy: Policy) -> None:
        """Add one turn, and the environment's answer to it."""
        try:
            observation = checked_observation(self.episode.step(policy.text(written.ids)))
        except LimbeckError:
            raise
        except (Exception, SystemExit) as e:  # any failure of the environment's code ends this episode only
            self.done, self.died = True, failure_of(e)
            return
        self.segments.append(Segment(written.ids, written.logp, author, scored, float(observation.reward)))
        self.correct, self.truncated = observation.correct, written.truncated
        self.feedback += [observation.feedback] if observation.feedback else []
        self.done = observation.done
        if not observation.done:
            self.segments.append(
                Segment(
                    between(policy, observation, written.ids, self.prompt),
                    None,
                    author,
                    scored=False,
                    said=observation.text,
                )
            )

    def row(self) -> Trajectory:
        """The finished episode; it has at least one turn, which may be empty."""
        segments = (
            self.segments
            if any(p.scored for p in self.segments)
            else [*self.segments, Segment([], [], STUDENT, reward=0.0)]
        )
        while not segments[-1].scored:  # the last observation has no reply
            segments = segments[:-1]
        feedback = "\n".join(self.feedback) or None
        return Trajectory(
            self.prompt, self.prompt_ids, tuple(segments), self.truncated or not self.done, self.correct, feedback
        )


def write_episodes(
    source: Sample, writer: RolloutWriter, prompts: Sequence[Prompt], policy: SamplingPolicy | None = None
) -> list[list[Trajectory]]:
    """``n`` episodes a prompt, grouped by prompt, all played in step, so that every turn is one batch of generation.

    Args:
        source: the sampling policy, the number of episodes and of turns.
        writer: of the batch; its ``failures`` take the reasons of episodes that broke off, which are left out.
        prompts: of the episodes.
        policy: samples in place of the source's own.
    """
    session, sampling = writer.session, policy or sampling_policy_of(source, writer.session)
    student, limit = session.policies["student"], limit_of(source, writer)
    turns = int(source.turns.now(writer.step, writer.numbers)) if source.episodic else session.config.episode_turns
    repeated = [p for p in prompts for _ in range(source.n)]
    states = [
        EpisodeState(p, session.renderer.prompt_ids(p), ids, _open(session, p, source.retry))
        for p, ids in zip(repeated, sampling_prompts(source, session, repeated), strict=True)
    ]
    try:
        if source.start is not None:
            _replay(source, source.start, writer, prompts, states)
        room = min(p.context for p in session.policies.values())
        for _ in range(max(1, turns)):
            active = [s for s in states if not s.done and len(s.ids) + limit <= room]
            if not active:
                break
            texts = generate(sampling, [s.ids for s in active], limit, session.config.generate_batch)
            for state, text in zip(active, texts, strict=True):
                state.act(text, sampling_author(source), True, student)
    finally:
        for state in states:
            with contextlib.suppress(Exception):  # a failure to close changes nothing in the batch
                state.episode.close()
    writer.failures.died.extend(s.died for s in states if s.died)
    rows = [None if s.died else s.row() for s in states]
    return [[r for r in rows[i : i + source.n] if r is not None] for i in range(0, len(rows), source.n)]


def _open(session: Session, prompt: Prompt, retry: Context | None) -> Episode:
    """The task's episode, or a conversation about one answer, where the source says what comes between the turns."""
    task: Any = session.tasks["task"]
    if "episodes" not in task.serves:
        if retry is None:
            raise LimbeckError(
                f"{task.name!r} is answered in one turn, but the method plays several; give a task with episodes, or "
                "say with sample(retry=...) what comes between the turns."
            )
        return _Conversation(
            task, prompt, session.templates.get(retry.name, retry.block), retry.name, session.config.verify_seconds
        )
    try:
        episode: Episode = task.open(prompt)
        if not callable(getattr(episode, "step", None)) or not callable(getattr(episode, "close", None)):
            raise EpisodeDied(f"open gave {shown(episode)}, which has no step and close")
    except LimbeckError:
        raise
    except (Exception, SystemExit) as e:
        return _BrokenEpisode(e)
    return episode


def failure_of(e: BaseException) -> str:
    """The reason why an episode broke off, as one clause."""
    if isinstance(e, EpisodeDied):
        return e.reason
    if isinstance(e, Unjudged):
        return f"its answer was not judged: {e.reason}"
    first = str(e).strip().split("\n")[0][:200]
    return f"{type(e).__name__}: {first}" if first else type(e).__name__


def checked_observation(observation: object) -> Observation:
    """The environment's answer, if it is an ``Observation`` with usable fields.

    Raises:
        EpisodeDied: it is no observation, or one of its fields has a wrong type or value.
    """
    if not isinstance(observation, Observation):
        raise EpisodeDied(f"step gave {shown(observation)} instead of an Observation")
    if not isinstance(observation.reward, Real) or not abs(float(observation.reward)) < MOST_REWARD:
        raise EpisodeDied(f"its reward was {shown(observation.reward)}")
    for name, flag in (("done", observation.done), ("correct", observation.correct)):
        if not isinstance(flag, bool | np.bool_):
            raise EpisodeDied(f"its {name} was {shown(flag)} instead of true or false")
    for name, value in (("text", observation.text), ("role", observation.role), ("feedback", observation.feedback)):
        if not isinstance(value, str) and not (name == "feedback" and value is None):
            raise EpisodeDied(f"its {name} was {shown(value)} instead of a text")
        if value and half_character(value) is not None:
            raise EpisodeDied(f"its {name} has half a character, which no tokenizer reads")
    if len(observation.text) > LONGEST:
        raise EpisodeDied(f"its text has {len(observation.text):,} characters, more than any model reads")
    return observation


class _BrokenEpisode:
    """An environment that did not start: its first step raises the reason."""

    def __init__(self, reason: BaseException):
        self.reason = reason

    def step(self, text: str) -> Observation:
        """Raise the reason."""
        del text
        raise self.reason

    def close(self) -> None:
        """Do nothing: no resource is held."""


class _Conversation:
    """A single-turn task as a conversation: a template answers each attempt, and an empty answer ends it.

    The reward of each turn is that of its own verdict.
    """

    def __init__(self, task: Any, prompt: Prompt, template: str, name: str, seconds: float):
        self.task, self.prompt, self.template, self.name, self.seconds = task, prompt, template, name, seconds

    def step(self, text: str) -> Observation:
        """Judge an attempt."""
        verdict = judge_response(self.task, self.prompt, text, self.seconds)
        known: Mapping[str, Any] = {
            **prompt_evidence(self.prompt),
            "reply": text,
            "correct": verdict.correct,
            "reward": verdict.reward,
            "feedback": verdict.feedback or "",
        }
        answer = fill(self.template, known, self.name)
        return Observation(answer, not answer, verdict.reward, verdict.correct, verdict.feedback)

    def close(self) -> None:
        """Do nothing: no resource is held."""


def _replay(
    source: Sample, start: Source, writer: RolloutWriter, prompts: Sequence[Prompt], states: list[EpisodeState]
) -> None:
    """Play the first turns of the episodes of ``start`` again: all but the last ``1 + back``, of those that succeeded.

    They are read and not scored. Where the stored episode failed, the new one starts from its beginning.
    """
    back = int(source.back.now(writer.step, writer.numbers))
    record = replace(writer, name=f"{writer.name} start").write(start, prompts)
    spans, turns_B = record.tokens_U, record.turns_B
    first = {record.prompts_B[members[0]].id: members[0] for members in record.sequences_G}
    student = writer.session.policies["student"]
    for state in states:
        b = first.get(state.prompt.id)
        turns = turns_B[b] if b is not None and bool(record.correct_B[b]) else range(0)
        for u in turns[: max(0, len(turns) - 1 - back)]:
            if not state.done:
                ids, logp = record.token_N[spans[u]].tolist(), record.rollout_logp_N[spans[u]].tolist()
                state.act(Written(ids, logp, False), TEACHER, False, student)


def between(policy: Policy, observation: Observation, written: list[int], prompt: Prompt | None = None) -> list[int]:
    """The tokens between a reply and the next one: the rest of its message, the observation, the next opening.

    Args:
        policy: the model in whose chat format the episode is played.
        observation: the environment's answer.
        written: the reply; if it ends with an end token, the end that the template writes is left out.
        prompt: of the episode, with the variables of its chat template.
    """
    prompt = prompt or Prompt("", ())
    try:
        ids = policy.chat.between(prompt, {"role": observation.role, "content": observation.text})
    except LimbeckError:  # few templates accept other roles than user and assistant
        ids = policy.chat.between(prompt, {"role": "user", "content": observation.text})
    ended = bool(written) and written[-1] in policy.eos
    return ids[1:] if ended and ids and ids[0] in (written[-1], policy.chat.end) else ids
