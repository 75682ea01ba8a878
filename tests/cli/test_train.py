"""``train``: what reaches the engine, and what is refused before it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from stub_engine import Notes, Run

WITH_TEACHER = ("train", "kdrl", "--teacher", "embedded")


def test_flags_reach_the_engine(limbeck_: Run, notes: Notes) -> None:
    words = (
        "train gkd --student org/small --teacher org/big --ref org/first --task chain_sum --steps 7 --seed 3 --out o"
    )
    assert limbeck_(*words.split()).exit_code == 0
    config = notes.config
    assert (config.method, config.student, config.teacher, config.ref) == ("gkd", "org/small", "org/big", "org/first")
    assert (config.task, config.steps, config.seed) == ("chain_sum", 7, 3)
    _, (_, out), options = notes.calls[0]
    assert (out, options["overwrite"], options["command"]) == (Path("o"), False, f"limbeck {words}")


def test_set_over_flags_over_file_over_defaults(limbeck_: Run, notes: Notes, folder: Path) -> None:
    (folder / "run.toml").write_text(
        'method = "kdrl"\nteacher = "org/file"\nsteps = 1\nseed = 1\nlr = 0.5\ngroup = 2\ncoef = 0.1\n'
        "[task_options]\nmin_terms = 2\nmax_terms = 3\n[arguments]\nclip_range = 0.3\n"
    )
    flags = ("train", "--config", "run.toml", "--steps", "2", "--seed", "2")
    result = limbeck_(*flags, "--set", "steps=3", "--set", "arguments.group=4", "--set", "task_options.max_terms=5")
    assert result.exit_code == 0, result.stderr
    config = notes.config
    assert (config.method, config.teacher, config.lr) == ("kdrl", "org/file", 0.5)
    assert (config.steps, config.seed) == (3, 2)
    assert config.task_options == {"min_terms": 2, "max_terms": 5}
    assert config.arguments == {"group": 4, "coef": 0.1, "clip_range": 0.3}
    assert config.max_tokens == 128


def test_the_method_has_the_same_order(limbeck_: Run, notes: Notes, folder: Path) -> None:
    (folder / "run.toml").write_text('method = "kdrl"\n')
    limbeck_("train", "sft", "--config", "run.toml")
    limbeck_("train", "sft", "--config", "run.toml", "--set", "method=gspo")
    assert [args[0].method for _, args, _ in notes.calls] == ["sft", "gspo"]


def test_the_default_folder_is_dated_and_free(limbeck_: Run, notes: Notes) -> None:
    limbeck_("train", "sft")
    out = notes.calls[0][1][1]
    assert re.fullmatch(r"runs/sft-\d{8}-\d{6}", str(out))
    from limbeck.cli.settings import _fresh

    out.mkdir(parents=True)
    assert str(_fresh(out)) == f"{out}-2"


def test_json_is_one_document_whatever_libraries_print(limbeck_: Run, notes: Notes) -> None:
    result = limbeck_(*WITH_TEACHER, "--json", "--out", "o")
    found = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert (found["out"], found["student"], found["report"]) == ("o", "o/student", "o/report.html")
    assert (found["before"]["accuracy"], found["before"]["reward"]) == (0.25, None)
    assert "a library prints" in result.stderr
    assert "progress" in result.stderr


def test_quiet_prints_less_than_the_default(limbeck_: Run, notes: Notes) -> None:
    assert "progress" in limbeck_("train", "sft").stdout
    assert "progress" not in limbeck_("train", "sft", "--quiet").output


def test_changes_are_accepted_where_that_is_asked_for(limbeck_: Run, notes: Notes, run_folder: Path) -> None:
    assert limbeck_("train", "--resume", "old", "--accept-changes").exit_code == 0
    ((name, _, kwargs),) = notes.calls
    assert (name, kwargs["accept_changes"]) == ("resume", True)


def test_resume_is_passed_to_the_engine(limbeck_: Run, notes: Notes, run_folder: Path) -> None:
    assert limbeck_("train", "--resume", "old", "--steps", "9").exit_code == 0
    assert json.loads(limbeck_("train", "kdrl", "--resume", "old", "--json").stdout)["steps"] == 7
    assert [(name, args, o["steps"]) for name, args, o in notes.calls] == [
        ("resume", (Path("old"),), 9),
        ("resume", (Path("old"),), None),
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("train",), "no method is given"),
        (("train", "kdlr"), "unknown method 'kdlr' (did you mean 'kdrl'?)"),
        (("train", "kdrl"), "kdrl reads teacher (sampled), but no teacher was given; name one with"),
        (("train", "sft", "--set", "setps=3"), "unknown setting 'setps' (did you mean 'steps'?)"),
        (("train", "sft", "--set", "leaning_rate=1"), "'leaning_rate' (did you mean 'learning_rate'?)"),
        (("train", "sft", "--set", "arguments=3"), "arguments=3: it is a table"),
        (("train", "sft", "--steps", "0"), "steps=0:"),
        (("train", "sft", "--steps", "many"), "invalid value for '--steps'"),
        (("train", "sft", "--stpes", "3"), "no such option: --stpes"),
        ((*WITH_TEACHER, "--set", "group=four"), "kdrl: group='four' is not a whole number; its default is 8"),
        ((*WITH_TEACHER, "--set", "estimator=k1"), "k1"),
        (("train", "sft", "--config", "none.toml"), "--config none.toml: there is no such file"),
        (("train", "sft", "--student", "./none"), "student='./none': there is no such folder"),
        (("train", "sft", "--task", "none.jsonl"), "--task none.jsonl: there is no such file"),
        (("train", "sft", "--out", "old"), "continue it (limbeck train --resume old)"),
        (("train", "sft", "--out", "full", "--overwrite"), "--out full: the folder is not empty and holds no run"),
        (("train", "sft", "--out", "file"), "--out file: it cannot be a folder (file is a file)"),
        (("train", "sft", "--out", "file/x/y"), "--out file/x/y: it cannot be a folder (file is a file)"),
        (("train", "sft", "--out", "x" * 300), "it cannot be a folder (File name too long)"),
        (("demo", "--out", "file/x"), "--out file/x: it cannot be a folder (file is a file)"),
        (("train", "--resume", "x" * 300), "there is no such folder"),
        (("train", "sft", "--config", "."), "--config .: it cannot be read (Is a directory)"),
        (("train", "sft", "--config", "latin.toml"), "--config latin.toml: it is not valid TOML"),
        (("train", "sft", "--set", "lr=1", "--set", "lr.x=2"), "--set lr.x=2: lr was set to 1 before"),
        (("train", "sft", "--set", ".x=2"), "--set .x=2: write key=value"),
        (("train", "sft", "--set", "method=3"), "method=3 is not the name of a method"),
        (("train", "sft", "--set", "method="), "no method is given"),
        (("train", "sft", "--student", ""), "student='': string should have at least 1 character"),
        (("train", "gkd", "--teacher", ""), "teacher='': string should have at least 1 character"),
        (("train", "sft", "--task", ""), "task='': string should have at least 1 character"),
        (("train", "sft", "--task", "x" * 300 + ".jsonl"), "there is no such file"),
        (("train", "sft", "--student", "./" + "x" * 300), "there is no such folder"),
        (("train", "sft", "--set", "lr=inf"), "lr=inf: input should be a finite number"),
        (("train", "sft", "--set", "clip_norm=nan"), "clip_norm=nan: input should be a finite number"),
        ((*WITH_TEACHER, "--set", "coef=inf"), "coef=inf is not finite"),
        (("train", "sft", "--set", "task_options.x=inf"), "x=inf is not finite"),
        (("train", "sft", "--set", "trackers=3"), "trackers=3:"),
        (("train", "--resume", "none"), "--resume none: there is no such folder"),
        (("train", "--resume", "full"), "--resume full: the folder has no readable run.json"),
        (("train", "gkd", "--resume", "old"), "that run's method is kdrl, not gkd"),
        (("train", "--resume", "old", "--student", "x"), "--student cannot be combined with --resume"),
        (("train", "--resume", "old", "--set", "lr=1"), "--set cannot be combined with --resume"),
        (("train", "--resume", "old", "--overwrite"), "--overwrite cannot be combined with --resume"),
        (("train", "sft", "--accept-changes"), "--accept-changes only works with --resume DIR"),
    ],
)
def test_runs_that_cannot_start_are_refused(
    limbeck_: Run, notes: Notes, run_folder: Path, words: tuple[str, ...], sentence: str
) -> None:
    (run_folder.parent / "full").mkdir()
    (run_folder.parent / "full" / "thesis.tex").touch()
    (run_folder.parent / "file").touch()
    (run_folder.parent / "latin.toml").write_bytes(b"student = 'caf\xe9'")
    result = limbeck_(*words, "--json")
    assert result.exit_code == 2
    assert result.stderr.startswith("limbeck: ")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(json.loads(result.stdout)) == ["error"]
    assert notes.calls == []


def test_overwrite_is_passed_on(limbeck_: Run, notes: Notes, run_folder: Path) -> None:
    assert limbeck_("train", "sft", "--out", "old", "--overwrite").exit_code == 0
    assert notes.calls[0][2]["overwrite"] is True


def test_an_empty_folder_is_accepted(limbeck_: Run, notes: Notes, folder: Path) -> None:
    (folder / "empty").mkdir()
    assert limbeck_("train", "sft", "--out", "empty").exit_code == 0


def test_no_teacher_is_needed_where_none_is_read(limbeck_: Run, notes: Notes) -> None:
    assert limbeck_("train", "grpo").exit_code == 0
    assert limbeck_("train", "kdrl", "--set", "coef=0").exit_code == 0


def test_only_the_first_of_several_processes_prints(limbeck_: Run, notes: Notes, run_folder: Path) -> None:
    several = {"WORLD_SIZE": "2"}
    nameless = limbeck_("train", "sft", **several)
    assert nameless.exit_code == 2
    assert "name it with --out" in nameless.stderr
    second = limbeck_("train", "sft", "--out", "old", "--json", RANK="1", **several)
    assert (second.exit_code, second.stdout) == (0, "")
    assert "progress" not in second.stderr


@pytest.mark.parametrize(
    ("words", "note"),
    [
        ((), "note: without --student and --task, the student is 'embedded' and the task is 'two_digit_sums'."),
        (("--student", "org/x"), "note: without --task, the task is 'two_digit_sums'."),
        (("--set", "task=chain_sum"), "note: without --student, the student is 'embedded'."),
        (("--student", "org/x", "--task", "chain_sum"), ""),
        (("--quiet",), ""),
    ],
)
def test_defaults_that_were_used_are_printed(limbeck_: Run, notes: Notes, words: tuple[str, ...], note: str) -> None:
    shown = limbeck_("train", "sft", *words).stdout
    assert [line for line in shown.splitlines() if line.startswith("note")] == ([note] if note else [])
