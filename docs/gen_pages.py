"""Pages that are generated when the documentation is built: one for each method, and the reference.

Their content comes from the methods and the docstrings. mkdocs-gen-files runs this file. ``pages()`` returns the pages
without writing them, so that tests can look at them without a build.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs-gen-files runs this file by its path

from gen_markdown import inline, split_doc, table

import limbeck as lb
from limbeck.axes.source import Data, Sample
from limbeck.cli.methods import by_family
from limbeck.space import taxonomy
from limbeck.space.explain import axes
from limbeck.space.method import Method
from limbeck.space.pipeline import PIPELINES, PipelineRecipe
from limbeck.space.registry import REGISTRY, Recipe

CONFIDENCE = {
    "high": "the formula and its defaults were read in the authors' code or in the paper's own text",
    "medium": "the formula was read in consistent third-party quotations and its mathematics was checked, but the "
    "paper's body was not read; what is reconstructed is named below",
    "low": "the formula was reconstructed from an abstract or notes, or is a reading that we have not found published",
}
ABILITIES = {
    "sampled": "the log-probability of each sampled token (a scoring API is enough)",
    "topk": "its own k most likely tokens with their log-probabilities at every position",
    "dense": "its full next-token distribution at every position (host the weights)",
    "at": "its log-probabilities at the student's k most likely tokens (host the weights)",
    "text": "text that it generates",
}

RUNS = ("Result", "resume", "evaluate")
"""Names of the engine that have an entry; ``distill`` is at the top level."""


# ---------------------------------------------------------------- methods


@cache
def value(name: str) -> Method:
    """A method with its default arguments."""
    return lb.get(name)()


def link(paper: str) -> str:
    """Where a paper is, as a link."""
    if not paper:
        return "–"
    number = paper.removeprefix("arXiv:")
    return f"[{paper}](https://arxiv.org/abs/{number})" if number != paper else f"[{paper}](https://{paper})"


def reads(method: Method) -> str:
    """The readers of a method and what it needs from each, in few words."""
    return "; ".join(f"{role}: {', '.join(sorted(a))}" for role, a in method.roles.items()) or "–"


def methods_table(name: Callable[[str], str] = "`{}`".format) -> str:
    """Every method of the registry by family."""
    rows: list[tuple[str, ...]] = []
    for family, recipes in families().items():
        rows.append((f"**{family}**", "", "", "", ""))
        rows += [
            (name(r.name), r.title, link(r.paper), ", ".join(value(r.name).roles) or "–", r.confidence) for r in recipes
        ]
    return table(("method", "what it is", "paper", "reads", "confidence"), rows)


def families_table() -> str:
    """Families of methods with their sizes and names; README.md holds a copy."""
    rows = []
    for family, recipes in families().items():
        first = (inspect.getdoc(inspect.getmodule(recipes[0].factory)) or "").partition("\n")[0]
        about = first.rstrip(".").partition(": ")[2]
        rows.append(
            (
                f"**{family}**" + (f": {about}" if about else ""),
                str(len(recipes)),
                ", ".join(f"`{r.name}`" for r in recipes),
            )
        )
    rows.append(("**All**", str(len(REGISTRY)), ""))
    return table(("family", "methods", "names"), rows)


def families() -> dict[str, list[Recipe]]:
    """Recipes by family, in the registry's order."""
    return {family: [REGISTRY[f["name"]] for f in facts] for family, facts in by_family().items()}


def survey_table() -> str:
    """Where each method stands on the axes of arXiv:2604.00626."""
    rows = []
    for name in REGISTRY:
        place = taxonomy.place(value(name))
        rows.append((f"[`{name}`]({name}.md)", *(" and ".join(place[axis]) for axis in taxonomy.AXES)))
    return table(("method", *taxonomy.AXES), rows)


def nearest_relative(name: str) -> tuple[str, list[tuple[str, str, str]]]:
    """The method whose formula shares the most words with this one's, and the lines in which the two differ."""
    own = _words(name)
    closest = max((o for o in REGISTRY if o != name), key=lambda o: len(own & _words(o)) / len(own | _words(o)))
    return closest, [d for d in lb.diff(value(name), value(closest)) if d[0] != "confidence"]


def _words(name: str) -> frozenset[str]:
    """The names that occur in the source, the terms and the reduction."""
    shown = {k: v for k, v in axes(value(name)).items() if k.startswith(("source", "term", "reduction"))}
    return frozenset(re.findall(r"[^\W\d]\w*", " ".join(shown.values())))


def command(recipe: Recipe) -> str:
    """A command that runs the method on the embedded models and tasks, or on files that the reader has to bring."""
    method = value(recipe.name)
    words = ["limbeck train", recipe.name]
    if "teacher" in method.roles:
        words.append("--teacher embedded")
    words.append(f"--task {_task(method)}")
    if method.contexts or _in_turns(method):  # the embedded pair reads 256 tokens, contexts and turns included
        words.append("--set max_tokens=16")
    words += [f"--set others.{role}=models/{role}" for role in method.others]
    further = {part.name for part in _parts(method) if isinstance(part, Data)} - {"task"}
    words += [f"--set datasets.{name}={name}.jsonl" for name in sorted(further)]
    return " ".join(words)


def _parts(method: Method) -> list[Any]:
    return [part for source in method.sources.values() for part in source.walk()]


def _in_turns(method: Method) -> bool:
    """Whether it needs a task in turns."""
    return any(part.episodic and part.retry is None for part in _parts(method) if isinstance(part, Sample))


def _task(method: Method) -> str:
    """A task that serves what the method reads."""
    if any(part.labelled for part in _parts(method)):
        return "pairs.jsonl"
    if _in_turns(method):
        return "retry --set task_options.task=two_digit_sums"
    shown = {name for context in method.contexts for name in context.reads}
    return "examples/arithmetic.jsonl" if "solution" in shown else "two_digit_sums"


def method_page(recipe: Recipe) -> str:
    """One method: what it minimises, its place in the space, its arguments, its relatives."""
    method = value(recipe.name)
    body, sections = split_doc(recipe.doc)
    summary, _, rest = body.partition("\n\n")
    of = {k: v for k, v in axes(method).items() if k != "confidence"}
    closest, differences = nearest_relative(recipe.name)
    meanings = {name: text for key, text in sections.get("Args", {}).items() for name in key.split(", ")}
    arguments = [(f"`{n}`", f"`{_shown(d)}`", meanings.get(n, "")) for n, d in recipe.arguments.items()]
    parts = [
        f"# {recipe.title}",
        f"`{recipe.name}` · {link(recipe.paper) if recipe.paper else 'no single paper'} · confidence: "
        f"**{recipe.confidence}** ({CONFIDENCE[recipe.confidence]})",
        summary,
        "## Objective",
        rest or "See below.",
        "## As it runs",
        f"```text\nL = {method.terms}\n```",
        table(("axis", "value"), [(k.strip(), f"`{v}`") for k, v in of.items()]),
        _needs(method),
        _place(method),
        "## Arguments",
        table(("argument", "default", "meaning, and where the default comes from"), arguments)
        if arguments
        else "It has no arguments.",
        f"## Differs from {REGISTRY[closest].title}",
        f"The nearest relative in the registry is [`{closest}`]({closest}.md); they differ in {len(differences)} "
        f"line{'s' if len(differences) != 1 else ''}.",
        table(
            ("axis", f"`{recipe.name}`", f"`{closest}`"), [(k.strip(), f"`{a}`", f"`{b}`") for k, a, b in differences]
        ),
        "## Run it",
        f"```bash\n{command(recipe)}\n```",
        "## Source code",
        f"```python\n{source_of(recipe)}\n```",
        f"From `{inspect.getmodule(recipe.factory).__name__}`.",  # type: ignore[union-attr]
        "## Citation",
        lb.cite(method),
    ]
    return "\n\n".join(parts) + "\n"


def _needs(method: Method) -> str:
    needs = [
        f"* `{role}`: {'; '.join(ABILITIES[a] for a in sorted(able))}{_derived(role, method)}."
        for role, able in method.roles.items()
    ]
    if taxonomy.needs_verifier(method):
        needs.append("* a task with a verifier.")
    if _in_turns(method):
        needs.append("* a task in turns ([several turns](../multi-turn.md)).")
    if any(s.labelled for s in method.sources.values()):
        needs.append("* a task with pairs (chosen and rejected responses).")
    elif any("responses" in str(s) for s in method.sources.values()):
        needs.append("* a task with written responses.")
    for context in sorted(method.contexts, key=str):
        if context.reads:
            joint = " or " if context.enough == "any" else " and "
            needs.append(f"* for the context `{context}`: {joint.join(f'`{name}`' for name in context.reads)}.")
    what = "What it needs besides the student and prompts"
    return f"{what}:\n\n" + ("\n".join(needs) or "* nothing.")


def _place(method: Method) -> str:
    """A sentence about the survey's axes."""
    place = taxonomy.place(method)
    shown = ", ".join(f"{axis} *{' and '.join(values)}*" for axis, values in place.items())
    return f"In the axes of the survey [arXiv:2604.00626](https://arxiv.org/abs/2604.00626): {shown}."


def _derived(role: str, method: Method) -> str:
    """A note where the run makes the weights from the student's."""
    if role in method.teachers:
        return ""
    return ", from the student's own weights" + (" unless `--ref` names others" if role == "ref" else "")


def _shown(default: object) -> str:
    return repr(default) if isinstance(default, str) else str(default)


def source_of(recipe: Recipe) -> str:
    """The factory's source without its docstring."""
    text = textwrap.dedent(inspect.getsource(recipe.factory))
    node = ast.parse(text).body[0]
    assert isinstance(node, ast.FunctionDef)
    doc = node.body[0]
    lines = text.rstrip().split("\n")
    return "\n".join(lines[: doc.lineno - 1] + lines[doc.end_lineno :])


def methods_index() -> str:
    """All methods in one table, then by family; the second list is the navigation of the site."""
    nav = "\n".join(
        f"* {family}\n" + "\n".join(f"    * [{r.title}]({r.name}.md)" for r in recipes)
        for family, recipes in families().items()
    )
    meanings = "\n".join(f"* **{level}**: {text}." for level, text in CONFIDENCE.items())
    return f"""# Methods

The table has every method, with the models that it reads besides the student. Each name leads to a page with the
formula, the arguments and a command. `limbeck methods` prints the same list, `limbeck explain kdrl` one method, and
`limbeck diff gkd kdrl` how two methods differ. [Which method should I use?](../choose.md) helps to choose.

{methods_table("[`{0}`]({0}.md)".format)}

The confidence says how sure we are that our formula is the published one:

{meanings}

It says nothing about how well a method works. `tests/golden/` has values from the authors' code, where there is any.

[Pipelines](pipelines.md) run several methods in a row.

## In the axes of a survey

{split_doc(inspect.getdoc(taxonomy) or "")[0]}

`limbeck methods --by feedback` groups the list by the first of these axes.

{survey_table()}

## By family

<!--nav-->

* [All methods](overview.md)
{nav}
* [Pipelines](pipelines.md)
"""


def pipelines_page() -> str:
    """Every pipeline with a name."""
    intro = """# Pipelines

A pipeline runs several methods in a row. Each stage starts from the student of the previous stage, and has a folder of
its own below `--out`. If a pipeline is stopped, the same command continues it in the stage where it was.
`limbeck pipeline` lists the pipelines below; in Python, run them by
`lb.run_pipeline(lb.pipelines.NAME(...), out, ...)`."""
    return "\n\n".join([intro, *map(_pipeline, PIPELINES.values())]) + "\n"


def _pipeline(plan: PipelineRecipe) -> str:
    body, sections = split_doc(plan.doc)
    meanings = sections.get("Args", {})
    steps = " → ".join(f"[`{s.method}`]({s.method}.md)" for s in plan().stages)
    rows = [(f"`{n}`", f"`{_shown(d)}`", meanings.get(n, "")) for n, d in plan.arguments.items()]
    teacher = " --teacher embedded" if any("teacher" in value(s.method).roles for s in plan().stages) else ""
    parts = [
        f"## {plan.title}",
        f"`{plan.name}` · {link(plan.paper)} · {steps}",
        body,
        table(("argument", "default", "meaning, and where the default comes from"), rows),
        f"```bash\nlimbeck pipeline {plan.name}{teacher} --task two_digit_sums --out runs/{plan.name}\n```",
    ]
    return "\n\n".join(parts)


# ---------------------------------------------------------------- reference


@cache
def attribute_docs(module: ModuleType) -> dict[str, str]:
    """Docstrings that stand below the assignments of a module."""
    body = ast.parse(inspect.getsource(module)).body
    out: dict[str, str] = {}
    for node, after in pairwise(body):
        doc = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
        if isinstance(doc, str):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            out.update({t.id: doc for t in targets if isinstance(t, ast.Name)})
    return out


def entry(name: str, thing: Any, docs: Mapping[str, str], level: int = 2) -> str:
    """A public name: its signature and docstring, with the public methods of a class."""
    head = f"{'#' * level} `{name}`"
    if inspect.isfunction(thing) or inspect.isclass(thing):
        parts = [head, f"```text\n{signature(name, thing)}\n```", documented(thing)]
        if inspect.isclass(thing):
            parts += [
                entry(f"{name}.{n}", member, {}, level + 1)
                for n, member in vars(thing).items()
                if (not n.startswith("_") or n == "__call__")
                and (inspect.isfunction(member) or isinstance(member, property))
                and inspect.getdoc(member)
            ]
        return "\n\n".join(parts)
    if isinstance(thing, property):
        return f"{head}\n\n{documented(thing)}"
    text = inline(inspect.cleandoc(docs[name])) if name in docs else ""
    return f"{head}\n\n" + (text or f"`{thing}`")


class Written:
    """An annotation as it stands in the source."""

    def __init__(self, annotation: Any):
        self.text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)

    def __repr__(self) -> str:
        return self.text


def signature(name: str, thing: Any) -> str:
    """The signature, with one argument per line if it is long."""
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return f"{name}(message)"
    sign = inspect.signature(thing)
    empty = inspect.Signature.empty
    parameters = [p.replace(**_as_written(p)) for p in sign.parameters.values() if p.name != "self"]
    returns = empty if inspect.isclass(thing) or sign.return_annotation is empty else Written(sign.return_annotation)
    short = f"{name}{inspect.Signature(parameters, return_annotation=returns)}"
    if len(short) <= 100:
        return short
    lines: list[str] = []
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and "*" not in lines:
            lines.append("*")
        lines.append(str(p))
    ending = "" if returns is empty else f" -> {returns!r}"
    return f"{name}(\n" + "".join(f"    {line},\n" for line in lines) + f"){ending}"


def _as_written(p: inspect.Parameter) -> dict[str, Any]:
    """The annotation without quotes; a default that is an object of the library by its name."""
    out = {} if p.annotation is p.empty else {"annotation": Written(p.annotation)}
    ours = type(p.default).__module__.startswith("limbeck")
    return out | ({"default": Written(str(p.default))} if ours else {})


def documented(thing: Any) -> str:
    """The docstring, its sections as tables."""
    body, sections = split_doc(inspect.getdoc(thing) or "")
    for head, entries in sections.items():
        if list(entries) == [""] or head in ("Returns", "Raises"):
            body += f"\n\n**{head}:** " + "; ".join(f"`{k}`: {v}" if k else v for k, v in entries.items())
        else:
            body += f"\n\n**{head.replace('Args', 'Arguments')}**\n\n" + table(
                ("name", "meaning"), [(f"`{k}`", v) for k, v in entries.items()]
            )
    return body


def module_page(title: str, modules: tuple[str, ...], only: tuple[str, ...] = ()) -> str:
    """The public names of modules, or ``only`` these: ``__all__`` of a package, else what the module itself defines."""
    import importlib

    parts = [f"# {title}"]
    for path in modules:
        module = importlib.import_module(path)
        parts.append(f"`{path}`\n\n{split_doc(inspect.getdoc(module) or '')[0]}")
        names = getattr(module, "__all__", None) or [
            n for n, x in vars(module).items() if not n.startswith("_") and getattr(x, "__module__", None) == path
        ]
        for name in names:
            thing = getattr(module, name)
            if inspect.ismodule(thing) or (only and name not in only):
                continue
            home = sys.modules.get(getattr(thing, "__module__", "") or "", module)
            parts.append(entry(name, thing, attribute_docs(home) | _constants(module)))
    return "\n\n".join(parts) + "\n"


@cache
def _constants(package: ModuleType) -> dict[str, str]:
    """Docstrings of constants that a package takes from its modules."""
    out: dict[str, str] = {}
    for name, module in list(sys.modules.items()):
        if name.startswith(package.__name__) and inspect.ismodule(module) and hasattr(module, "__file__"):
            out |= attribute_docs(module)
    return out


def cli_page() -> str:
    """The commands with their arguments and options, from the typer application."""
    import typer.main

    from limbeck.cli.app import app

    group = typer.main.get_command(app)
    parts = ["# Command line"]
    for name, one in sorted(group.commands.items()):  # type: ignore[attr-defined]
        rows = []
        for p in one.params:
            flag = p.name.upper() if p.param_type_name == "argument" else ", ".join([*p.opts, *p.secondary_opts])
            rows.append((f"`{flag}`", (getattr(p, "help", None) or "").replace("\n", " ")))
        parts += [f"## `limbeck {name}`", from_rich(inspect.cleandoc(one.help or "")), table(("word", "meaning"), rows)]
    return "\n\n".join(parts) + "\n"


def from_rich(text: str) -> str:
    """Rich's markup as Markdown: lines that are a command become a block of commands."""
    text = re.sub(r"(?:^\[cyan\].*\[/\]$\n?)+", lambda m: f"```bash\n{m[0].rstrip()}\n```\n", text, flags=re.MULTILINE)
    parts = re.split(r"(^```bash\n.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    for i, part in enumerate(parts):
        if part.startswith("```"):
            parts[i] = re.sub(r"\[(?:/|/?[a-z]+)\]", "", part)
        else:
            parts[i] = re.sub(r"\[cyan\](.*?)\[/\]", r"`\1`", re.sub(r"\[bold\](.*?)\[/\]", r"**\1**", part))
    return "".join(parts)


def pages() -> dict[str, str]:
    """Path to text of every generated page."""
    out = {"methods/overview.md": methods_index(), "methods/pipelines.md": pipelines_page()}
    out |= {f"methods/{r.name}.md": method_page(r) for r in REGISTRY.values()}
    reference: dict[str, tuple[str, Callable[[], str]]] = {
        "cli": ("Command line", cli_page),
        "limbeck": ("limbeck", lambda: module_page("The top level", ("limbeck",)) + _errors()),
        "pipelines": (
            "Pipelines",
            lambda: module_page("Pipelines", ("limbeck.space.pipeline", "limbeck.methods.pipelines")),
        ),
        "runs": ("Runs", lambda: module_page("Runs", ("limbeck.engine",), RUNS)),
        "axes": ("The vocabulary", lambda: module_page("The vocabulary of methods", ("limbeck.axes",))),
        "divergences": ("Divergences", lambda: module_page("Divergences", ("limbeck.math.divergence",))),
        "taxonomy": ("Taxonomy", lambda: module_page("The survey's axes", ("limbeck.space.taxonomy",))),
        "records": ("Records", lambda: module_page("Records", ("limbeck.types",))),
        "tasks": ("Tasks", lambda: module_page("Tasks", ("limbeck.tasks",))),
        "evaluate": ("Evaluation", lambda: module_page("Evaluation", ("limbeck.evaluate",))),
        "report": ("Report", lambda: module_page("Report", ("limbeck.report",))),
    }
    out |= {f"reference/{name}.md": make() for name, (_, make) in reference.items()}
    nav = "\n".join(f"* [{title}]({name}.md)" for name, (title, _) in reference.items())
    intro = "# Reference\n\nGenerated from signatures and docstrings when this site is built."
    out["reference/overview.md"] = f"{intro}\n\n<!--nav-->\n\n* [Overview](overview.md)\n{nav}\n"
    return out


def _errors() -> str:
    from limbeck import errors

    return "\n" + entry("nearest", errors.nearest, {}) + "\n"


if __name__ == "<run_path>":  # as mkdocs-gen-files runs it
    import mkdocs_gen_files

    for path, text in pages().items():
        with mkdocs_gen_files.open(path, "w") as file:
            file.write(text)
