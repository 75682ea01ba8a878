"""A run's session: its configuration, everything that was built from it, and the state that changes while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from accelerate import Accelerator

from ..space.method import Method
from ..tasks import Task
from .config import RunConfig
from .models.following import FollowingModel
from .models.policy import Policy
from .prompt_stream import PromptStream
from .rendering import PromptRenderer
from .storage.memory import Memory


@dataclass
class RunState:
    """State that changes during a run. The loop owns it.

    Attributes:
        memory: values that outlive a step: controllers, skills, stored responses.
    """

    memory: Memory = field(default_factory=Memory)


@dataclass(frozen=True)
class Session:
    """Everything that a run works with. Only ``state`` changes while it runs.

    Attributes:
        config: every setting of the run.
        method: its value.
        accelerator: of Accelerate; device, precision and the processes of the run.
        policies: models by role (``student``, ``teacher`` ...).
        tasks: by name; ``task`` is the run's own, others are those that a method's ``data(name)`` reads.
        streams: training prompts, by the same names.
        renderer: prompts and responses as token ids.
        templates: texts that replace the templates of contexts, by the context's name.
        followers: moving copies of the student, by role.
        reads_verdicts: whether the method reads a verifier's verdicts, so that responses without one are left out.
        notices: sentences for people, from reading the prompts.
        state: what changes during the run.
    """

    config: RunConfig
    method: Method
    accelerator: Accelerator
    policies: dict[str, Policy]
    tasks: Mapping[str, Task]
    streams: Mapping[str, PromptStream]
    renderer: PromptRenderer
    templates: Mapping[str, str] = field(default_factory=dict)
    followers: Mapping[str, FollowingModel] = field(default_factory=dict)
    reads_verdicts: bool = True
    notices: tuple[str, ...] = ()
    state: RunState = field(default_factory=RunState)

    @property
    def student(self) -> Policy:
        """The model that is trained."""
        return self.policies["student"]

    def policy(self, role: str) -> Policy:
        """The model of a role; a role that equals the student at the start of a batch is the student."""
        return self.renderer.policy(role)

    def with_notices(self, sentences: Iterable[str]) -> Session:
        """The same session with notices from reading its prompts."""
        return replace(self, notices=(*self.notices, *sentences))
