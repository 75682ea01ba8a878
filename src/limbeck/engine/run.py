"""Runs: a folder in, a folder out. Starting, resuming, finishing."""

from __future__ import annotations

import contextlib
import importlib.util
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from ..errors import LimbeckError
from ..report import load_run, summary_table, write_report
from ..space.explain import explain
from ..space.method import Method
from ..tasks import Task
from ..terminal import screen
from . import inputs as inputs_of
from .build import (
    Models,
    Session,
    accelerator_for,
    build_method,
    notices,
    open_session,
    prepare_tasks,
)
from .checks import check_models
from .config import RunConfig
from .evaluation import Evaluator
from .export import Result, Swapped, export
from .loop import Loop
from .resumption import lost_lines, rebuilt, refuse_changes
from .storage import checkpoint, fingerprint
from .storage.atomic import read_lines, sync, whole, write_lines
from .storage.memory import Memory
from .storage.run_folder import claimed, clear, held, recorded
from .storage.run_log import Log, RunLog, Stage, note, now, progress_bar, say
from .watch import Watch, compares_rewards


def train(
    config: RunConfig,
    out: Path,
    *,
    command: str = "",
    overwrite: bool = False,
    console: Console | None = None,
    method: Method | None = None,
    models: Models | None = None,
    task: Task | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Result:
    """Run a method from its start.

    Args:
        config: what to run.
        out: folder of the run; created.
        command: what the user typed, for the report.
        overwrite: replace a run that the folder holds.
        console: where progress goes; default: standard error.
        method: a value that is not in the registry.
        models: model objects by role, instead of the paths in ``config``.
        task: a task object, instead of the name in ``config``.
        tokenizer: of model objects, see ``distill``.

    Raises:
        LimbeckError: before any model is loaded where that is possible.
    """
    value = method or build_method(config)
    check_trackers(config)
    check_models(config, value, models or {})
    tasks = prepare_tasks(config, value, task)
    with claimed(out, overwrite, console):
        run = _Run(config, value, tasks, models or {}, out, console, tokenizer=tokenizer)
        if overwrite and run.accelerator.is_main_process:
            clear(out)  # only now: models that cannot be loaded cost nobody a run
        return run.start(command)


def resume(
    out: Path,
    *,
    steps: int | None = None,
    command: str = "",
    console: Console | None = None,
    accept_changes: bool = False,
) -> Result:
    """Continue a run that was stopped, from its newest checkpoint, as if it had never stopped.

    Args:
        out: the run's folder.
        steps: a new total, to train longer than was asked first.
        command: what the user typed, for the report.
        console: where progress goes.
        accept_changes: go on though data, models, templates or generation settings are not what they were, or lines of
            ``metrics.jsonl`` are lost. It is written down, and what was stored of earlier responses is written again.

    Raises:
        LimbeckError: where the folder holds no run, another process writes into it, a checkpoint is damaged, or what
            the run reads has changed.
    """
    recorded(out)  # before a lock is put into a folder that is no run's
    with held(out, console):
        described = recorded(out)  # another process may have gone on until now
        config, method = rebuilt(out, described, steps)
        check_trackers(config)
        tasks = prepare_tasks(config, method)
        tensors = [r for r, m in inputs_of.models(described["inputs"]).items() if m.get("by") == "tensors"]
        known = inputs_of.before_loading(config, tasks, tensors)
        refuse_changes(out, inputs_of.changes(config, described["inputs"], known), accept_changes)
        lost = lost_lines(out, config, tasks["task"], accept_changes)
        run = _Run(config, method, tasks, {}, out, console, tensors)
        inputs = inputs_of.of_run(run.session, run.tensors, known)
        changes = inputs_of.changes(config, described["inputs"], inputs)
        refuse_changes(out, changes, accept_changes)
        typed = f"limbeck train --resume {shlex.quote(str(out))}" + (f" --steps {steps}" if steps is not None else "")
        return run.restart(command or typed, changes, lost, inputs)


def check_trackers(config: RunConfig) -> None:
    """Refuse a tracker that is not installed, which Accelerate alone would leave out without a word."""
    for name in config.trackers:
        if importlib.util.find_spec(name) is None:
            raise LimbeckError(f"trackers={name!r}: it is not installed; run `pip install {name}`, or leave it out.")


class _Run:
    """One run in its folder."""

    def __init__(
        self,
        config: RunConfig,
        method: Method,
        tasks: dict[str, Task],
        models: Models,
        out: Path,
        console: Console | None,
        tensors: Collection[str] = (),
        tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        self.config, self.out = config, out
        self.accelerator = accelerator_for(
            config.precision,
            config.cpu,
            log_with=list(config.trackers) or None,
            project_dir=str(out / "trackers"),
        )
        torch.manual_seed(config.seed)  # adapters are initialised at random
        self.console = screen(console, stderr=True, quiet=not self.accelerator.is_main_process)
        with Stage(self.console, "loading models") as tell:
            self.session: Session = open_session(
                config, method, tasks, models, self.accelerator, tell, tokenizer=tokenizer
            )
        self.notices = notices(self.session)
        for sentence in self.notices:
            say(self.console, sentence, "yellow")
        student = self.session.student
        trainable = [p for p in student.scorer.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=config.lr, weight_decay=config.weight_decay)
        self.tensors = {
            role: fingerprint.of_tensors(self.session.policies[role].model)
            for role in sorted({*models, *tensors} & self.session.policies.keys())
        }
        student.scorer, self.optimizer = self.accelerator.prepare(student.scorer, optimizer)
        self.loop = Loop(self.session, self.optimizer)
        self.journal = RunLog(out)
        self.ended: str | None = None
        self._told_of_death = self._told_of_silence = False
        self.watch = Watch(compares_rewards(method))
        self.evaluator = Evaluator(self.session.desk, config.eval_size, config.micro_tokens)

    def start(self, command: str) -> Result:
        """From the first step."""
        if self.accelerator.is_main_process:
            self.journal.describe(self.session, command, inputs_of.of_run(self.session, self.tensors))
        self._evaluate(0)
        self._begin()
        return self._train(0)

    def _begin(self) -> None:
        """Say what the measurement before the first step shows, and write down all that was said."""
        if not self.accelerator.is_main_process:
            return
        first = self.evaluator.first_notices(self.session.method)
        for sentence in first:
            say(self.console, sentence, "yellow")
        teacher = self.evaluator.teacher_accuracy()
        own = {"teacher_accuracy": teacher} if teacher else {}
        self.journal.update(notices=[*self.notices, *first], **own)

    def restart(
        self,
        command: str = "",
        changes: Sequence[str] = (),
        lost: Sequence[str] = (),
        inputs: Mapping[str, Any] | None = None,
    ) -> Result:
        """From the newest checkpoint; from the first step where there is none.

        Args:
            command: as typed.
            changes: of the inputs, which the user has accepted.
            lost: lines that the folder lacks, which the user has accepted.
            inputs: now in force.
        """
        path = checkpoint.latest(self.out / "checkpoints")
        if path is None:
            self.console.print(f"{self.out} has no checkpoint yet: starting from step 0.", highlight=False)
            self._rewind(0, command, changes, inputs)
            measured = read_lines(self.journal.evaluations)
            if measured:
                self._hold(measured[-1])
            else:
                self._evaluate(0)
                self._begin()
            return self._train(0)
        followers = {role: s.policy.scorer for role, s in self.session.followers.items()}
        state = checkpoint.load(path, self._module(), self.optimizer.optimizer, self.session.desk.streams, followers)
        if state.get("objective") != explain(self.session.method):
            raise LimbeckError(f"{path} is of a run of another method; remove it, and resume from the one before.")
        self._recall(path, state)
        step = int(state["step"])
        if changes:  # what was written for other prompts, or scored by another model, is written again
            self.session.desk.memory.written.clear()
            self.session.desk.memory.skills.clear()
        self.console.print(f"continuing {self.out} from step {step}.", highlight=False)
        for name, cursor in state["cursors"].items():
            self.session.desk.streams[name].cursor = cursor
        if self.accelerator.scaler is not None and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self._rewind(step, command, [*changes, *lost], inputs)
        if step >= self.config.steps:
            self.console.print(f"{self.out} has already done its {self.config.steps} steps; --steps N trains longer.")
        return self._train(step)

    def _recall(self, path: Path, state: dict[str, Any]) -> None:
        """This process's memory again."""
        memories = state["memory"]
        rank = self.accelerator.process_index % len(memories)
        self.session.desk.memory = Memory.restored(memories[rank], checkpoint.read_stored(path, state), rank)

    def _rewind(self, step: int, command: str, changes: Sequence[str], inputs: Mapping[str, Any] | None) -> None:
        """Forget what came after ``step``, and write down what is in force from here on."""
        for change in changes:
            self.console.print(f"note: going on although {change}.", style="yellow", highlight=False, markup=False)
        if self.accelerator.is_main_process:
            self.journal.rewind(step)
            own = {} if inputs is None else {"inputs": inputs}
            self.journal.resumed(self.config.model_dump(mode="json"), command, step, changes=list(changes), **own)

    def _module(self) -> Any:
        return self.accelerator.unwrap_model(self.session.student.scorer)

    def _train(self, first: int) -> Result:
        config = self.config
        if config.trackers:
            self.accelerator.init_trackers("limbeck", config={"method": config.method, "seed": config.seed})
        with progress_bar(self.console) as bar:
            task = bar.add_task(config.method, total=config.steps, completed=first, note="")
            rows = read_lines(self.journal.metrics)[:first]
            self.watch.recall(rows)
            log = Log(self.console, config.method, first, config.steps)
            written = sum(whole(m, "tokens_written") or 0 for m in rows)
            spent = bool(config.token_budget) and written >= config.token_budget
            for step in range(first, config.steps):
                if spent:
                    break
                metrics = self.loop.step(step)
                self._after(step, metrics)
                bar.update(task, advance=1, note=note(metrics))
                written += metrics["tokens_written"]
                spent = bool(config.token_budget) and written >= config.token_budget
                last = spent or step + 1 == config.steps
                log.step(step + 1, metrics, last)
                self._periodic(step + 1, bar, last)
        if config.trackers:
            self.accelerator.end_training()
        return self._finish()

    def _after(self, step: int, metrics: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.journal.step(metrics)
        said = self.watch.after(metrics)
        for sentence in said:
            say(self.console, sentence, "yellow")
        if said and self.accelerator.is_main_process:
            self.journal.update(warnings=self.watch.warnings)
        if metrics.get("episodes_died") and not self._told_of_death:
            self._told_of_death = True
            self.console.print(
                f"note: {metrics['episodes_died']} episodes of step {step} were broken off by their environment "
                f"({self.loop.failures.first_death}) and dropped; episodes_died in metrics.jsonl goes on counting.",
                style="yellow",
                highlight=False,
            )
        if metrics.get("verifier_failed") and not self._told_of_silence:
            self._told_of_silence = True
            self.console.print(
                f"note: the verifier judged {metrics['verifier_failed']} responses of step {step} not at all "
                f"({self.loop.failures.first_unjudged}); verifier_failed in metrics.jsonl goes "
                "on "
                "counting.",
                style="yellow",
                highlight=False,
            )
        if self.config.trackers:
            numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
            self.accelerator.log(numbers, step=step)

    def _periodic(self, done: int, bar: Progress, last: bool) -> None:
        """Evaluation and checkpoint after ``done`` steps."""
        config = self.config
        if last or (config.eval_every and done % config.eval_every == 0):
            bar.update(bar.task_ids[0], note="evaluating")
            self._evaluate(done)
        if last or (config.save_every and done % config.save_every == 0):
            self._save(done)

    def _evaluate(self, step: int) -> None:
        """The main process measures; the others wait."""
        measured: dict[str, Any] = {}
        if self.evaluator.prompts and self.accelerator.is_main_process:
            what = f"evaluating {'before training' if step == 0 else f'after {step} steps'}"
            # While the bar is there, it is the live line.
            with self._unwrapped(), contextlib.nullcontext() if step else Stage(self.console, what):
                if step and not self.console.is_terminal:
                    say(self.console, what)
                measured = self.evaluator.measure()
                self.journal.evaluated(step, measured)
        self.accelerator.wait_for_everyone()
        self._hold(broadcast_object_list([measured])[0])

    def _hold(self, measured: Mapping[str, Any]) -> None:
        """What controllers read of an evaluation; of one that is not repeated they would read the first for ever."""
        if self.config.eval_every and "entropy" in measured:
            self.session.desk.memory.numbers["heldout_entropy"] = measured["entropy"]

    def _unwrapped(self) -> Any:
        """The student without its distributed wrapper: one process's forward must not wait for the others."""
        return Swapped(self.session.student, self._module())

    def _save(self, step: int) -> None:
        memory, rank = self.session.desk.memory, self.accelerator.process_index
        memories, stored = gather_object([memory.to_json()]), gather_object([memory.to_tensors(rank)])
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "objective": explain(self.session.method),
                "memory": memories,
                "cursors": {name: stream.cursor for name, stream in self.session.desk.streams.items()},
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            optimizer = self.optimizer.optimizer
            followers = {role: s.policy.scorer for role, s in self.session.followers.items()}
            folder, keep = self.out / "checkpoints", self.config.keep
            self.journal.sync()
            everything = {key: x for tensors in stored for key, x in tensors.items()}
            checkpoint.save(folder, step, self._module(), optimizer, state, keep, followers, everything)
        self.accelerator.wait_for_everyone()

    def _finish(self) -> Result:
        """The student in Hugging Face format, samples, report, summary."""
        report = None
        if self.accelerator.is_main_process:
            with self._unwrapped():
                if self.evaluator.prompts:
                    write_lines(self.journal.samples, self.evaluator.samples())
                export(self.session, self.out)
            self.ended = now()
            self.journal.update(warnings=self.watch.warnings)
            report = self._report()
            self.journal.update(finished=self.ended)  # last: a run that is marked as finished has everything
            if report is not None:
                self._tell(report)
            if self.watch.last:
                say(self.console, self.watch.last, "yellow")
        self.accelerator.wait_for_everyone()
        evaluations = read_lines(self.journal.evaluations)
        before = evaluations[0] if evaluations else None
        after = evaluations[-1] if len(evaluations) > 1 else None
        return Result(self.out, before, after, len(read_lines(self.journal.metrics)), report, self.out / "student")

    def _report(self) -> Path | None:
        """The report, as of a run that has finished."""
        report = write_report(self.out, finished=self.ended)
        sync(report)
        sync(self.out)
        return report

    def _tell(self, report: Path) -> None:
        """What came of the run, for people."""
        self.console.print(summary_table(load_run(self.out)))
        self.console.print(f"student  {self.out / 'student'}\nreport   {report}", highlight=False)
