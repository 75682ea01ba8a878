"""Checks of a method against the task and the models of a run, before a model is loaded."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Collection, Iterator, Mapping

from ..axes.context import WRITTEN, Context
from ..axes.derived_source import Once, Patch, Recast, Select, score_column
from ..axes.leaves import Column, Tagged
from ..axes.reader import Reader
from ..axes.source import Data, Resample, Sample
from ..errors import LimbeckError, nearest
from ..space.group_size import refuse_lone
from ..space.method import Method
from ..space.registry import REGISTRY
from ..space.term import Term
from ..tasks import Task
from ..tasks.base import found
from ..types import Prompt
from .config import RunConfig
from .models import hub
from .scoring.contexts import prompt_evidence
from .scoring.templates import check_names, check_says_something, check_template, read_template, says_the_same

Models = Mapping[str, object]

MOST_RESPONSES = 2**22
"""Largest number of responses in a step, over all processes (ours)."""

LOOKED_AT = 2000
"""Number of training prompts in which a privileged text is searched (ours)."""

_JUDGED = {"reward", "correct", "sibling"}
_REMEDIES = {
    "reward": "give a task with answers or a verifier",
    "responses": "give data with a 'response' in every line",
    "pairs": "give data with 'chosen' and 'rejected' in every line",
}


def data_sources(method: Method) -> list[Data]:
    """The parts of a method's sources that read written responses."""
    return [part for part in method.sources_within if isinstance(part, Data)]


def data_names(method: Method) -> set[str]:
    """Names of the data sets from which a method reads written responses."""
    return {d.name for d in data_sources(method)}


def samples(method: Method) -> list[Sample]:
    """The parts of a method's sources that sample responses."""
    return [part for part in method.sources_within if isinstance(part, Sample)]


def registered_arguments(config: RunConfig) -> Mapping[str, object]:
    """The arguments of the run's method, where it is registered; else none."""
    return REGISTRY[config.method].arguments if config.method in REGISTRY else {}


def reads_verdicts(method: Method) -> bool:
    """Whether a method's terms, contexts or sources read a verifier's reward, verdict or feedback."""
    looked_at = {field for context in method.contexts for field in context.fields} | method.fields
    parts = method.sources_within
    judged = [v for p in parts if isinstance(p, Select) for v in p.by]
    judged += [p.until for p in parts if isinstance(p, Resample)] + [p.when for p in parts if isinstance(p, Patch)]
    judged += [v for p in parts if isinstance(p, Recast) for v in (p.keep, *(v for _, v in p.carry)) if v is not None]
    return bool((looked_at | {f for v in judged for f in v.fields}) & (_JUDGED | {"feedback"}))


# ---------------------------------------------------------------- tasks


def check_served(config: RunConfig, method: Method, tasks: Mapping[str, Task]) -> None:
    """Refuse a task that lacks what the method reads or shows.

    Raises:
        LimbeckError: naming the method, the missing part and the remedy.
    """
    wanted = [(d.name, "pairs" if d.pairs else "responses") for d in data_sources(method)]
    shown = {field for context in method.contexts for field in context.fields}
    if {"reward", "correct"} & (method.fields | shown):
        wanted.append(("task", "reward"))
    for which, service in wanted:
        if service not in tasks[which].serves:
            offers = ", ".join(sorted(tasks[which].serves)) or "prompts only"
            some = getattr(tasks[which], "lacking", {}).get(service)  # other records have it
            raise LimbeckError(
                f"{config.method} reads {service} from {tasks[which].name!r}, which serves {offers}"
                f"{f' ({some})' if some else ''}; {_REMEDIES[service]}."
            )
    _check_datasets(config, method)
    _check_size(config, method)
    _check_columns(config, method, tasks["task"])
    _check_turns(config, method, tasks["task"])
    _check_evidence(config.method, method, tasks["task"])
    _check_templates(config, method, tasks["task"])


def _check_datasets(config: RunConfig, method: Method) -> None:
    """Refuse data sets that the method does not read."""
    names = data_names(method) - {"task"}
    for name in config.datasets:
        if name not in names:
            reads = f"it reads {', '.join(sorted(names))}" if names else "it reads the task alone"
            raise LimbeckError(
                f"datasets.{name} is not a data set that {config.method} reads{nearest(name, names)}; {reads}, so "
                "leave it out."
            )


def _check_size(config: RunConfig, method: Method) -> None:
    """Refuse a batch with more responses than a machine can hold."""
    for sample in samples(method):
        if config.prompts * sample.n > MOST_RESPONSES:
            raise LimbeckError(
                f"prompts={config.prompts} with {sample.n} responses to each are {config.prompts * sample.n:,} "
                f"responses a step, more than {MOST_RESPONSES:,}; give fewer."
            )


def _check_columns(config: RunConfig, method: Method, task: Task) -> None:
    """Refuse columns that neither a source makes nor every prompt of the task has."""
    parts = method.sources_within
    made = {name for part in parts if isinstance(part, Recast) for name, _ in part.carry}
    made |= {name for c in method.contexts for name in (c.column, *(ask.name for ask in c.asks))}
    made |= {score_column(part.score) for part in parts if isinstance(part, Once) and part.score is not None}
    nodes = [node for _, term in method.parts for v in term.exprs for node in v.walk()]
    asked = {node.name for node in nodes if isinstance(node, Column)}
    for name in sorted(asked - made):
        raise LimbeckError(
            f"{config.method} reads the column {name!r}, which none of its sources makes and {task.name!r} cannot "
            "give; make it in a source (recast(..., carry=...)), or leave it out."
        )
    tagged = {
        node.column for _, term in method.parts for v in term.exprs for node in v.walk() if isinstance(node, Tagged)
    }
    for name in sorted(tagged if data_names(method) <= {"task"} else ()):
        lacks = next((prompt for prompt in _looked_at(task) if name not in prompt.columns), None)
        if lacks is not None:
            raise LimbeckError(
                f"{config.method} reads the column {name!r} of every prompt, but prompt {lacks.id!r} of {task.name!r} "
                "has none; add it to the data."
            )


def _check_turns(config: RunConfig, method: Method, task: Task) -> None:
    """Refuse episodes of several turns where the task has no environment and the source no retry between turns."""
    parts = [p for p in samples(method) if p.episodic]
    if "episodes" not in task.serves and any(p.retry is None for p in parts):
        remedy = ", or --set turns=1" if "turns" in registered_arguments(config) else ""
        raise LimbeckError(
            f"{config.method} plays several turns, but {task.name!r} is answered in one; give a task with episodes "
            f"(corridor, calculator, textworld, or retry around this one){remedy}."
        )


def _check_evidence(name: str, method: Method, task: Task) -> None:
    """Refuse contexts that show evidence which the task does not give."""
    for context in sorted(method.contexts, key=str):
        missing = [field for field in context.reads if not _gives(task, field, _answered(context))]
        if missing and (context.enough == "all" or len(missing) == len(context.reads)):
            raise LimbeckError(
                f"{name} shows {' or '.join(missing)} to {_reader_of(context, method)} (context {context.name!r}), but "
                f"{task.name!r} gives none; {_remedy(task, missing[0])}, or take another context."
            )


def _reader_of(context: Context, method: Method) -> str:
    """The reader of a context in words: ``its student`` where it trains or samples with it, else ``its teacher``."""
    trained = {c for part in method.sources_within if isinstance(part, Recast) for c in part.given}
    writers = {r for source in method.sources.values() for r, _ in source.needs if context in r.context}
    own = any(reader.weights.of_student for reader in writers)
    return "its student" if context in trained or own else "its teacher"


def _remedy(task: Task, field: str) -> str:
    if field == "feedback":
        return "give a task whose verifier gives feedback"
    if field in _JUDGED:
        return "give a task with answers or a verifier"
    if field == "skill":
        return "take a context with a bank of skills"
    if any(field in prompt.columns for prompt in _looked_at(task)):
        return (
            f"its {field!r} is a column, which every reader may use as a number or a name: text for privileged readers "
            "goes under 'solution', 'hint' or 'step_feedback', or into Prompt.privileged"
        )
    return f"give data with {field!r} in their lines"


def _gives(task: Task, field: str, asked: set[str]) -> bool:
    """Whether a task gives some evidence: by its verifier, the response, or a privileged field of a prompt."""
    if field == "feedback":
        return "feedback" in task.serves
    if field in _JUDGED:
        return "reward" in task.serves
    if field in asked or field in WRITTEN:
        return True
    return any(prompt_evidence(prompt).get(field) for prompt in _looked_at(task))


def _answered(context: Context) -> set[str]:
    """Evidence that comes from models and skill banks instead of the task."""
    return {ask.name for ask in context.asks} | ({"skill"} if context.bank else set())


def _looked_at(task: Task) -> Iterator[Prompt]:
    return (task.train[i] for i in range(min(len(task.train), LOOKED_AT)))


# ---------------------------------------------------------------- contexts


def _check_templates(config: RunConfig, method: Method, task: Task) -> None:
    check_names(method.all_contexts, config.contexts, config.method)

    @functools.cache  # prompts are read only where a template has a variable that not every sequence has
    def known() -> frozenset[str]:
        return frozenset({"solution"}).union(*(prompt.privileged for prompt in _looked_at(task)))

    for context in sorted(method.all_contexts, key=str):
        given = config.contexts.get(context.name)
        template = context.block if given is None else read_template(context.name, given)
        check_template(context, template, known)
        if given is not None and context in method.contexts:
            check_says_something(context, template)
        for ask in context.questions:
            check_template(context, ask.question, known)


def lacking(method: Method, task: Task) -> list[str]:
    """Notices about prompts without the evidence that a context shows; their reader sees the plain prompt."""
    notes = []
    for context in sorted(method.contexts, key=str):
        fields = [f for f in context.reads if f not in _answered(context) and f not in WRITTEN]
        if context.enough != "all" or not fields:
            continue
        lack = [not all(prompt_evidence(prompt).get(f) for f in fields) for prompt in _looked_at(task)]
        if any(lack):
            notes.append(
                f"note: {sum(lack)} of {len(lack)} training prompts have no {' and '.join(map(repr, fields))}; there "
                f"the reader of context {context.name!r} sees the plain prompt."
            )
    return notes


def same_for_all(method: Method, blocks: Mapping[str, str]) -> list[str]:
    """Notices about templates of the run that are the same text for every problem."""
    return [
        f"note: contexts.{c.name} uses no variable of the problem, so its reader sees the same text on every one."
        for c in sorted(method.all_contexts, key=str)
        if c.name in blocks and says_the_same(c, blocks[c.name])
    ]


# ---------------------------------------------------------------- models


def check_trackers(config: RunConfig) -> None:
    """Refuse a tracker that is not installed, which Accelerate alone would leave out without a word."""
    for name in config.trackers:
        if importlib.util.find_spec(name) is None:
            raise LimbeckError(f"trackers={name!r}: it is not installed; run `pip install {name}`, or leave it out.")


def check_models(config: RunConfig, method: Method, models: Models, later: Collection[str] = ()) -> None:
    """Refuse a method with a missing model, or whose targets all equal the student (zero gradient).

    Args:
        config, method: of the run.
        models: objects by role, which replace the names in the configuration.
        later: roles whose model does not exist yet and is not looked for.

    Raises:
        LimbeckError: naming the role and the remedy.
    """
    refuse_lone(method)
    _check_others(config, method)
    method.validate(**dict.fromkeys({*config.named_roles, *models}, "model"))
    for role in ("student", "teacher", "ref"):
        name = getattr(config, role)
        if name and role not in models and role not in later and (role != "ref" or role in method.roles):
            hub.refuse_absent_model(role, name)
    for role, name in config.others.items():
        if found(name, "file"):
            raise LimbeckError(f"others.{role}={name!r} is a file; give a model folder, or a hub name.")
        hub.refuse_absent_model(f"others.{role}", name)
    _refuse_silence(config, method, models)


def _check_others(config: RunConfig, method: Method) -> None:
    """Refuse further models that the method does not read, or that have a setting of their own."""
    own = {"student", "teacher", "ref"}
    free = method.others
    for role in config.others:
        if role in own:
            raise LimbeckError(f"others.{role}: the {role} has a setting of its own; give {role}=... (--{role}).")
        if role not in free:
            reads = f"it reads {', '.join(free)}" if free else "it reads no further models"
            raise LimbeckError(
                f"others.{role} is not a model that {config.method} reads{nearest(role, free)}; {reads}, so leave it "
                "out."
            )


def _refuse_silence(config: RunConfig, method: Method, models: Models) -> None:
    """Refuse a method whose targets all equal the student in its own prompt: its gradient is zero at the start."""
    same = {"init", *(["ref"] if "ref" not in models and _same(config.ref, config.student) else [])}
    if "teacher" in models:
        same |= {"teacher"} if models["teacher"] is models.get("student") else set()
    elif "student" not in models and config.teacher and not config.teacher_template:
        same |= {"teacher"} if _same(config.teacher, config.student) else set()
    if not all(_silent(term, same, method) for _, term in method.parts):
        return
    views = sorted({str(r) for _, term in method.parts for r in _targets(term, method)})
    raise LimbeckError(
        f"{config.method} reads only {', '.join(views)}, and that is the student itself in its own prompt "
        f"(student={config.student!r}), so there is nothing to learn; give another teacher, or a context that shows it "
        "more."
    )


def _same(name: str | None, student: str) -> bool:
    """Whether a model is the student itself, by its folder or name; a reference without a name is.

    ``embedded`` is a different model in each role.
    """
    if name is None or name == student:
        return name != "embedded"
    here, there = found(name, "folder"), found(student, "folder")
    return here is not None and there is not None and here.resolve() == there.resolve()


def _targets(term: Term, method: Method) -> list[Reader]:
    """The readers with which a term compares the student: its views, and those whose log-probs its source stores."""
    columns = {node.name for v in term.exprs for node in v.walk() if isinstance(node, Column)}
    kept = [part.score for part in method.sources_within if isinstance(part, Once)]
    scored = [reader for reader in kept if reader is not None and score_column(reader) in columns]
    return [reader for reader, _ in term.needs if not reader.is_policy] + scored


def _silent(term: Term, same: set[str], method: Method) -> bool:
    """Whether a term compares the student only with itself."""
    views = _targets(term, method)
    judged = any({"reward", "correct", "label"} & v.fields for v in term.exprs)
    return bool(views) and not judged and all(_shows_nothing(reader, same) for reader in views)


def _shows_nothing(reader: Reader, same: set[str]) -> bool:
    own = reader.role in same or reader.weights.from_run
    return own and reader.tau == 1 and not any(context.block for context in reader.context)
