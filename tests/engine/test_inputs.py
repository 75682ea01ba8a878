"""A resumed run, or pipeline, knows what it was begun with: data, models, templates, generation settings, code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import Killed, Parity, Shelf, dies, go, jsonl, lines, llama, put, same, tensors
from transformers import AutoModelForCausalLM

import limbeck as lb
from limbeck.engine import resume
from limbeck.engine.models import loading
from limbeck.engine.storage import fingerprint
from limbeck.engine.storage.memory import Memory
from limbeck.engine.storage.run_folder import recorded
from limbeck.errors import LimbeckError
from limbeck.types import Prompt

LINES = [{"prompt": f"say {i}", "response": str(i), "answer": "1"} for i in range(12)]

CHAT = "{% for m in messages %}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"


@pytest.fixture
def begun(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was killed after its first checkpoint, all of whose inputs are files of its own."""
    for name in ("student", "teacher"):
        shutil.copytree(getattr(shelf, name), tmp_path / name)
    jsonl(tmp_path / "data.jsonl", LINES)
    jsonl(tmp_path / "test.jsonl", [{"prompt": f"tell {i}", "response": "x", "answer": "2"} for i in range(4)])
    (tmp_path / "chat.jinja").write_text(CHAT)
    (tmp_path / "hint.jinja").write_text("The answer is {{ answer }}.")
    heal = dies(monkeypatch, at=1)
    with pytest.raises(Killed):
        go(
            shelf,
            "opsd",
            tmp_path / "run",
            student=str(tmp_path / "student"),
            teacher=None,
            ref=str(tmp_path / "teacher"),
            task=str(tmp_path / "data.jsonl"),
            task_options={"test_path": str(tmp_path / "test.jsonl")},
            template=str(tmp_path / "chat.jinja"),
            contexts={"solution": str(tmp_path / "hint.jinja")},
            save_every=1,
        )
    heal()
    return tmp_path / "run"


def one_weight(folder: Path) -> None:
    """One bit of one weight."""
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def renamed_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("|>", "|> "))


def generation(folder: Path) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [2, 3]}))


def edit(name: str, old: str, new: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "other lines": (lambda f: jsonl(f / "data.jsonl", LINES[:-2]), r"data.jsonl' gives other data \(then 12 prompts"),
    "one response": (edit("data.jsonl", '"response": "3"', '"response": "4"'), "data.jsonl' gives other data"),
    "one answer": (edit("data.jsonl", '"answer": "1"', '"answer": "3"'), "data.jsonl' gives other data"),
    "the order of lines": (lambda f: jsonl(f / "data.jsonl", LINES[::-1]), "data.jsonl' gives other data"),
    "the test file": (edit("test.jsonl", "tell 1", "tell 9"), "data.jsonl' gives other data"),
    "a weight of the student": (
        lambda f: one_weight(f / "student"),
        r"the student \(.*\) has another model",
    ),
    "a weight of the reference": (
        lambda f: one_weight(f / "teacher"),
        r"the ref \(.*teacher\) has another model",
    ),
    "the student's ends": (lambda f: generation(f / "student"), r"the student \(.* has another generation_config.j"),
    "the tokenizer's template": (
        lambda f: renamed_template(f / "student"),
        r"the student \(.*another chat_tem",
    ),
    "the chat template": (edit("chat.jinja", "}>", "}:"), "the student's chat template has changed"),
    "a context's template": (edit("hint.jinja", "The", "Its"), "the template of context 'solution' has changed"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_inputs_are_refused_and_nothing_is_touched(change: str, begun: Path) -> None:
    do, words = CHANGES[change]
    do(begun.parent)
    kept = ("metrics.jsonl", "evaluations.jsonl", "run.json")
    before = [(begun / name).read_bytes() for name in kept]
    with pytest.raises(LimbeckError, match=words) as e:
        resume(begun)
    assert "--accept-changes" in str(e.value)
    assert "\n" not in str(e.value)
    assert str(e.value).endswith(".")
    assert [(begun / name).read_bytes() for name in kept] == before


def test_data_and_folders_are_compared_before_a_model_is_loaded(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "load_policy", lambda *a, **k: pytest.fail("a model was loaded"))
    edit("data.jsonl", "say 1", "say 21")(begun.parent)
    one_weight(begun.parent / "student")
    with pytest.raises(LimbeckError, match=r"other data .*; the student .*has another model.safetensors"):
        resume(begun)


def test_changes_without_effect_are_accepted(begun: Path) -> None:
    """Blank lines and times of files, a model card, another machine's copy in the same place."""
    folder = begun.parent
    (folder / "data.jsonl").write_text("\n" + (folder / "data.jsonl").read_text().replace("\n", "\n\n"))
    (folder / "student" / "README.md").write_text("a card")
    shutil.copytree(folder / "teacher", folder / "copy")
    shutil.rmtree(folder / "teacher")
    (folder / "copy").rename(folder / "teacher")
    assert resume(begun).steps == 2
    assert "accepted" not in json.loads((begun / "run.json").read_text())["resumed"][0]


def test_accepted_changes_are_written_down_once(begun: Path) -> None:
    edit("data.jsonl", "say 1", "say 21")(begun.parent)
    one_weight(begun.parent / "teacher")
    assert resume(begun, accept_changes=True).steps == 2
    run = json.loads((begun / "run.json").read_text())
    (row,) = run["resumed"]
    assert [words.split(" (")[0].split("=")[0] for words in row["accepted"]] == ["task", "the ref"]
    resume(begun, steps=3)  # the new ones are the run's own now
    run = json.loads((begun / "run.json").read_text())
    assert "accepted" not in run["resumed"][1]


def test_what_was_stored_of_other_prompts_is_written_again(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning OPD stores responses by prompt: those of other prompts of the same name must not be trained on."""
    data = jsonl(tmp_path / "data.jsonl", LINES)
    heal = dies(monkeypatch, at=1)
    with pytest.raises(Killed):
        go(shelf, "lightning_opd", tmp_path / "run", task=str(data), save_every=1, steps=2)
    heal()
    stored = tmp_path / "run" / "checkpoints" / "step-000001" / "stored.safetensors"
    assert Memory.restored(Memory().to_json(), load_file(stored)).written["main"]
    edit("data.jsonl", "say", "tell")(tmp_path)
    resume(tmp_path / "run", accept_changes=True)
    stored = tmp_path / "run" / "checkpoints" / "step-000002" / "stored.safetensors"
    assert (
        len(Memory.restored(Memory().to_json(), load_file(stored)).written["main"]) == 4
    )  # those of the one step since


# ---------------------------------------------------------------- objects


def test_model_objects_are_known_by_their_tensors(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was given objects resumes from the folders they name, if these hold the same weights."""
    heal = dies(monkeypatch, at=1)
    for name, lora in (("same", 0), ("adapters", 2), ("other", 0)):
        model = AutoModelForCausalLM.from_pretrained(shelf.student)
        if name == "other":
            next(model.parameters()).data[0, 0] += 1e-3
        with pytest.raises(Killed):
            go(shelf, "kdrl", tmp_path / name, student=model, save_every=1, lora_rank=lora)
    heal()
    straight = go(shelf, "kdrl", tmp_path / "straight", save_every=1)
    resumed = resume(tmp_path / "same")
    assert same(*(tensors(r.student / "model.safetensors") for r in (straight, resumed)))
    assert resume(tmp_path / "adapters").steps == 2
    with pytest.raises(LimbeckError, match=r"the student \(.*\) has other weights"):
        resume(tmp_path / "other")


def test_a_task_object_is_known_by_its_prompts(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Parity()
    other.train = [replace(other.train[0], columns={"hard": 1.0}), *other.train[1:]]
    digests = [fingerprint.of_task(task)["digest"] for task in (Parity(), Parity(), other)]
    assert digests[0] == digests[1] != digests[2]
    heal = dies(monkeypatch, at=1)
    with pytest.raises(Killed):
        go(shelf, "grpo", tmp_path / "run", task=Parity(), save_every=1)
    heal()
    with pytest.raises(LimbeckError, match=r"the task 'parity' of .* was made in Python; add --import FILE.py"):
        resume(tmp_path / "run")
    with pytest.raises(LimbeckError, match="task='parity' gives other data"):
        resume(tmp_path / "run", task=other)
    assert resume(tmp_path / "run", task=Parity()).steps == 2
    assert "class Parity" in json.loads((tmp_path / "run" / "run.json").read_text())["inputs"]["code"]["tiny_runs.py"]


def test_generated_prompts_are_sampled() -> None:
    made: list[int] = []

    class Endless:
        def __len__(self) -> int:
            return 10**9

        def __getitem__(self, i: int) -> Prompt:
            made.append(i)
            return Prompt(str(i), ({"role": "user", "content": str(i)},))

    task = Parity()
    task.train = Endless()  # type: ignore[assignment]
    told = fingerprint.of_task(task)
    assert told["train"] == 10**9
    assert len(made) == 32
    assert (made[0], made[-1]) == (0, 10**9 - 1)


# ---------------------------------------------------------------- model folders


def test_a_large_folder_is_sampled_and_its_size_and_header_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "WHOLE", 1000)
    monkeypatch.setattr(fingerprint, "_BLOCK", 8)
    monkeypatch.setattr(fingerprint, "_BLOCKS", 4)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(2000))
    first = fingerprint.of_folder(tmp_path)
    for content in (bytes(2001), b"x" + bytes(1999), bytes(1999) + b"x"):
        file.write_bytes(content)
        assert fingerprint.of_folder(tmp_path) != first
    file.write_bytes(bytes(2000))
    assert fingerprint.of_folder(tmp_path) == first


def test_the_base_of_adapters_is_part_of_them(tmp_path: Path) -> None:
    base = put(llama(3), tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    first = fingerprint.of_folder(tmp_path / "adapter")
    one_weight(base)
    assert fingerprint.of_folder(tmp_path / "adapter") != first


def test_a_model_of_the_hub_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "snapshots" / "0123abcd" / "config.json"
    monkeypatch.setattr(fingerprint.hub.huggingface_hub, "try_to_load_from_cache", lambda name, f: str(file))
    assert fingerprint.of_spec("owner/name", "teacher") == {"by": "files", "digest": "0123abcd"}
    monkeypatch.setattr(fingerprint.hub.huggingface_hub, "try_to_load_from_cache", lambda name, f: None)
    assert fingerprint.of_spec("owner/name", "teacher") is None


# ---------------------------------------------------------------- the folder


def test_a_runs_folder_holds_all_that_decides_the_student(begun: Path) -> None:
    inputs = recorded(begun)["inputs"]
    assert inputs["chat_template"] == CHAT
    assert inputs["contexts"] == {"solution": "The answer is {{ answer }}."}
    assert inputs["generation"]["eos_token_id"] == 2
    assert inputs["data"]["task"] == {**inputs["data"]["task"], "train": 12, "test": 4}
    assert set(inputs["models"]) == {"student", "ref"}


def test_a_run_of_an_earlier_version_is_refused(begun: Path) -> None:
    run = json.loads((begun / "run.json").read_text())
    del run["inputs"]
    (begun / "run.json").write_text(json.dumps(run))
    with pytest.raises(LimbeckError, match=r"does not say which data and models.*earlier version.*start a new run"):
        resume(begun)


# ---------------------------------------------------------------- lines that are lost


def lose(file: Path, step: int) -> None:
    file.write_text("".join(json.dumps(r) + "\n" for r in lines(file) if r["step"] != step))


def test_missing_lines_that_a_checkpoint_covers_are_noticed(shelf: Shelf, tmp_path: Path) -> None:
    own = {"steps": 4, "save_every": 2, "eval_every": 2, "token_budget": 10**6}
    done = go(shelf, "kdrl", tmp_path / "done", **own).out
    metrics, evaluations = (done / f"{name}.jsonl" for name in ("metrics", "evaluations"))
    whole, measured = metrics.read_text(), evaluations.read_text()
    lose(metrics, 1)
    with pytest.raises(LimbeckError, match=r"metrics.jsonl lacks the line of step 1, though step-000004 covers it"):
        resume(done)
    assert len(lines(metrics)) == 3
    metrics.write_text("")
    with pytest.raises(LimbeckError, match=r"lacks the line of step 0 and 3 more"):
        resume(done)
    metrics.write_text(whole + whole.splitlines()[2] + "\n")
    with pytest.raises(LimbeckError, match=r"metrics.jsonl holds the line of step 2 more than once"):
        resume(done)
    metrics.write_text(whole)
    lose(evaluations, 0)
    with pytest.raises(LimbeckError, match=r"evaluations.jsonl lacks the line of step 0"):
        resume(done)
    evaluations.write_text(measured)
    resume(done)
    metrics.write_text(whole + whole.splitlines()[2] + "\n")
    resume(done, accept_changes=True)
    assert [m["step"] for m in lines(metrics)] == [0, 1, 2, 3]
    assert "more than once" in json.loads((done / "run.json").read_text())["resumed"][-1]["accepted"][0]


# ---------------------------------------------------------------- pipelines


def test_a_pipeline_knows_its_data_and_models(shelf: Shelf, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "data.jsonl", LINES)
    teacher = Path(shutil.copytree(shelf.teacher, tmp_path / "teacher"))
    value = lb.Pipeline((lb.stage("sft"), lb.stage("kd")))
    own = {k: v for k, v in shelf.settings("kd").items() if k not in ("task", "teacher")}
    own |= {"task": str(data), "teacher": str(teacher), "steps": 1}
    out = tmp_path / "p"
    lb.run_pipeline(value, out, quiet=True, **own)
    shutil.rmtree(out / "stage-1-kd")  # as if it had been stopped between the stages
    one_weight(teacher)
    with pytest.raises(LimbeckError, match=r"the teacher .* has another model.safetensors.*--accept-changes"):
        lb.run_pipeline(value, out, quiet=True, **own)
    assert not (out / "stage-1-kd").exists()
    one_weight(teacher)  # and back
    edit("data.jsonl", "say 1", "say 21")(tmp_path)
    with pytest.raises(LimbeckError, match=r"data.jsonl' gives other data"):
        lb.run_pipeline(value, out, quiet=True, **own)
    assert len(lb.run_pipeline(value, out, quiet=True, accept_changes=True, **own)) == 2
    assert len(lb.run_pipeline(value, out, quiet=True, **own)) == 2
