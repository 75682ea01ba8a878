"""Foreign text is shown as it is and never obeyed: no markup, no emoji codes, no escape sequences."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_runs import Parity, Shelf, distill, lines

from limbeck.cli.output import add_row, engine_console, make_table, print_line
from limbeck.engine import configure, train
from limbeck.engine.console import progress_bar
from limbeck.report import load_run, picture, render_report, summary_table
from limbeck.tasks import EpisodeDied, Observation
from limbeck.terminal import printable, screen
from limbeck.types import Prompt

HOSTILE = "[/INST] [bold] [/b] \x1b[31m\x9b2J <script>alert(1)</script> $x_$ :smile: \u202e"
SEEN = "[/INST] [bold] [/b] \\x1b[31m\\x9b2J <script>alert(1)</script> $x_$ :smile: \\u202e"


class Hostile(Parity):
    """An environment whose name and deaths are hostile."""

    name = HOSTILE

    def open(self, prompt: Prompt) -> Any:
        return self if prompt.id.endswith(("1", "3", "5", "7")) else super().open(prompt)

    def step(self, text: str) -> Observation:
        raise EpisodeDied(HOSTILE)

    def close(self) -> None:
        pass


def squeezed(text: str) -> str:
    return "".join(text.split())


def test_a_screen_shows_text_cells_titles_and_progress_as_they_are() -> None:
    file = io.StringIO()
    out = screen(file=file, width=2000, force_terminal=False)
    out.print(HOSTILE, style="bold")
    print_line(out, HOSTILE)
    made = make_table(HOSTILE, title=HOSTILE)
    add_row(made, HOSTILE)
    made.add_row(HOSTILE)
    out.print(made)
    with out.status(HOSTILE) as status:
        status.update(HOSTILE)
    with progress_bar(out) as bar:
        bar.add_task(HOSTILE, total=1, note=HOSTILE)
    written = file.getvalue()
    # Two lines, a title, a heading, two cells, and the two texts of the bar.
    assert squeezed(written).count(squeezed(SEEN)) == 8, written
    assert "\x1b" not in written
    assert "\u202e" not in written


def test_the_callers_console_keeps_its_markup_and_gets_what_is_printed() -> None:
    file = io.StringIO()
    own = Console(file=file, width=300)
    screen(own).print(HOSTILE)
    own.print("[bold]own[/bold]")
    assert file.getvalue().splitlines() == [SEEN, "own"]


def test_styles_of_a_terminal_are_kept() -> None:
    file = io.StringIO()
    screen(file=file, width=80, force_terminal=True, color_system="standard").print("a\x1b[31mb", style="red")
    assert file.getvalue() == "\x1b[31ma\\x1b[31mb\x1b[0m\n"


@pytest.mark.parametrize("as_json", [True, False])
def test_what_commands_hand_to_the_engine_reads_no_markup(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with engine_console(as_json=as_json, quiet=False) as console:
        console.print(HOSTILE, soft_wrap=True)
    prepared = capsys.readouterr()
    assert SEEN in prepared.out + prepared.err


@pytest.mark.usefixtures("with_report")
def test_a_run_full_of_hostile_text_ends_and_shows_it(shelf: Shelf, tmp_path: Path) -> None:
    file = io.StringIO()
    task = Hostile(2)
    out = tmp_path / "[/INST] [b] :smile: $x_$"
    values = shelf.settings("grpo", group=2, steps=2, prompts=8, ref_coef=0)
    config = configure("grpo", {**values, "task": HOSTILE})
    train(config, out, console=Console(file=file, width=400), task=task)
    said = squeezed(file.getvalue())
    assert squeezed(SEEN) in said
    assert squeezed(str(out)) in said
    assert "\x1b" not in said
    page = (out / "report.html").read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_reports_and_pictures_of_a_hostile_run_are_drawn(shelf: Shelf, out: Path) -> None:
    distill("opd", out=out, quiet=True, **shelf.settings("opd"))
    record = json.loads((out / "run.json").read_text())
    hostile = dict.fromkeys(("method", "title", "paper", "command", "task", "student", "teacher", "git"), HOSTILE)
    resumed = [{"command": HOSTILE, "step": 1, "at": HOSTILE}]
    (out / "run.json").write_text(json.dumps({**record, **hostile, "formula": HOSTILE, "resumed": resumed}))
    if (out / "samples.jsonl").exists():
        rows = lines(out / "samples.jsonl")
        (out / "samples.jsonl").write_text("".join(json.dumps({**r, "prompt": HOSTILE}) + "\n" for r in rows))
    data = load_run(out)
    file = io.StringIO()
    Console(file=file, width=300).print(summary_table(data))
    assert "\x1b" not in file.getvalue()
    assert "<script>alert(1)" not in render_report(data)
    for names in (None, [HOSTILE], ["$x^{", "two"][:1]):
        assert picture(out, out / "picture.svg", names).is_file()


def test_control_characters_are_spelled_out_and_lines_are_kept() -> None:
    assert printable("a\tb\nc\r\x00\x85é") == "a\tb\nc\\r\\x00\\x85é"
