"""Responses of several turns: the writer and an environment take turns, tokens are never rendered again.

Between two turns stands what the chat template puts there: the end of the assistant's message, the environment's
message, and the beginning of the next reply. Those tokens are read and never scored. An environment that breaks costs
its episode and no more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np

from ...axes.context import Context
from ...axes.source import Sample
from ...errors import LimbeckError, shown
from ...tasks.base import (
    MOST_REWARD,
    Episode,
    EpisodeDied,
    Observation,
    Unjudged,
    half_character,
    judged,
)
from ...types import STUDENT, TEACHER, Prompt
from ..models.generate import SamplingPolicy, Written, generate
from ..models.policy import Policy
from ..scoring.contexts import of_prompt
from ..scoring.templates import fill
from ..session import Session
from .trajectory import Segment, Trajectory
from .writer import Groups, RolloutWriter, author_of, limit_of, sampling_policy_of, seen

LONGEST = 100_000
"""Characters of one observation; tokenizing more takes minutes, and no window holds them."""


@dataclass
class EpisodeState:
    """One episode in progress."""

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
        """What the writer reads next."""
        return self.seen_ids + [i for p in self.segments for i in p.ids]

    def act(self, written: Written, author: int, scored: bool, policy: Policy) -> None:
        """One turn, and what the environment says to it."""
        try:
            said = checked(self.episode.step(policy.text(written.ids)))
        except LimbeckError:
            raise
        except (Exception, SystemExit) as e:  # whatever foreign code does costs its episode and no more
            self.done, self.died = True, reason(e)
            return
        self.segments.append(Segment(written.ids, written.logp, author, scored, float(said.reward)))
        self.correct, self.truncated = said.correct, written.truncated
        self.feedback += [said.feedback] if said.feedback else []
        self.done = said.done
        if not said.done:
            self.segments.append(
                Segment(between(policy, said, written.ids, self.prompt), None, author, scored=False, said=said.text)
            )

    def row(self) -> Trajectory:
        """The finished episode; it always has a turn, if an empty one."""
        segments = (
            self.segments
            if any(p.scored for p in self.segments)
            else [*self.segments, Segment([], [], STUDENT, reward=0.0)]
        )
        while not segments[-1].scored:  # nobody answers the last observation
            segments = segments[:-1]
        feedback = "\n".join(self.feedback) or None
        return Trajectory(
            self.prompt, self.prompt_ids, tuple(segments), self.truncated or not self.done, self.correct, feedback
        )


def played(
    source: Sample, writer: RolloutWriter, prompts: Sequence[Prompt], law: SamplingPolicy | None = None
) -> Groups:
    """``n`` episodes a prompt, all in step, so that every turn is one batch of generation."""
    session = writer.session
    policy, law, limit = (
        session.policies["student"],
        law or sampling_policy_of(source, session),
        limit_of(source, writer),
    )
    turns = int(source.turns.now(writer.step, writer.numbers)) if source.episodic else session.config.episode_turns
    repeated = [p for p in prompts for _ in range(source.n)]
    seats = [
        EpisodeState(p, session.renderer.prompt_ids(p), ids, _open(session, p, source.retry))
        for p, ids in zip(repeated, seen(source, session, repeated), strict=True)
    ]
    try:
        if source.start is not None:
            _replay(source, writer, prompts, seats)
        room = min(p.context for p in session.policies.values())
        for _ in range(max(1, turns)):
            active = [s for s in seats if not s.done and len(s.ids) + limit <= room]
            if not active:
                break
            texts = generate(law, [s.ids for s in active], limit, session.config.generate_batch)
            for seat, text in zip(active, texts, strict=True):
                seat.act(text, author_of(source), True, policy)
    finally:
        for seat in seats:
            with contextlib.suppress(Exception):  # what cannot be given back is the environment's own loss
                seat.episode.close()
    writer.died += [s.died for s in seats if s.died]
    rows = [None if s.died else s.row() for s in seats]
    return [[r for r in rows[i : i + source.n] if r is not None] for i in range(0, len(rows), source.n)]


def _open(session: Session, prompt: Prompt, retry: Context | None) -> Episode:
    """The task's episode, or a conversation about one answer."""
    task: Any = session.tasks["task"]
    if "episodes" not in task.serves:
        if retry is None:
            raise LimbeckError(
                f"{task.name!r} is answered in one turn, but the method plays several; give a task with episodes, or "
                "say what comes between the turns with sample(retry=...)."
            )
        return _Talk(
            task, prompt, session.templates.get(retry.name, retry.block), retry.name, session.config.verify_seconds
        )
    try:
        episode: Episode = task.open(prompt)
        if not callable(getattr(episode, "step", None)) or not callable(getattr(episode, "close", None)):
            raise EpisodeDied(f"open gave {shown(episode)}, which has no step and close")
    except LimbeckError:
        raise
    except (Exception, SystemExit) as e:
        return _Broken(e)
    return episode


def reason(e: BaseException) -> str:
    """Why an episode broke off, as one clause."""
    if isinstance(e, EpisodeDied):
        return e.reason
    if isinstance(e, Unjudged):
        return f"its answer was not judged: {e.reason}"
    first = str(e).strip().split("\n")[0][:200]
    return f"{type(e).__name__}: {first}" if first else type(e).__name__


def checked(said: object) -> Observation:
    """What an environment said, if it can be used.

    Raises:
        EpisodeDied: it is no observation, or one of its fields cannot be what it should be.
    """
    if not isinstance(said, Observation):
        raise EpisodeDied(f"step gave {shown(said)} instead of an Observation")
    if not isinstance(said.reward, Real) or not abs(float(said.reward)) < MOST_REWARD:
        raise EpisodeDied(f"its reward was {shown(said.reward)}")
    for name, flag in (("done", said.done), ("correct", said.correct)):
        if not isinstance(flag, bool | np.bool_):
            raise EpisodeDied(f"its {name} was {shown(flag)} instead of true or false")
    for name, value in (("text", said.text), ("role", said.role), ("feedback", said.feedback)):
        if not isinstance(value, str) and not (name == "feedback" and value is None):
            raise EpisodeDied(f"its {name} was {shown(value)} instead of a text")
        if value and half_character(value) is not None:
            raise EpisodeDied(f"its {name} has half a character, which no tokenizer reads")
    if len(said.text) > LONGEST:
        raise EpisodeDied(f"it said {len(said.text):,} characters, more than any model reads")
    return said


class _Broken:
    """An environment that did not start: its first step says so."""

    def __init__(self, reason: BaseException):
        self.reason = reason

    def step(self, text: str) -> Observation:
        """Raise what happened."""
        del text
        raise self.reason

    def close(self) -> None:
        """Nothing to give back."""


class _Talk:
    """A single-turn task as a conversation: a template answers each attempt, and silence ends it.

    Every turn carries its own verdict's reward.
    """

    def __init__(self, task: Any, prompt: Prompt, template: str, name: str, seconds: float):
        self.task, self.prompt, self.template, self.name, self.seconds = task, prompt, template, name, seconds

    def step(self, text: str) -> Observation:
        """Judge an attempt."""
        verdict = judged(self.task, self.prompt, text, self.seconds)
        known: Mapping[str, Any] = {
            **of_prompt(self.prompt),
            "reply": text,
            "correct": verdict.correct,
            "reward": verdict.reward,
            "feedback": verdict.feedback or "",
        }
        said = fill(self.template, known, self.name)
        return Observation(said, not said, verdict.reward, verdict.correct, verdict.feedback)

    def close(self) -> None:
        """Nothing to give back."""


def _replay(source: Sample, writer: RolloutWriter, prompts: Sequence[Prompt], seats: list[EpisodeState]) -> None:
    """Play the first turns of stored episodes again: all but the last ``1 + back``, where the episode succeeded.

    They are read and not scored. An episode that failed is no start, so the writer begins at the beginning.
    """
    assert source.start is not None
    back = int(source.back.now(writer.step, writer.numbers))
    name, writer.name = writer.name, f"{writer.name} start"
    starts = {g[0].prompt.id: g[0] for g in writer.write(source.start, prompts) if g}
    writer.name = name
    policy = writer.session.policies["student"]
    for seat in seats:
        start = starts.get(seat.prompt.id)
        turns = start.turns if start is not None and start.correct else []
        for segment in turns[: max(0, len(turns) - 1 - back)]:
            if not seat.done:
                seat.act(Written(segment.ids, segment.logp or [], False), TEACHER, False, policy)


def between(policy: Policy, said: Observation, written: list[int], prompt: Prompt | None = None) -> list[int]:
    """The tokens between a reply and the next one: the rest of its message, the observation, the next opening.

    Args:
        policy: in whose chat format the episode is played.
        said: what the environment says.
        written: the reply; the end that the template writes is left out where the reply ended itself.
        prompt: of the episode, with the variables of its chat template.
    """
    prompt = prompt or Prompt("", ())
    try:
        ids = policy.chat.between(prompt, {"role": said.role, "content": said.text})
    except LimbeckError:  # few templates know other roles than these
        ids = policy.chat.between(prompt, {"role": "user", "content": said.text})
    ended = bool(written) and written[-1] in policy.eos
    return ids[1:] if ended and ids and ids[0] in (written[-1], policy.chat.end) else ids
