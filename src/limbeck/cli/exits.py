"""How a command ends: every error becomes one sentence on stderr and an exit status.

It also handles ``--import`` before a command runs, and Ctrl-C or SIGTERM while one runs.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import LimbeckError, is_disk_full
from ..processes import is_main_process
from ..space.registry import REGISTRY
from ..terminal import printable
from .output import print_json

USER_ERROR, BUG, INTERRUPTED, TERMINATED = 2, 1, 130, 143
"""Exit statuses other than 0."""


class Stopped(Exception):
    """Ctrl-C, or a scheduler's SIGTERM, during a command; the sentence says how to continue."""

    def __init__(self, sentence: str, status: int = INTERRUPTED):
        super().__init__(sentence)
        self.status = status


class _Terminated(KeyboardInterrupt):
    """SIGTERM, raised as a kind of Ctrl-C so that no ``except Exception`` catches it."""


class Commands(TyperGroup):
    """The group of commands: every error ends in one sentence on stderr and an exit status, never in a traceback.

    ``LIMBECK_DEBUG=1`` adds the traceback; ``--json`` adds ``{"error": ...}`` on stdout.
    """

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run one command and exit with its status; the root context keeps the typed words as ``obj``."""
        words = list(sys.argv[1:] if args is None else args)
        try:
            value = super().main(
                _after_imports(words),
                prog_name or "limbeck",
                complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                obj=words,
                **extra,
            )
            # typer.Exit arrives here as its status. Some versions of Typer turn a Ctrl-C into one as well.
            status = value if isinstance(value, int) else 0
            if status == INTERRUPTED:
                raise KeyboardInterrupt
            sys.stdout.flush()
        except BrokenPipeError:  # the reading program has ended, as in `limbeck methods | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = BUG
        except (Exception, KeyboardInterrupt) as e:
            sentence, status = explained(e)
            print_error(e, sentence, as_json="--json" in words)
        if not standalone_mode:
            return status
        sys.exit(status)


def _after_imports(words: Sequence[str]) -> list[str]:
    """Run the files of ``--import FILE.py`` and return the other words."""
    rest, files = split_imports(words)
    if files:
        from ..user_files import run_files

        run_files(files)
    return rest


def split_imports(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the words of a command into those without ``--import FILE.py`` (which may stand anywhere) and the files.

    Raises:
        LimbeckError: no file follows ``--import``.
    """
    rest: list[str] = []
    files: list[str] = []
    left = iter(words)
    for word in left:
        option, equals, file = word.partition("=")
        if option != "--import":
            rest.append(word)
            continue
        file = file if equals else next(left, "")
        if not file:
            raise LimbeckError("--import needs a file; write --import FILE.py.")
        files.append(file)
    return rest, files


def explained(e: BaseException) -> tuple[str, int]:
    """One sentence for an error, and the exit status."""
    if isinstance(e, LimbeckError):
        return str(e), USER_ERROR
    if isinstance(e, Stopped):
        return str(e), e.status
    if isinstance(e, KeyboardInterrupt | typer.Abort):
        return "stopped.", INTERRUPTED
    if hasattr(e, "format_message"):  # a usage error of click; Typer may bring its own copy of the class
        return _usage(e), USER_ERROR
    if is_disk_full(e):
        return (
            "the disk is full; what was written before is intact: free some space, then continue with "
            "`limbeck train --resume DIR`.",
            USER_ERROR,
        )
    hint = "" if os.environ.get("LIMBECK_DEBUG") else " (LIMBECK_DEBUG=1 shows the traceback)"
    if isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError":
        return f"out of memory; lower micro_tokens, generate_batch or max_tokens{hint}.", BUG
    first = next(iter(str(e).strip().splitlines()), "") or "no message"
    from ..user_files import place_of, ran

    if ran() and (place := place_of(e)):
        return f"{place} raises {type(e).__name__} ({first.rstrip('.')}); correct it{hint}.", USER_ERROR
    return f"unexpected {type(e).__name__}: {first.rstrip('.')}{hint}.", BUG


def print_error(e: BaseException, sentence: str, *, as_json: bool) -> None:
    """Print the sentence on stderr, and as JSON on stdout with ``--json``."""
    if os.environ.get("LIMBECK_DEBUG"):
        typer.echo(printable("".join(traceback.format_exception(e))), err=True)
    typer.echo(f"limbeck: {printable(sentence)}", err=True)
    if as_json and is_main_process():
        print_json({"error": sentence})


def _usage(e: Any) -> str:
    if setting := _setting_as_option(e):
        return setting
    message = e.format_message().strip().rstrip(".")
    path = e.ctx.command_path if getattr(e, "ctx", None) else "limbeck"
    end = "" if message.endswith("?") else ";"
    return f"{message[:1].lower()}{message[1:]}{end} `{path} --help` lists the options."


def _setting_as_option(e: Any) -> str:
    """The sentence about an unknown option that is the name of a setting, or empty; ``--lr 1e-4`` is ``--set lr=1e-4``.

    Settings include the arguments of methods, and the names of Transformers and TRL.
    """
    option, ctx = str(getattr(e, "option_name", "")), getattr(e, "ctx", None)
    if ctx is None or not any("--set" in parameter.opts for parameter in ctx.command.params):
        return ""
    from ..engine.aliases import is_setting, near_sentence
    from ..engine.config import RunConfig

    words: list[str] = ctx.find_root().obj or []
    at = next((i for i, word in enumerate(words) if word.partition("=")[0] == option), len(words))
    typed, following = "".join(words[at : at + 1]), "".join(words[at + 1 : at + 2])
    value = typed.partition("=")[2] or ("" if following.startswith("--") else following)
    name = option.lstrip("-").replace("-", "_")
    methods = [REGISTRY[word] for word in words if word in REGISTRY] or list(REGISTRY.values())
    if is_setting(name, {*RunConfig.model_fields, *(key for method in methods for key in method.arguments)}):
        text = shlex.quote(value) if value else "VALUE"
        return f"{option} is a setting and not an option; write --set {name}={text}."
    return near_sentence(name, value)


@contextmanager
def stoppable(out: Path, record: str = "run.json", go_on: str = "") -> Iterator[None]:
    """Turn a Ctrl-C or SIGTERM inside into a sentence that says how to continue what is in ``out``.

    Args:
        out: folder of a run, or of a pipeline.
        record: the file whose presence shows that there is something to continue.
        go_on: the command that continues it; default: ``limbeck train --resume``.
    """
    try:
        with _sigterm_raises():
            yield
    except KeyboardInterrupt as e:
        status = TERMINATED if isinstance(e, _Terminated) else INTERRUPTED
        if (out / record).is_file():
            from ..user_files import typed

            go_on, run = go_on or f"limbeck train --resume {shlex.quote(str(out))}{typed()}", not go_on
            if run and not any((out / "checkpoints").glob("step-*")):
                raise Stopped(
                    f"stopped before the first checkpoint, so `{go_on}` starts again from step 0; a smaller save_every "
                    "writes checkpoints earlier.",
                    status,
                ) from None
            raise Stopped(f"stopped; continue with `{go_on}`.", status) from None
        raise Stopped("stopped before anything was written.", status) from None


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Raise an exception inside on SIGTERM; a second SIGTERM ends the process, in case the first has no effect."""

    def on_sigterm(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, on_sigterm)
    except ValueError:  # only the main thread may set signal handlers
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def print_version(asked: bool) -> None:
    """Callback of ``--version``: print the version and exit."""
    if asked:
        from .. import __version__

        typer.echo(f"limbeck {__version__}")
        raise typer.Exit
