"""The documentation works as printed: its code runs, its commands parse, its pages exist, its links lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import limbeck as lb
from limbeck.engine.config import configure, parse_settings
from limbeck.space.pipeline import PIPELINES, get_pipeline
from limbeck.space.registry import REGISTRY

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
"""Pages that people wrote."""

MARK = re.compile(r"<!-- (not executed|output)(?:: (.*?))? -->\s*$")
EACH_PAGE = pytest.mark.parametrize("page", WRITTEN, ids=lambda p: p.name)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the mark in front of it."""

    language: str
    text: str
    mark: str
    line: int


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page."""
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        mark = MARK.search(text[: found.start()].rstrip())
        yield Block(found[1], found[2], mark[1] if mark else "", text[: found.start()].count("\n") + 1)


def of(page: Path, language: str) -> list[Block]:
    return [b for b in blocks(page.read_text()) if b.language == language]


@pytest.fixture(scope="module")
def generated() -> Any:
    """The generator of pages, as a module, and the pages that it makes."""
    sys.path.insert(0, str(DOCS))
    try:
        import gen_pages
    finally:
        sys.path.remove(str(DOCS))
    return SimpleNamespace(module=gen_pages, pages=gen_pages.pages())


@pytest.fixture
def registry() -> Iterator[None]:
    """A page may register methods of its own; afterwards they are gone."""
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


# ---------------------------------------------------------------- blocks


@EACH_PAGE
def test_python_runs_and_prints_what_the_page_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: None
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__page__"}
    printed: str | None = None
    text = page.read_text()
    for name in re.findall(r"^def (\w+)", text, re.MULTILINE):
        REGISTRY.pop(name, None)  # whoever follows CONTRIBUTING.md has its method in the registry
    for block in blocks(text):
        if block.mark == "output":
            assert printed is not None, f"{page.name}:{block.line}: output without a block that ran before it"
            assert printed.strip() == block.text.strip(), f"{page.name}:{block.line}"
        printed = None
        if block.language != "python":
            continue
        code = compile("\n" * block.line + block.text, str(page), "exec")
        if block.mark == "not executed":
            _check_calls(block.text)
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, names)
        printed = out.getvalue()


def _check_calls(text: str) -> None:
    """Arguments of the runs that a block would start."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "lb.distill":
            given = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
            bound = inspect.signature(lb.distill).bind(*map(ast.literal_eval, node.args), **given)
            settings = next((v for v in bound.arguments.values() if isinstance(v, dict)), {})
            configure(str(ast.literal_eval(node.args[0])), settings)


@EACH_PAGE
def test_commands_parse(page: Path) -> None:
    for block in of(page, "bash"):
        for line in block.text.splitlines():
            _check_command(shlex.split(line, comments=True), f"{page.name}:{block.line}: {line}")


def _check_command(words: list[str], where: str) -> None:
    words = words[words.index(".venv/bin/limbeck") :] if ".venv/bin/limbeck" in words else words
    if not words:
        return
    program, *rest = words[: words.index("|")] if "|" in words else words
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        for target in rest:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), where
    elif program.endswith("limbeck") and rest:
        _check_limbeck(rest, where)
    elif program.startswith(".venv/bin/") and len(rest) and rest[0].startswith("scripts/"):
        assert (ROOT / rest[0]).is_file(), where


def _check_limbeck(words: list[str], where: str) -> None:
    import typer.main

    from limbeck.cli.app import app
    from limbeck.cli.exits import split_imports

    group = typer.main.get_command(app)
    name, *rest = split_imports(words)[0]
    assert name in group.commands, where  # type: ignore[attr-defined]
    command = group.commands[name]  # type: ignore[attr-defined]
    context = command.make_context(name, list(rest))
    assert not context.args, where
    if name in ("train", "explain"):
        method = next((w for w in rest if not w.startswith("-")), "")
        if method in REGISTRY:
            configure(method, parse_settings(_sets(rest)))
    if name == "pipeline" and rest:
        from limbeck.cli.pipeline import pipeline_settings
        from limbeck.engine.pipeline import _refuse_unknown

        _refuse_unknown(*pipeline_settings(get_pipeline(rest[0]), {}, None, _sets(rest)))


def _sets(words: list[str]) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == "--set"]


@EACH_PAGE
def test_toml_is_a_run(page: Path) -> None:
    for block in of(page, "toml"):
        settings = tomllib.loads(block.text)
        lb.get(settings["method"])(**configure(settings["method"], settings).arguments)


@EACH_PAGE
def test_json_is_a_task(page: Path) -> None:
    from limbeck.tasks.records import parse_record

    for block in of(page, "json"):
        for line in block.text.splitlines():
            record = parse_record(json.loads(line), f"{page.name}:{block.line}")
            assert record.serves or "answer" not in line


# ---------------------------------------------------------------- pages


def test_every_method_has_a_page(generated: Any) -> None:
    for name, recipe in REGISTRY.items():
        text = generated.pages[f"methods/{name}.md"]
        assert f"# {recipe.title}\n" in text
        assert str(recipe().terms) in text
        assert f"confidence: **{recipe.confidence}**" in text
        for argument in recipe.arguments:
            row = re.search(rf"^\| `{argument}` \| (.*) \| (.*) \|$", text, re.MULTILINE)
            assert row, f"{name}: {argument} has no row"
            assert row[2].strip(), f"{name}: {argument} is not documented in the docstring"
        assert f"({name}.md)" in generated.pages["methods/overview.md"].partition("<!--nav-->")[2]


@pytest.mark.parametrize("name", REGISTRY)
def test_the_command_of_a_page_can_start(name: str, generated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task serves what the method reads, and every model has a name."""
    from limbeck.cli.settings import check, run_config
    from limbeck.engine.build import build_method, check_models, prepare_tasks
    from limbeck.engine.checks import data_names

    monkeypatch.chdir(ROOT)
    words = shlex.split(generated.module.command(REGISTRY[name]))
    flags = {word.removeprefix("--"): words[i + 1] for i, word in enumerate(words) if word in ("--teacher", "--task")}
    config = run_config(name, flags, None, _sets(words))
    bring = [w for w in (config.task, *config.datasets.values()) if w in ("pairs.jsonl", "pretrain.jsonl")]
    if bring or config.others:
        return  # the reader brings files or models
    method = build_method(config)
    check(config)
    check_models(config, method, {})
    assert (config.method, method.name) == (name, name)
    assert config.teacher or "teacher" not in method.roles
    tasks = prepare_tasks(config, method)
    assert {"task"} | data_names(method) <= set(tasks)
    assert all(task.train for task in tasks.values())


def test_every_pipeline_has_its_place(generated: Any) -> None:
    text = generated.pages["methods/pipelines.md"]
    for name, plan in PIPELINES.items():
        assert f"## {plan.title}\n\n`{name}` · " in text
        assert all(re.search(rf"^\| `{a}` \| .* \| .+ \|$", text, re.MULTILINE) for a in plan.arguments)
        assert f"limbeck pipeline {name} " in text
        assert f"`{name}`" in (ROOT / "CHANGELOG.md").read_text()


def test_the_survey_has_every_method(generated: Any) -> None:
    text = generated.pages["methods/overview.md"]
    assert "| [`opd`](opd.md) | logit-based | black-box | token |" in text
    for name in REGISTRY:
        assert re.search(rf"^\| \[`{name}`\]\({name}\.md\) \| \S.* \| \S+ \| \S+ \|$", text, re.MULTILINE), name


def test_docstrings_are_converted(generated: Any) -> None:
    for path, text in generated.pages.items():
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        left = re.findall(r":(?:math|func|class|meth):`|^\.\. |``", prose, re.MULTILINE)
        assert not left, f"{path}: {left[0]}"


def test_commands_of_generated_pages_parse(generated: Any) -> None:
    for path, text in generated.pages.items():
        for block in blocks(text):
            for line in block.text.splitlines() if block.language == "bash" else ():
                _check_command(shlex.split(line), f"{path}: {line}")


def test_readme_is_short_and_its_table_is_the_registry(generated: Any) -> None:
    """Python and the picture come first; the table has a row for each family and the name of every method."""
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    table = generated.module.families_table()
    assert table in text, f"the table in README.md must be:\n{table}"
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(REGISTRY)
    assert (
        text.index("docs/assets/demo.svg") < text.index("lb.distill(") < text.index("lb.objective(") < text.index(table)
    )


def test_the_index_of_methods_has_every_method_with_paper_reads_and_confidence(generated: Any) -> None:
    """The table that README.md refers to."""
    index = generated.pages["methods/overview.md"]
    for name, recipe in REGISTRY.items():
        paper, reads = generated.module.link(recipe.paper), ", ".join(recipe().roles) or "–"
        assert f"| [`{name}`]({name}.md) | {recipe.title} | {paper} | {reads} | {recipe.confidence} |" in index, name


def test_changelog_names_every_method() -> None:
    for name in REGISTRY:
        assert f"`{name}`" in (ROOT / "CHANGELOG.md").read_text(), name


def test_links_of_pages_outside_the_site_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if not target.startswith("http") and not target.startswith("docs/assets/"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_nothing_is_fetched_from_the_network() -> None:
    for file in ("mkdocs.yml", "docs/assets/math.js", "docs/assets/extra.css", "docs/assets/katex/katex.min.css"):
        assert not re.search(r"https?://", (ROOT / file).read_text()), file


@pytest.mark.skipif(shutil.which("node") is None, reason="node draws the formulas")
def test_katex_draws_every_formula(generated: Any, tmp_path: Path) -> None:
    texts = {p.name: p.read_text() for p in DOCS.glob("*.md")} | generated.pages
    formulas = [
        (path, tex)
        for path, text in texts.items()
        for tex in re.findall(
            r"\\\((.+?)\\\)|\\\[(.+?)\\\]", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.DOTALL
        )
    ]
    script = tmp_path / "draw.js"
    script.write_text(
        f"const katex = require({json.dumps(str(DOCS / 'assets/katex/katex.min.js'))});\n"
        f"for (const [where, tex] of {json.dumps([(p, a or b) for p, (a, b) in formulas])})\n"
        "  try { katex.renderToString(tex, {strict: 'error'}); } catch (e) { console.log(where, tex, e.message); }\n"
    )
    drawn = subprocess.run(["node", str(script)], capture_output=True, text=True, check=True)
    assert len(formulas) > 20
    assert not drawn.stdout
