"""The site as it is built and shown: no warning, and every page can be read on a phone, by day and by night."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import browser
from limbeck.space.registry import REGISTRY

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as ``make docs`` builds it, which must print no warning."""
    recipe = re.search(r"^docs:.*\n\t(.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    words = shlex.split(recipe[1])
    first = words.index("$(BIN)/mkdocs")
    at = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", *words[first + 1 :], "--quiet", "--site-dir", str(at)]
    quiet = dict(word.split("=") for word in words[:first])
    clean = {key: value for key, value in os.environ.items() if "MKDOCS" not in key}
    built = subprocess.run(command, cwd=ROOT, env=clean | quiet, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert built.stdout + built.stderr == ""
    return at


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Browser]:
    with browser.opened() as opened:
        yield opened


def test_the_site_builds_without_a_warning(site: Path) -> None:
    for name in REGISTRY:
        assert (site / "methods" / f"{name}.html").is_file()
        assert f'href="methods/{name}.html"' in (site / "start.html").read_text()


@pytest.mark.parametrize("width", browser.WIDTHS)
@pytest.mark.parametrize("page", ["index", "start", "own-model-and-task", "methods/overview", "methods/kdrl"])
def test_everything_on_a_page_can_be_read(chromium: browser.Browser, site: Path, page: str, width: int) -> None:
    for scheme in browser.SCHEMES:
        chromium.show(site / f"{page}.html", width, scheme)
        assert chromium.faults() == [], scheme
        paper = chromium.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
        assert (int(paper) > 128) == (scheme == "light")


@pytest.mark.parametrize("scheme", browser.SCHEMES)
def test_the_search_field_is_seen_on_a_laptop(chromium: browser.Browser, site: Path, scheme: str) -> None:
    chromium.show(site / "start.html", 1280, scheme)
    outline, bar, left, right = chromium.evaluate(
        "(() => { const form = document.querySelector('.md-search__form'), box = form.getBoundingClientRect();"
        "const bar = getComputedStyle(document.querySelector('.md-header'));"
        "return [getComputedStyle(form).boxShadow, bar.backgroundColor,"
        "box.left, box.right]; })()"
    )
    red, green, blue, opacity = (float(x) for x in re.findall(r"[\d.]+", outline)[:4])
    dark = [float(x) for x in re.findall(r"[\d.]+", bar)[:3]]
    drawn = [opacity * over + (1 - opacity) * under for over, under in zip((red, green, blue), dark, strict=True)]
    assert min(drawn) - max(dark) > 90  # about 4 to 1
    assert 0 < left < right < 1275
