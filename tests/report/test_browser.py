"""The report as a browser shows it: everything can be read on a phone, a tablet and a laptop, by day and by night."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_run
import pytest

import browser
from limbeck.report import write_report

EVIL = "[/b] <script>alert(1)</script> $x$ _" + "unbroken" * 30


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Browser]:
    with browser.opened() as opened:
        yield opened


def _turns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Evaluations of a task in turns; the episodes are as many before as after."""
    return [{**row, "kl_reverse_by_turn": [0.1, 0.2, 0.3], "episodes_by_turn": [9.0, 5.0, 2.0]} for row in rows]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of a whole run, of one whose names are long and hostile, and of one that wrote nothing."""
    at = tmp_path_factory.mktemp("runs")
    hostile = copy.deepcopy(fake_run.RUN) | dict.fromkeys(("title", "formula", "command", "task", "student"), EVIL)
    hostile |= {"terms": {"1": EVIL, "2": EVIL}, "notices": [EVIL], "warnings": [{"sentence": EVIL, "steps": 2}]}
    samples = [{**row, "prompt": EVIL, "tokens": [EVIL, *row["tokens"]], "answer": EVIL} for row in fake_run.samples(2)]
    evaluations = _turns(fake_run.evaluations(9))
    folders = {
        "whole": fake_run.whole(at / "whole"),
        "hostile": fake_run.write(at / "hostile", hostile, fake_run.metrics(9), evaluations, samples),
        "empty": fake_run.write(at / "empty", {}),
    }
    return {name: write_report(folder) for name, folder in folders.items()}


@pytest.mark.parametrize("width", browser.WIDTHS)
@pytest.mark.parametrize("scheme", browser.SCHEMES)
@pytest.mark.parametrize("name", ["whole", "hostile", "empty"])
def test_everything_on_the_page_can_be_read(
    chromium: browser.Browser, pages: dict[str, Path], name: str, scheme: str, width: int
) -> None:
    chromium.show(pages[name], width, scheme)
    chromium.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert chromium.faults() == []
    assert chromium.evaluate("document.querySelectorAll('script').length") == 1


@pytest.mark.parametrize("scheme", browser.SCHEMES)
def test_the_page_is_dark_where_the_reader_is(chromium: browser.Browser, pages: dict[str, Path], scheme: str) -> None:
    chromium.show(pages["whole"], 768, scheme)
    paper, ink = chromium.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('svg text')).fill]"
        ".map((c) => Number(c.match(/\\d+/)[0]))"
    )
    assert (paper > 200 > 60 > ink) == (scheme == "light")


def test_a_phone_shows_each_value_of_a_table_beside_its_column(
    chromium: browser.Browser, pages: dict[str, Path]
) -> None:
    chromium.show(pages["whole"], 390)
    cells = chromium.evaluate(
        "[...document.querySelectorAll('table.stack tbody tr:first-child td')].slice(0, 4)"
        ".map((td) => [getComputedStyle(td, '::before').content, td.innerText])"
    )
    assert cells[0][1] == "accuracy 95%, n = 256"
    assert cells[1:] == [
        ['"before"', "12.5% [9.0, 17.1]"],
        ['"after"', "62.5% [56.4, 68.2]"],
        ['"change"', "+50.0 points"],
    ]


BAD = {
    "page": "<div style='width: 900px'>a wide box</div>",
    "hidden": "<div style='overflow: hidden; width: 9em; white-space: nowrap'>the end of this cannot be seen</div>",
    "edge": "<div style='position: absolute; left: -40px'>begins outside</div>",
    "pale": "<p style='color: #bbb'>pale</p>",
    "small": "<svg width=100 height=40 viewBox='0 0 400 160'><text x=9 y=50 font-size=20>small</text></svg>",
    "cut": "<svg width=60 height=40 viewBox='0 0 60 40'><text x=9 y=20 font-size=12>longer than this</text></svg>",
}


@pytest.mark.parametrize("kind", BAD)
def test_the_measure_finds_what_cannot_be_read(chromium: browser.Browser, tmp_path: Path, kind: str) -> None:
    page = tmp_path / "bad.html"
    page.write_text(f"<!doctype html><meta name=viewport content='width=device-width'><body>{BAD[kind]}")
    chromium.show(page, 390)
    assert kind in {fault.partition(":")[0] for fault in chromium.faults()}
    page.write_text("<!doctype html><meta name=viewport content='width=device-width'><body><p>good</p>")
    chromium.show(page, 390)
    assert chromium.faults() == []


@pytest.mark.parametrize(("ci", "outcome"), [("true", "Failed"), ("", "Skipped")])
def test_without_a_browser_only_ci_fails(ci: str, outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(browser, "NAMES", ("no-such-browser",))
    with pytest.raises(BaseException, match="no Chromium is installed") as caught, browser.opened():
        pass
    assert type(caught.value).__name__ == outcome
