"""Runs: started, resumed and finished, each in its folder."""

from __future__ import annotations

import contextlib
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
from ..json_files import read_json_lines
from ..report import write_report
from ..space.explain import explain
from ..space.method import Method
from ..tasks import Task
from ..terminal import screen
from . import inputs as inputs_of
from .build import accelerator_for, check_run, open_session, task_object
from .config import RunConfig
from .console import StatusLine, StepLines, newest_numbers, print_exact_line, progress_bar
from .evaluation import Evaluator
from .export import Result, Swapped, export, result_of
from .loop import Loop
from .messages import RunMessages
from .models.loading import Models
from .notices import notices
from .resumption import lost_lines, rebuilt, recall, refuse_changes, refuse_fewer, refuse_task_of_python
from .session import Session
from .storage import checkpoint, fingerprint
from .storage.atomic import sync, whole_number_in, write_lines
from .storage.run_folder import claimed, clear, folder_of, held, recorded
from .storage.run_log import RunLog, now
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
        method: its value, instead of the name and the arguments in ``config``; it need not be registered.
        models: model objects by role, instead of the paths in ``config``.
        task: a task object, instead of the name in ``config``.
        tokenizer: of model objects, see ``distill``.

    Raises:
        LimbeckError: before any model is loaded where that is possible.
    """
    with claimed(out, overwrite, console):
        value, tasks = check_run(config, method, models, task)
        run = _Run(config, value, tasks, models or {}, out, console, tokenizer=tokenizer)
        if overwrite and run.accelerator.is_main_process:
            clear(out)  # only now, so that the old run is kept where the models cannot be loaded
        return run.start(command)


def resume(
    out: Path,
    *,
    steps: int | None = None,
    command: str = "",
    console: Console | None = None,
    accept_changes: bool = False,
    task: Task | None = None,
) -> Result:
    """Continue a run that was stopped, from its newest checkpoint, as if it had never stopped.

    Args:
        out: the run's folder.
        steps: a new total, to train longer than was asked first.
        command: what the user typed, for the report.
        console: where progress goes.
        accept_changes: go on although data, models, templates or generation settings have changed, or lines of
            ``metrics.jsonl`` are lost. It is written down, and stored responses are written again.
        task: the task object of a run whose task has no name that can be loaded.

    Raises:
        LimbeckError: where the folder holds no run, another process writes into it, a checkpoint is damaged, or what
            the run reads has changed.
    """
    out = folder_of(out)
    task = None if task is None else task_object(task)
    recorded(out)  # before a lock is put into a folder that holds no run
    with held(out, console):
        described = recorded(out)  # another process may have gone on until now
        config, method = rebuilt(out, described, steps)
        refuse_fewer(out, steps)
        if task is None:
            refuse_task_of_python(out, config.task, "in Python, call limbeck.engine.resume(out, task=...)")
        _, tasks = check_run(config, method, None, task)
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
        self.messages = RunMessages(self.console, Watch(compares_rewards(method)))
        with StatusLine(self.console, "loading models") as tell:
            self.session: Session = open_session(
                config, method, tasks, models, self.accelerator, tell, tokenizer=tokenizer
            )
        self.notices = notices(self.session)
        self.messages.warn(self.notices)
        student = self.session.student
        trainable = [p for p in student.scorer.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=config.lr, weight_decay=config.weight_decay)
        self.tensors = {
            role: fingerprint.of_tensors(self.session.policies[role].model)
            for role in sorted({*models, *tensors} & self.session.policies.keys())
        }
        student.scorer, self.optimizer = self.accelerator.prepare(student.scorer, optimizer)
        self.loop = Loop(self.session, self.optimizer)
        self.log = RunLog(out)
        self.ended: str | None = None
        self.evaluator = Evaluator(self.session)

    # ---------------------------------------------------------------- the start

    def start(self, command: str) -> Result:
        """Train from the first step."""
        if self.accelerator.is_main_process:
            self.log.describe(self.session, command, inputs_of.of_run(self.session, self.tensors))
        self._evaluate(0)
        self._begin()
        return self._train(0)

    def _begin(self) -> None:
        """Print what the measurement before the first step shows, and record all notices."""
        if not self.accelerator.is_main_process:
            return
        first = self.evaluator.first_notices(self.session.method)
        self.messages.warn(first)
        teacher = self.evaluator.teacher_accuracy()
        own = {"teacher_accuracy": teacher} if teacher else {}
        self.log.update(notices=[*self.notices, *first], **own)

    def restart(
        self,
        command: str = "",
        changes: Sequence[str] = (),
        lost: Sequence[str] = (),
        inputs: Mapping[str, Any] | None = None,
    ) -> Result:
        """Train from the newest checkpoint; from the first step where there is none.

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
            measured = read_json_lines(self.log.evaluations)
            if measured:
                self._publish(measured[-1])
            else:
                self._evaluate(0)
                self._begin()
            return self._train(0)
        step = self._load(path)
        if changes:  # responses were stored for other prompts, or scored by another model: they are written again
            self.session.state.memory.written.clear()
            self.session.state.memory.skills.clear()
        self.messages.going_on(self.out, step, self.config.steps)
        self._rewind(step, command, [*changes, *lost], inputs)
        return self._train(step)

    def _load(self, path: Path) -> int:
        """Put a checkpoint in place. Returns how many steps it has done."""
        session = self.session
        followers = {role: s.policy.scorer for role, s in session.followers.items()}
        state = checkpoint.load(path, self._module(), self.optimizer.optimizer, session.streams, followers)
        if state.get("objective") != explain(session.method):
            raise LimbeckError(f"{path} is of a run of another method; remove it, and resume from the one before.")
        session.state.memory = recall(path, state, self.accelerator.process_index)
        for name, cursor in state["cursors"].items():
            session.streams[name].cursor = cursor
        if self.accelerator.scaler is not None and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return int(state["step"])

    def _rewind(self, step: int, command: str, changes: Sequence[str], inputs: Mapping[str, Any] | None) -> None:
        """Remove the lines after ``step``, and record what is in force from here on."""
        self.messages.accepted(changes)
        if self.accelerator.is_main_process:
            self.log.rewind(step)
            own = {} if inputs is None else {"inputs": inputs}
            self.log.resumed(self.config.model_dump(mode="json"), command, step, changes=list(changes), **own)

    # ---------------------------------------------------------------- training

    def _train(self, first: int) -> Result:
        config = self.config
        if config.trackers:
            self.accelerator.init_trackers("limbeck", config={"method": config.method, "seed": config.seed})
        with progress_bar(self.console) as bar:
            task = bar.add_task(config.method, total=config.steps, completed=first, note="")
            rows = read_json_lines(self.log.metrics)[:first]
            self.messages.watch.recall(rows)
            lines = StepLines(self.console, config.method, first, config.steps)
            written = sum(whole_number_in(m, "tokens_written") or 0 for m in rows)
            spent = bool(config.token_budget) and written >= config.token_budget
            for step in range(first, config.steps):
                if spent:
                    break
                metrics = self.loop.step(step)
                self._after(step, metrics)
                bar.update(task, advance=1, note=newest_numbers(metrics))
                written += metrics["tokens_written"]
                spent = bool(config.token_budget) and written >= config.token_budget
                last = spent or step + 1 == config.steps
                lines.step(step + 1, metrics, last)
                self._periodic(step + 1, bar, last)
        if config.trackers:
            self.accelerator.end_training()
        return self._finish()

    def _after(self, step: int, metrics: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.log.step(metrics)
        changed = self.messages.after_step(step, metrics, self.loop.failures)
        if changed and self.accelerator.is_main_process:
            self.log.update(warnings=self.messages.watch.warnings)
        if self.config.trackers:
            numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
            self.accelerator.log(numbers, step=step)

    def _periodic(self, done: int, bar: Progress, last: bool) -> None:
        """Evaluation and checkpoint after ``done`` steps."""
        config = self.config
        if last or (config.eval_every and done % config.eval_every == 0):
            numbers = bar.tasks[0].fields["note"]
            if self.evaluator.prompts:
                bar.update(bar.task_ids[0], note="evaluating")
            self._evaluate(done)
            bar.update(bar.task_ids[0], note=numbers)
        if last or (config.save_every and done % config.save_every == 0):
            self._save(done)

    def _evaluate(self, step: int) -> None:
        """Measure on the main process, while the others wait."""
        measured: dict[str, Any] = {}
        if self.evaluator.prompts and self.accelerator.is_main_process:
            what = f"evaluating {'before training' if step == 0 else f'after {step} steps'}"
            # While the progress bar is shown, it is the live line.
            with self._unwrapped(), contextlib.nullcontext() if step else StatusLine(self.console, what):
                if step and not self.console.is_terminal:
                    print_exact_line(self.console, what)
                measured = self.evaluator.measure()
                self.log.evaluated(step, measured)
        self.accelerator.wait_for_everyone()
        self._publish(broadcast_object_list([measured])[0])

    def _publish(self, measured: Mapping[str, Any]) -> None:
        """Let controllers read the held-out entropy. Only runs with ``eval_every`` do: it would be stale in others."""
        if self.config.eval_every and "entropy" in measured:
            self.session.state.memory.numbers["heldout_entropy"] = measured["entropy"]

    def _module(self) -> Any:
        return self.accelerator.unwrap_model(self.session.student.scorer)

    def _unwrapped(self) -> Any:
        """The student without its distributed wrapper: a forward pass of one process must not wait for the others."""
        return Swapped(self.session.student, self._module())

    def _save(self, step: int) -> None:
        memory, rank = self.session.state.memory, self.accelerator.process_index
        memories, stored = gather_object([memory.to_json()]), gather_object([memory.to_tensors(rank)])
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "objective": explain(self.session.method),
                "memory": memories,
                "cursors": {name: stream.cursor for name, stream in self.session.streams.items()},
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            optimizer = self.optimizer.optimizer
            followers = {role: s.policy.scorer for role, s in self.session.followers.items()}
            folder, keep = self.out / "checkpoints", self.config.keep
            self.log.sync()
            everything = {key: x for tensors in stored for key, x in tensors.items()}
            checkpoint.save(folder, step, self._module(), optimizer, state, keep, followers, everything)
        self.accelerator.wait_for_everyone()

    # ---------------------------------------------------------------- the end

    def _finish(self) -> Result:
        """Write the student in Hugging Face format, samples and the report, and print the summary."""
        if self.accelerator.is_main_process:
            with self._unwrapped():
                if self.evaluator.prompts:
                    write_lines(self.log.samples, self.evaluator.samples())
                export(self.session, self.out)
            self.ended = now()
            self.log.update(warnings=self.messages.watch.warnings)
            report = self._report()
            self.log.update(finished=self.ended)  # last: a run that is marked as finished has everything
            self.messages.finished(self.out, report)
        self.accelerator.wait_for_everyone()
        return result_of(self.out)

    def _report(self) -> Path | None:
        """Write the report, as of a run that has finished."""
        report = write_report(self.out, finished=self.ended)
        sync(report)
        sync(self.out)
        return report
