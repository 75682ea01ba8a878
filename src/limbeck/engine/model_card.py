"""The model card of a trained student, and the removal of this machine's paths from its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .. import embedded
from ..report import load_run
from ..report.headline import comparison
from ..tasks.base import found
from .config import RunConfig
from .inputs import specs
from .models import hub
from .session import Session
from .storage.atomic import write_json, write_text
from .storage.provenance import public_name
from .storage.run_log import read_run

_ELSEWHERE = ("method", "arguments", "student", "teacher", "ref", "others", "task", "datasets", "cpu", "trackers")
"""Settings that the card describes in sentences, or that do not change the result."""


def finish(folder: Path, session: Session, out: Path, *, adapter: bool = False) -> None:
    """Write ``README.md`` into a folder of weights, and replace paths of models in its JSON files by names.

    Args:
        folder: of the student, or of its adapters.
        session: of the run.
        out: folder of the run.
        adapter: the folder holds adapters, and not the whole student.
    """
    run = read_run(out)
    paths = {p: public_name(p) for spec in specs(session.config).values() for p in _written_as(spec)}
    for file in folder.glob("*.json"):
        if file.name.endswith(("config.json", "tokenizer.json")):
            _call_by_name(file, paths)
    write_text(folder / "README.md", _text(session, run, _numbers(out), adapter))


def _written_as(spec: str) -> set[str]:
    """The forms in which a library may have written the path of a model."""
    here = found(spec, "folder") if spec != "embedded" else None
    if here is None:
        return set()
    return {form for form in (spec, str(here), str(here.absolute()), str(here.resolve())) if form}


def _call_by_name(file: Path, paths: Mapping[str, str]) -> None:
    """Replace paths in a JSON file: those of models, and of code in their folders."""
    value = json.loads(file.read_text(encoding="utf-8"))

    def named(x: Any) -> Any:
        if isinstance(x, dict):
            return {k: named(v) for k, v in x.items()}
        if isinstance(x, list):
            return [named(v) for v in x]
        if isinstance(x, str):
            path, code, within = x.partition("--")  # auto_map: the folder, then the class; its file was saved here
            return within if code and path in paths else paths.get(x, x)
        return x

    if named(value) != value:
        write_json(file, named(value))


# ---------------------------------------------------------------- the card


def _text(session: Session, run: Mapping[str, Any], numbers: str, adapter: bool) -> str:
    parts = [
        f"---\n{_front(session, run, adapter).to_yaml()}\n---",
        f"# {run.get('title') or run.get('method')}: {public_name(str(run.get('student')))}, trained further",
        _origin(session, run),
        numbers,
        "## How to load it\n\n" + _loading(session, adapter),
        "## How it was trained\n\n" + _training(session.config, run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(session: Session, run: Mapping[str, Any], adapter: bool) -> ModelCardData:
    """The machine-readable head; only names that the hub knows are given as the hub's."""
    student = session.config.student
    base = student if hub.is_hub_name(student) and "student" not in _objects(run) else None
    return ModelCardData(
        base_model=base,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        license=_license(student),
        tags=["limbeck", "distillation", str(run.get("method")), *(["lora"] if adapter else [])],
        base_model_relation=None if base is None else "adapter" if adapter else "finetune",
    )


def _objects(run: Mapping[str, Any]) -> set[str]:
    models = run.get("inputs", {}).get("models", {})
    return {role for role, record in models.items() if record.get("by") == "tensors"}


def _license(student: str) -> str | None:
    """The license in the card of the model that was trained, where that card is on this machine."""
    folder = embedded.path("student") if student == "embedded" else found(student, "folder")
    file = folder / "README.md" if folder is not None else hub.cached(student, "README.md")
    try:
        license_ = ModelCard.load(file).data.license if file is not None and file.is_file() else None
    except Exception:  # a card is written by people, and may be malformed in any way
        return None
    return license_ if isinstance(license_, str) else None


def _origin(session: Session, run: Mapping[str, Any]) -> str:
    """The student, its teachers, the data and the method, in sentences."""
    own = [r for r in session.method.roles if r in session.config.others or r == "teacher"]
    taught = [f"`{public_name(session.policies[r].name)}`" for r in own if r in session.policies]
    by = f", taught by {' and '.join(taught)}" if taught else ""
    data = run.get("inputs", {}).get("data", {})
    sets = [f"`{d['name']}` ({d['train']:,} prompts, {d['test']:,} held out)" for d in data.values()]
    method = run.get("title") or run.get("method")
    paper = f" ({run['paper']})" if run.get("paper") else ""
    lines = [
        f"This is `{public_name(session.student.name)}` after training with {method}{paper}{by}, on "
        f"{' and '.join(sets)}. It was made with Limbeck.",
        "What was minimised:",
        "```text\n" + str(run.get("formula", "")).strip() + "\n```",
    ]
    return "\n\n".join(lines)


def _numbers(out: Path) -> str:
    """Held-out measures before and after, with their intervals, as in the report."""
    data = load_run(out)
    if data.before is None:
        return ""
    rows = [" | ".join([f"{n}, {unit}" if unit else n, *rest]) for n, unit, *rest in comparison(data)]
    head = "| measured on held-out problems | before | after | change |\n| --- | --- | --- | --- |\n"
    return "## Before and after\n\n" + head + "\n".join(f"| {row} |" for row in rows)


def _loading(session: Session, adapter: bool) -> str:
    given = session.config.chat_template_kwargs
    keywords = f", **{given!r}" if given else ""
    if adapter:
        base = public_name(session.config.student)
        lines = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            "",
            f"base = AutoModelForCausalLM.from_pretrained({json.dumps(base)})  # what was trained",
            'model = PeftModel.from_pretrained(base, "adapter")  # this folder',
        ]
    else:
        lines = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("student")  # this folder',
            'tokenizer = AutoTokenizer.from_pretrained("student")',
            'messages = [{"role": "user", "content": "..."}]',
            "ids = tokenizer.apply_chat_template(",
            f'    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True{keywords}',
            ")",
            f"text = tokenizer.decode(model.generate(**ids, max_new_tokens={session.config.max_tokens})[0])",
        ]
    return "```python\n" + "\n".join(lines) + "\n```"


def _training(config: RunConfig, run: Mapping[str, Any]) -> str:
    """Settings that are not the defaults, and the versions."""
    values = config.model_dump(mode="json")
    defaults = {name: field.get_default(call_default_factory=True) for name, field in RunConfig.model_fields.items()}
    own = {k: v for k, v in values.items() if k not in _ELSEWHERE and v != defaults[k] and not _is_path(v)}
    own |= values["arguments"]
    settings = [f"| `{k}` | `{json.dumps(v, ensure_ascii=False)}` |" for k, v in own.items() if not _is_path(v)]
    always = [f"| `{k}` | `{values[k]}` |" for k in ("steps", "prompts", "lr", "max_tokens", "seed") if k not in own]
    versions = ", ".join(f"{k} {v}" for k, v in run.get("versions", {}).items())
    table = "| setting | value |\n| --- | --- |\n" + "\n".join([*always, *settings])
    return f"{table}\n\nOther settings have Limbeck's defaults. Versions: {versions}."


def _is_path(value: Any) -> bool:
    """Whether a setting, or a value in it, may be a path of this machine."""
    if isinstance(value, Mapping):
        return any(map(_is_path, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_is_path, value))
    return isinstance(value, str) and (Path(value).is_absolute() or "/" in value or "\\" in value or value[:1] in "~.")
