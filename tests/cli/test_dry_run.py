"""``train --dry-run``: what a run would do, without a model pass and without a file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from stub_engine import Notes, Run
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from limbeck import embedded
from limbeck.engine import configure
from limbeck.engine import dry_run as engine_dry_run
from limbeck.engine.models import policy
from limbeck.engine.models.policy import load_policy
from limbeck.engine.models.unloaded import stored_weights
from limbeck.engine.prompt_stream import PromptStream
from limbeck.tasks import load_task

KDRL = ("train", "kdrl", "--teacher", "embedded", "--dry-run")


@pytest.fixture(autouse=True)
def weightless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may load weights or run a model."""

    def refuse(*a: Any, **k: Any) -> Any:
        raise AssertionError("a dry run loads no weights and runs no model")

    monkeypatch.setattr(policy, "load_weights", refuse)
    monkeypatch.setattr(LlamaForCausalLM, "forward", refuse)


def document(limbeck_: Run, *words: str) -> dict[str, Any]:
    result = limbeck_(*words, "--json")
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


def test_it_describes_the_run_and_writes_nothing(limbeck_: Run, notes: Notes, folder: Path) -> None:
    result = limbeck_(*KDRL, "--set", "max_tokens=40", "--set", "group=4")
    assert result.exit_code == 0, result.stderr
    for words in (
        "the student is 'embedded' and the task is 'two_digit_sums'",
        "Dry run of KDRL",
        "student: embedded (LlamaForCausalLM, 145,360 parameters, 581 kB on disk (F32), 145,360 of them trained)",
        "two_digit_sums, 12,000 training prompts, 500 held out",
        "32 prompts, 4 responses to each from student",
        "128 sequences",
        "at most 5,120 of responses",
        "correct within a factor of",
        "  max_tokens = 40",
        "State the final answer to the following arithmetic problem",
        "Nothing was trained or written",
    ):
        assert words in result.stdout, words
    assert notes.calls == []
    assert list(folder.iterdir()) == []


def test_the_document_holds_the_numbers(limbeck_: Run) -> None:
    found = document(limbeck_, *KDRL, "--steps", "7", "--set", "max_tokens=40", "--set", "learning_rate=0.001")
    model = AutoModelForCausalLM.from_pretrained(embedded.path("student"))
    assert found["models"]["student"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["models"]["student"]["bytes"] == 4 * found["models"]["student"]["parameters"]
    assert found["models"]["teacher"]["trained"] == 0
    assert found["settings"] == {"teacher": "embedded", "max_tokens": 40, "steps": 7, "lr": 0.001}
    assert (found["step"]["sequences"], found["step"]["written_tokens"]) == (32 * 8, 32 * 8 * 40)
    assert found["memory"]["training"] == 16 * found["models"]["student"]["parameters"]
    assert found["memory"]["models"] == 4 * found["models"]["teacher"]["parameters"]
    assert found["method"]["sentence"].startswith("GRPO and reverse-KL distillation")
    time = found["time"]
    assert time["total"] == pytest.approx(7 * time["step"] + 2 * time["evaluation"])


def test_the_prompts_are_those_of_the_first_step_as_the_student_reads_them(limbeck_: Run) -> None:
    found = document(limbeck_, *KDRL, "--seed", "5")
    policy = load_policy("embedded", "student", weights=False)
    first = PromptStream(load_task("two_digit_sums", seed=5).train, 5).take(3)
    assert [p["id"] for p in found["prompts"]] == [p.id for p in first]
    assert [p["text"] for p in found["prompts"]] == [policy.chat.text(p) for p in first]
    assert [p["tokens"] for p in found["prompts"]] == [len(policy.chat.ids(p)) for p in first]


def test_adapters_train_less(limbeck_: Run) -> None:
    whole, adapters = (document(limbeck_, *KDRL, *more) for more in ((), ("--set", "lora_rank=2")))
    student = adapters["models"]["student"]
    assert student["trained"] == student["parameters"] - whole["models"]["student"]["parameters"] > 0
    assert adapters["memory"]["training"] == 16 * student["trained"]
    assert adapters["memory"]["models"] > whole["memory"]["models"]


def test_demonstrations_count_with_their_own_length(limbeck_: Run) -> None:
    found = document(limbeck_, "train", "sft", "--dry-run")
    assert found["step"]["written_tokens"] == 0
    assert 32 < found["step"]["response_tokens"] < 32 * 128
    assert found["memory"]["models"] == 0


def test_longer_responses_and_more_evaluations_take_longer(limbeck_: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck.engine import estimate

    monkeypatch.setattr(estimate, "measured_speed", lambda *a: estimate.Speed(1e9, 1e9, 1e-6, "cpu"))
    short, more, every = (
        document(limbeck_, *KDRL, *words)["time"]
        for words in (("--set", "max_tokens=40"), (), ("--set", "max_tokens=40", "--set", "eval_every=10"))
    )
    assert more["step"] > 2 * short["step"]
    assert every["total"] - short["total"] == pytest.approx(9 * short["evaluation"])


@pytest.fixture
def spoilt(folder: Path) -> Path:
    """Model folders that no run can load, and data that no run can read."""
    for name in ("cut", "none", "encoder"):
        shutil.copytree(embedded.path("student"), folder / name)
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    (folder / "none" / "model.safetensors").unlink()
    config = json.loads((folder / "encoder" / "config.json").read_text())
    (folder / "encoder" / "config.json").write_text(json.dumps({**config, "hidden_size": 0}))
    (folder / "long.jsonl").write_text(json.dumps({"prompt": "7 + 8 " * 4000, "answer": "1"}) + "\n")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").touch()
    return folder


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("kdrl",), "kdrl reads teacher (sampled), but no teacher was given"),
        (("sft", "--student", "./cut"), "student='./cut': the model could not be loaded: model.safetensors is damaged"),
        (("sft", "--student", "./none"), "has no safetensors weights (pickles are not read)"),
        (("sft", "--student", "./encoder"), "hidden_size=0 in its config.json"),
        (("grpo", "--task", "long.jsonl"), "but the model reads only"),
        (("grpo", "--task", "none.jsonl"), "there is no such file"),
        (("sft", "--out", "full"), "the folder is not empty and holds no run"),
        (("sft", "--set", "template=none.jinja"), "template='none.jinja': there is no such file"),
        (("sft", "--set", "lora_rank=4096"), "lora_rank=4096 is more than any layer"),
        (("dpo",), "dpo reads pairs from 'two_digit_sums'"),
        (("sft", "--resume", "full"), "the folder has no readable run.json"),
    ],
)
def test_a_dry_run_refuses_what_a_run_refuses(
    limbeck_: Run, notes: Notes, spoilt: Path, words: tuple[str, ...], sentence: str
) -> None:
    before = sorted(p for p in spoilt.rglob("*"))
    result = limbeck_("train", *words, "--dry-run", "--json")
    assert result.exit_code == 2, result.stdout
    said = [line for line in result.stderr.splitlines() if not line.startswith("note: without")]
    assert len(said) == 1
    assert sentence in said[0]
    assert sorted(p for p in spoilt.rglob("*")) == before


def test_a_run_that_goes_on_has_no_dry_run(limbeck_: Run, notes: Notes, run_folder: Path) -> None:
    result = limbeck_("train", "--resume", "old", "--dry-run")
    assert "--dry-run cannot be combined with --resume" in result.stderr
    assert notes.calls == []


def test_headers_of_several_files_are_added(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(embedded.path("student"))
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    found, whole = stored_weights(str(tmp_path), "student"), stored_weights(str(embedded.path("student")), "student")
    assert found is not None
    assert found == whole


def test_quiet_prints_nothing(limbeck_: Run) -> None:
    result = limbeck_(*KDRL, "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_only_settings_that_differ_are_listed() -> None:
    config = configure("kdrl", {"lr": 1e-5, "coef": 0.5, "teacher": "embedded"})
    assert engine_dry_run.settings_given(config) == {"teacher": "embedded", "arguments": {"coef": 0.5}}
