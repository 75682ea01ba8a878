"""Runs: a folder in, a folder out. Starting, resuming, finishing."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from rich.console import Console
from rich.progress import Progress

from ..errors import LimbeckError, nearest
from ..explain import explain
from ..method import Method
from ..tasks import Task
from ..terminal import as_text, screen
from . import checkpoint, lineage
from .checks import check_models
from .config import RunConfig, checked
from .evaluation import Evaluator
from .files import read_lines, whole, whole_folder, write_lines
from .folder import claimed, clear, recorded
from .log import Journal, note, now, progress_bar
from .loop import Loop
from .setup import Models, Workshop, accelerator_for, build_method, notices, open_workshop, prepare_tasks
from .state import Memory

TRACKERS = ("tensorboard", "trackio", "wandb")


@dataclass(frozen=True)
class Result:
    """What a run leaves.

    Attributes:
        out: its folder.
        before, after: evaluations (see ``evaluations.jsonl``), or None.
        steps: optimiser batches done.
        report: the HTML report.
        student: the trained student, a Hugging Face folder.
    """

    out: Path
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    steps: int
    report: Path | None
    student: Path


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

    Raises:
        LimbeckError: before any model is loaded where that is possible.
    """
    value = method or build_method(config)
    _check_trackers(config)
    check_models(config, value, models or {})
    tasks = prepare_tasks(config, value, task)
    with claimed(out, overwrite):
        run = _Run(config, value, tasks, models or {}, out, console)
        if overwrite and run.accelerator.is_main_process:
            clear(out)  # only now: models that cannot be loaded cost nobody a run
        return run.start(command)


def resume(out: Path, *, steps: int | None = None, command: str = "", console: Console | None = None) -> Result:
    """Continue a run that was stopped, from its newest checkpoint, as if it had never stopped.

    Args:
        out: the run's folder.
        steps: a new total, to train longer than was asked first.
        command: what the user typed, for the report.
        console: where progress goes.

    Raises:
        LimbeckError: where the folder holds no run.
    """
    described = recorded(out)
    settings = dict(described["config"])
    typed = f"limbeck train --resume {shlex.quote(str(out))}" + (f" --steps {steps}" if steps is not None else "")
    if steps is not None:
        settings["steps"] = steps
    if settings.get("method") == "custom":
        raise LimbeckError(
            f"{out} ran a method that is not registered, so it cannot be rebuilt from its folder; register it with "
            "@method and run it by name."
        )
    config = checked(settings)
    method = build_method(config)
    if explain(method) != described["formula"]:
        raise LimbeckError(
            f"{out} ran another objective than {config.method} is now with the arguments it recorded "
            f"({config.arguments or 'none'}): it was given as a value, or its definition has changed; start a new run."
        )
    _check_trackers(config)
    return _Run(config, method, prepare_tasks(config, method), {}, out, console).restart(command or typed)


def _check_trackers(config: RunConfig) -> None:
    for name in config.trackers:
        if name not in TRACKERS:
            raise LimbeckError(f"trackers={name!r}: unknown{nearest(name, TRACKERS)}; use {', '.join(TRACKERS)}.")
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
        with self.console.status("loading models") as status:
            self.shop: Workshop = open_workshop(
                config, method, tasks, models, self.accelerator, lambda said: status.update(as_text(said))
            )
        for sentence in notices(self.shop):
            self.console.print(sentence, style="yellow", highlight=False)
        student = self.shop.student
        trainable = [p for p in student.scorer.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=config.lr, weight_decay=config.weight_decay)
        student.scorer, self.optimizer = self.accelerator.prepare(student.scorer, optimizer)
        self.loop = Loop(self.shop, self.optimizer)
        self.journal = Journal(out)
        self._told_of_death = self._told_of_silence = False
        self.evaluator = Evaluator(self.shop.desk, config.eval_size, config.micro_tokens)

    def start(self, command: str) -> Result:
        """From the first step."""
        if self.accelerator.is_main_process:
            self.journal.describe(self.shop, command)
        self._evaluate(0)
        return self._train(0)

    def restart(self, command: str = "") -> Result:
        """From the newest checkpoint; from the first step where there is none."""
        path = checkpoint.latest(self.out / "checkpoints")
        if path is None:
            self.console.print(f"{self.out} has no checkpoint yet: starting from step 0.", highlight=False)
            self._rewind(0, command)
            measured = read_lines(self.journal.evaluations)
            if measured:
                self._hold(measured[-1])
            else:
                self._evaluate(0)
            return self._train(0)
        shadows = {role: s.policy.scorer for role, s in self.shop.shadows.items()}
        state = checkpoint.load(path, self._module(), self.optimizer.optimizer, self.shop.desk.feeds, shadows)
        if state.get("objective") != explain(self.shop.method):
            raise LimbeckError(f"{path} is of a run of another method; remove it, and resume from the one before.")
        self._recall(path, state)
        step = int(state["step"])
        self.console.print(f"continuing {self.out} from step {step}.", highlight=False)
        for name, cursor in state["cursors"].items():
            self.shop.desk.feeds[name].cursor = cursor
        if self.accelerator.scaler is not None and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self._rewind(step, command)
        if step >= self.config.steps:
            self.console.print(f"{self.out} has already done its {self.config.steps} steps; --steps N trains longer.")
        return self._train(step)

    def _recall(self, path: Path, state: dict[str, Any]) -> None:
        """This process's memory again."""
        memories = state.get("memory") or [Memory().to_json()]
        try:
            self.shop.desk.memory = Memory.from_json(memories[self.accelerator.process_index % len(memories)])
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise LimbeckError(
                f"{path} has a damaged memory ({type(e).__name__}: {e}); remove it to resume from the one before."
            ) from None

    def _rewind(self, step: int, command: str) -> None:
        """Forget what came after ``step``, and write down what is in force from here on."""
        if self.accelerator.is_main_process:
            self.journal.rewind(step)
            self.journal.resumed(self.config.model_dump(mode="json"), command, step)

    def _module(self) -> Any:
        return self.accelerator.unwrap_model(self.shop.student.scorer)

    def _train(self, first: int) -> Result:
        config = self.config
        if config.trackers:
            self.accelerator.init_trackers("limbeck", config={"method": config.method, "seed": config.seed})
        with progress_bar(self.console) as bar:
            task = bar.add_task(config.method, total=config.steps, completed=first, note="")
            written = sum(whole(m, "tokens_written") or 0 for m in read_lines(self.journal.metrics)[:first])
            spent = bool(config.token_budget) and written >= config.token_budget
            for step in range(first, config.steps):
                if spent:
                    break
                metrics = self.loop.step(step)
                self._after(step, metrics)
                bar.update(task, advance=1, note=note(metrics))
                if not self.console.is_terminal and (step + 1) % 10 == 0:  # a log has no bar
                    self.console.print(f"{config.method} {step + 1}/{config.steps} {note(metrics)}", highlight=False)
                written += metrics["tokens_written"]
                spent = bool(config.token_budget) and written >= config.token_budget
                self._periodic(step + 1, bar, last=spent or step + 1 == config.steps)
        if config.trackers:
            self.accelerator.end_training()
        return self._finish()

    def _after(self, step: int, metrics: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.journal.step(metrics)
        if metrics.get("episodes_died") and not self._told_of_death:
            self._told_of_death = True
            self.console.print(
                f"note: {metrics['episodes_died']} episodes of step {step} were broken off by their environment "
                f"({self.shop.desk.last_death}) and dropped; episodes_died in metrics.jsonl goes on counting.",
                style="yellow",
                highlight=False,
            )
        if metrics.get("verifier_failed") and not self._told_of_silence:
            self._told_of_silence = True
            self.console.print(
                f"note: the verifier judged {metrics['verifier_failed']} responses of step {step} not at all "
                f"({self.shop.desk.last_unjudged or 'in another process'}); verifier_failed in metrics.jsonl goes on "
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
            with self._unwrapped():
                measured = self.evaluator.measure()
                self.journal.evaluated(step, measured)
        self.accelerator.wait_for_everyone()
        self._hold(broadcast_object_list([measured])[0])

    def _hold(self, measured: Mapping[str, Any]) -> None:
        """What controllers read of an evaluation; of one that is not repeated they would read the first for ever."""
        if self.config.eval_every and "entropy" in measured:
            self.shop.desk.memory.numbers["heldout_entropy"] = measured["entropy"]

    def _unwrapped(self) -> Any:
        """The student without its distributed wrapper: one process's forward must not wait for the others."""
        return _Swap(self.shop.student, self._module())

    def _save(self, step: int) -> None:
        memories = gather_object([self.shop.desk.memory.to_json()])
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "objective": explain(self.shop.method),
                "memory": memories,
                "cursors": {name: feed.cursor for name, feed in self.shop.desk.feeds.items()},
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            optimizer = self.optimizer.optimizer
            shadows = {role: s.policy.scorer for role, s in self.shop.shadows.items()}
            folder, keep = self.out / "checkpoints", self.config.keep
            checkpoint.save(folder, step, self._module(), optimizer, state, keep, shadows)
        self.accelerator.wait_for_everyone()

    def _finish(self) -> Result:
        """The student in Hugging Face format, samples, report, summary."""
        report = None
        if self.accelerator.is_main_process:
            with self._unwrapped():
                if self.evaluator.prompts:
                    write_lines(self.journal.samples, self.evaluator.samples())
                self._export()
            self.journal.update(finished=now())
            report = self._report()
        self.accelerator.wait_for_everyone()
        evaluations = read_lines(self.journal.evaluations)
        before = evaluations[0] if evaluations else None
        after = evaluations[-1] if len(evaluations) > 1 else None
        return Result(self.out, before, after, len(read_lines(self.journal.metrics)), report, self.out / "student")

    def _export(self) -> None:
        student = self.shop.student
        model = student.model
        if self.config.lora_rank:
            with whole_folder(self.out / "adapter") as folder:
                model.save_pretrained(folder)
            model = model.merge_and_unload()
        with whole_folder(self.out / "student") as folder:
            model.save_pretrained(folder)
            student.tokenizer.save_pretrained(folder)
            lineage.write(folder, self.shop)

    def _report(self) -> Path:
        from ..report import load_run, summary_table, write_report

        report = write_report(self.out)
        self.console.print(summary_table(load_run(self.out)))
        self.console.print(f"student  {self.out / 'student'}\nreport   {report}", highlight=False)
        return report


class _Swap:
    """A policy with another module for a while."""

    def __init__(self, policy: Any, module: Any):
        self.policy, self.module = policy, module

    def __enter__(self) -> None:
        self.before, self.policy.scorer = self.policy.scorer, self.module

    def __exit__(self, *_: object) -> None:
        self.policy.scorer = self.before
