"""A student's folder can be given away: a model card that tells what it is, and no path of this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from peft import PeftModel
from tiny_runs import Shelf, go
from transformers import AutoModelForCausalLM, AutoTokenizer

import limbeck as lb
from limbeck.engine import model_card as card
from limbeck.engine import run as engine_run
from limbeck.engine.storage import provenance


@pytest.fixture(scope="module")
def made(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose every model, text and datum lies in a folder of this machine."""
    folder = tmp_path_factory.mktemp("made")
    student = Path(shutil.copytree(shelf.student, folder / "small"))
    (student / "README.md").write_text("---\nlicense: mit\n---\n# small\n")
    (folder / "chat.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}>")
    own: dict[str, Any] = {"lora_rank": 2, "template": str(folder / "chat.jinja"), "eval_size": 4}
    with pytest.MonkeyPatch.context() as m:
        m.setattr(engine_run._Run, "_report", lambda self: None)
        return go(shelf, "kdrl", folder / "run", student=str(student), task=str(shelf.verified), **own).out


def read(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


@pytest.mark.parametrize("name", ["student", "adapter"])
def test_no_path_of_the_machine_is_in_a_folder_of_weights(name: str, made: Path, shelf: Shelf) -> None:
    files = [p for p in (made / name).rglob("*") if p.is_file()]
    assert len(files) >= 3
    for file in files:
        for path in (made.parent, shelf.student.parent, Path.home(), Path.cwd()):
            assert str(path).encode() not in file.read_bytes(), (file.name, path)


def test_the_card_says_what_was_trained_from_what_on_what_by_what(made: Path) -> None:
    text = read(made / "student").text
    assert "`small` after training with KDRL (arXiv:2506.02208), taught by `teacher`, on `verified`" in text
    assert "(10 prompts, 2 held out)" in text
    assert "L = clip(0.2, 0.2)" in text
    evaluations = [json.loads(line) for line in (made / "evaluations.jsonl").read_text().splitlines()]
    row = next(line for line in text.splitlines() if line.startswith("| accuracy"))
    for measured in (evaluations[0], evaluations[-1]):
        assert f"{measured['accuracy']:.1%} [{100 * measured['low']:.1f}, {100 * measured['high']:.1f}]" in row
    assert "| `lora_rank` | `2` |" in text
    assert "| `group` | `6` |" in text
    assert "| `steps` | `2` |" in text
    assert "limbeck 0." in text


def test_the_head_of_the_card_is_for_machines(made: Path) -> None:
    data = read(made / "student").data.to_dict()
    assert data["library_name"] == "transformers"
    assert data["license"] == "mit"  # as the card of the model that was trained says
    assert data["tags"] == ["limbeck", "distillation", "kdrl"]
    assert "base_model" not in data  # a folder is no name that the hub knows
    assert read(made / "adapter").data.library_name == "peft"


def test_the_base_of_the_hub_is_named(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = {"method": "sft", "inputs": {"models": {"student": {"by": "files"}}}}

    class Shop:
        config = lb.engine.configure("sft", {"student": "Qwen/Qwen3-0.6B"})

    front = card._front(Shop(), run, adapter=False).to_dict()  # type: ignore[arg-type]
    assert (front["base_model"], front["base_model_relation"]) == ("Qwen/Qwen3-0.6B", "finetune")
    run["inputs"]["models"]["student"]["by"] = "tensors"  # type: ignore[index]
    assert "base_model" not in card._front(Shop(), run, adapter=False).to_dict()  # type: ignore[arg-type]


def test_the_card_shows_how_to_load_it(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    code = read(made / "student").text.partition("```python\n")[2].partition("```")[0]
    there: dict[str, Any] = {}
    exec(code, there)
    assert isinstance(there["text"], str)
    code = read(made / "adapter").text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(made.parent)
    shutil.copytree(made / "adapter", made.parent / "adapter")
    exec(code, there)
    assert isinstance(there["model"], PeftModel)


def test_the_adapters_name_their_base_and_both_load(made: Path) -> None:
    assert json.loads((made / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "small"
    AutoModelForCausalLM.from_pretrained(made / "student")
    AutoTokenizer.from_pretrained(made / "student")


def test_a_pipeline_leaves_no_path_in_its_students(shelf: Shelf, tmp_path: Path) -> None:
    own = {**shelf.settings("kd"), "steps": 1}
    value = lb.Pipeline((lb.stage("sft"), lb.stage("kd")))
    for result in lb.run_pipeline(value, tmp_path / "p", quiet=True, **own):
        for file in result.student.iterdir():
            assert str(tmp_path).encode() not in file.read_bytes(), file.name
            assert str(shelf.student.parent).encode() not in file.read_bytes(), file.name
    assert "`stage-0-sft/student` after training" in read(result.student).text


def test_code_of_a_folder_is_found_in_the_folder_it_was_saved_to(tmp_path: Path) -> None:
    """``auto_map`` names the folder that a class was loaded from; its file lies beside the configuration now."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"auto_map": {"AutoModel": "/models/x--modeling_x.X"}, "list": ["/models/x"], "n": 1}))
    card._call_by_name(file, {"/models/x": "x"})
    assert json.loads(file.read_text()) == {"auto_map": {"AutoModel": "modeling_x.X"}, "list": ["x"], "n": 1}


def test_without_an_evaluation_the_card_has_no_numbers(shelf: Shelf, tmp_path: Path) -> None:
    text = read(go(shelf, "sft", tmp_path / "run", eval_size=0).student).text
    assert "Before and after" not in text
    assert "How to load it" in text


def test_a_card_shows_names_of_folders_and_no_paths() -> None:
    assert provenance.public_name("owner/name") == "owner/name"
    assert provenance.public_name("embedded") == "embedded"
    assert provenance.public_name("/no/such/folder") == "folder"
