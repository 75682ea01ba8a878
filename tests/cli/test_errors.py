"""Help, versions, and every kind of error."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from stub_engine import Notes, Run

import limbeck
from limbeck.cli.app import app
from limbeck.errors import LimbeckError
from limbeck.space.registry import REGISTRY

COMMANDS = ("demo", "train", "eval", "methods", "explain", "diff", "sample", "compare")


def test_version_is_printed(limbeck_: Run) -> None:
    result = limbeck_("--version")
    assert (result.exit_code, result.stdout) == (0, f"limbeck {limbeck.__version__}\n")


def test_no_arguments_print_the_help(limbeck_: Run) -> None:
    result = limbeck_()
    assert result.exit_code == 0
    for name in COMMANDS:
        assert re.search(rf"│ {name} ", result.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_with_examples(limbeck_: Run, name: str) -> None:
    result = limbeck_(name, "--help", COLUMNS="80")
    assert result.exit_code == 0
    examples = re.findall(rf"^ limbeck {name} ?\S.*$", result.stdout, re.MULTILINE)
    assert examples
    assert "[cyan]" not in result.stdout
    shown = [line.strip() for line in result.stdout.splitlines()]
    text = next(c.callback.__doc__ or "" for c in app.registered_commands if c.name == name and c.callback)
    for line in text.partition("\n\n")[2].splitlines():
        assert re.sub(r"\[[a-z/]+\]", "", line).strip() in shown, "a line of help was broken at 80 columns"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("tarin",), "no such command 'tarin'. Did you mean 'train'? `limbeck --help` lists the options."),
        (("--frobnicate",), "no such option: --frobnicate; `limbeck --help` lists the options."),
        (("eval",), "missing option '--student'; `limbeck eval --help` lists the options."),
        (("train", "kdrl", "--lr", "1e-4"), "--lr is a setting and not an option; write --set lr=1e-4."),
        (("train", "kdrl", "--coef=2"), "--coef is a setting and not an option; write --set coef=2."),
        (
            ("train", "kdrl", "--num-generations"),
            "--num-generations is a setting and not an option; write --set num_generations=VALUE.",
        ),
        (
            ("pipeline", "opd_then_rl", "--bf16", "true"),
            "--bf16 is a setting and not an option; write --set bf16=true.",
        ),
        (
            ("train", "kdrl", "--logging_steps", "1"),
            "logging_steps='1' is not taken over from Transformers or TRL: it thins the log, and every step is written "
            "here; leave it out.",
        ),
        (("diff",), "missing argument 'A'; `limbeck diff --help` lists the options."),
        (("diff", "gkd"), "diff compares two methods, and only gkd was named; write `limbeck diff gkd OTHER`."),
        (
            ("diff", "gdk"),
            f"unknown method 'gdk' (did you mean 'gkd'?); `limbeck methods` lists all {len(REGISTRY)}, and --import "
            "FILE.py brings your own.",
        ),
    ],
)
def test_misuse_gives_one_sentence(limbeck_: Run, words: tuple[str, ...], sentence: str) -> None:
    result = limbeck_(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"limbeck: {sentence}\n"


def test_a_users_mistake_in_the_engine_gives_one_sentence(limbeck_: Run, notes: Notes) -> None:
    notes.trouble = LimbeckError("task 'x' is unknown; give another.")
    result = limbeck_("train", "sft")
    assert result.exit_code == 2
    assert result.stderr == "limbeck: task 'x' is unknown; give another.\n"


def test_control_c_says_how_to_continue(limbeck_: Run, notes: Notes, run_folder: Path) -> None:
    notes.trouble = KeyboardInterrupt()
    early = limbeck_("train", "--resume", "old", "--quiet")
    assert early.exit_code == 130
    assert "before the first checkpoint, so `limbeck train --resume old` starts again from step 0" in early.stderr
    (run_folder / "checkpoints" / "step-000001").mkdir(parents=True)
    for words in (("train", "--resume", "old"), ("train", "sft", "--out", "old", "--overwrite")):
        result = limbeck_(*words, "--quiet")
        assert result.exit_code == 130
        assert result.stderr == "limbeck: stopped; continue with `limbeck train --resume old`.\n"
    early = limbeck_("train", "sft", "--json")
    assert early.exit_code == 130
    assert json.loads(early.stdout) == {"error": "stopped before anything was written."}
    elsewhere = limbeck_("eval", "--student", "embedded")
    assert (elsewhere.exit_code, elsewhere.stderr) == (130, "limbeck: stopped.\n")


def _behind(e: BaseException) -> BaseException:
    outer = RuntimeError("could not save")
    outer.__cause__ = e
    return outer


@pytest.mark.parametrize(
    "trouble",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "quota"),
        _behind(OSError(errno.ENOSPC, "")),
        RuntimeError("write failed: No space left on device"),
    ],
)
def test_a_full_disk_gives_one_sentence(limbeck_: Run, notes: Notes, trouble: BaseException) -> None:
    notes.trouble = trouble
    result = limbeck_("train", "sft")
    assert result.exit_code == 2
    assert result.stderr.startswith("limbeck: the disk is full; what was written before is intact")
    assert result.stderr.count("\n") == 1


def test_unexpected_errors_show_a_traceback_only_on_request(limbeck_: Run, notes: Notes) -> None:
    notes.trouble = RuntimeError("shapes differ.\nmany lines")
    short = limbeck_("train", "sft")
    assert short.exit_code == 1
    hint = "(LIMBECK_DEBUG=1 shows the traceback)"
    assert short.stderr == f"limbeck: unexpected RuntimeError: shapes differ {hint}.\n"
    long = limbeck_("train", "sft", "--json", LIMBECK_DEBUG="1")
    assert long.exit_code == 1
    assert "Traceback (most recent call last)" in long.stderr
    assert "Traceback" not in short.stderr
    assert json.loads(long.stdout) == {"error": "unexpected RuntimeError: shapes differ."}


def test_full_memory_names_what_to_lower(limbeck_: Run, notes: Notes) -> None:
    notes.trouble = MemoryError()
    result = limbeck_("train", "sft")
    assert result.exit_code == 1
    assert "micro_tokens" in result.stderr


def test_as_a_module_and_into_a_closed_pipe() -> None:
    """``python -m limbeck`` is the command; a closed pipe gives no traceback."""
    process = subprocess.Popen(
        [sys.executable, "-m", "limbeck", "methods", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=300) == 1


HOSTILE = "[/INST] [bold] \x1b[31m <script> $x_$ :smile:"
SEEN = HOSTILE.replace("\x1b", "\\x1b")


@pytest.mark.parametrize(
    "words",
    [
        ("train", HOSTILE),
        ("train", "grpo", "--set", f"{HOSTILE}=1"),
        ("train", "grpo", "--task", f"./{HOSTILE}.jsonl"),
        ("train", "grpo", "--student", f"./{HOSTILE}"),
        ("train", "grpo", f"--{HOSTILE}"),
        ("train", "--resume", HOSTILE),
        ("explain", HOSTILE),
        ("diff", "grpo", HOSTILE),
        ("pipeline", HOSTILE),
        ("report", HOSTILE),
        ("methods", "--by", HOSTILE),
        (HOSTILE,),
    ],
    ids=" ".join,
)
def test_hostile_words_are_shown_in_the_sentence_and_never_obeyed(limbeck_: Run, words: tuple[str, ...]) -> None:
    got = limbeck_(*words)
    assert got.exit_code == 2, got.output
    assert "\x1b" not in got.output
    assert "[/INST] [bold]" in got.output


@pytest.mark.parametrize("trouble", [LimbeckError(HOSTILE), RuntimeError(HOSTILE)])
@pytest.mark.parametrize("debug", ["", "1"])
def test_hostile_errors_of_the_engine_are_shown(notes: Notes, limbeck_: Run, trouble: Exception, debug: str) -> None:
    notes.trouble, notes.says = trouble, HOSTILE
    got = limbeck_("train", "grpo", "--out", "[/b] [bold]", LIMBECK_DEBUG=debug)
    assert got.output.count(SEEN) >= 2
    assert "\x1b" not in got.output
