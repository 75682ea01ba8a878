"""Bad input reaches the user as one sentence, and before a model is loaded where that is possible."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import METHODS, Shelf, go, jsonl, lines, llama, put
from tokenizers import Tokenizer

from limbeck.axes import divergence_loss, sample, student, teacher, token_mean
from limbeck.engine import build as setup
from limbeck.engine import configure, distill, evaluate, resume
from limbeck.engine.config import load_toml, parse_settings
from limbeck.engine.models import policy, weights
from limbeck.errors import LimbeckError
from limbeck.math.divergence import rkl
from limbeck.space.method import Method
from limbeck.space.term import Term
from limbeck.tasks import Verdict
from limbeck.types import Prompt


def sentence(e: pytest.ExceptionInfo[LimbeckError], *words: str) -> None:
    text = str(e.value)
    assert "\n" not in text
    assert text.rstrip().endswith(".")
    for word in words:
        assert word in text, (word, text)


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails the test."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(setup, "load_policy", load)


class _HalfATask:
    name, serves, train, test = "half", frozenset[str](), (), ()


BEFORE: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "method": ({"method": "kdlr"}, ("'kdlr'", "did you mean 'kdrl'?", "limbeck methods")),
    "key": ({"warmpu": 3}, ("'warmpu'", "did you mean 'warmup'?", "kdrl takes")),
    "argument": ({"estimater": "k2"}, ("'estimater'", "did you mean 'estimator'?")),
    "axis": ({"gate": "respons"}, ("gate='respons'", "did you mean 'response'?", "none, response, group")),
    "reduction": ({"reduction": "token_maen"}, ("token_maen", "did you mean 'token_mean'?")),
    "estimator": ({"estimator": "k1"}, ("k1", "k2")),
    "coefficient": ({"coef": "aneal(1,0,1)"}, ("aneal(1,0,1)", "give a number")),
    "task": ({"task": "two_digit_sumz"}, ("'two_digit_sumz'", "did you mean 'two_digit_sums'?")),
    "task option": (
        {"task": "two_digit_sums", "task_options": {"trian_size": 3}},
        ("'trian_size'", "did you mean 'train_size'?"),
    ),
    "no teacher": ({"teacher": None}, ("kdrl reads teacher", "--teacher")),
    "value": ({"lr": -1}, ("lr=-1", "greater than 0", "peak learning rate")),
    "kind": ({"steps": "many"}, ("steps='many'", "integer", "optimiser batches")),
    "choice": ({"schedule": "cosin"}, ("schedule='cosin'", "'constant', 'linear' or 'cosine'")),
    "seed": ({"seed": 2**40}, ("seed=", "less than")),
    "tracker": ({"trackers": ["tensorbored"]}, ("'tensorbored'", "did you mean 'tensorboard'?")),
    "tracker as a word": ({"trackers": "wandbb"}, ("'wandbb'", "did you mean 'wandb'?")),
    "no name": ({"method": None}, ("method=None", "limbeck methods")),
    "a number for a name": ({"method": 3}, ("method=3", "limbeck methods")),
    "a list for a name": ({"method": ["sft"]}, ("method=['sft']", "limbeck methods")),
    "arguments": ({"arguments": 3}, ("arguments=3", "by name")),
    "a task that is a number": ({"task": 3}, ("task=3", "no 'name'", "limbeck.tasks.Task")),
    "half a task": ({"task": _HalfATask()}, ("_HalfATask", "is not a task", "no 'verify'")),
    "a module": ({"student": torch.nn.Linear(2, 2)}, ("student=Linear(", "is not a model", "PreTrainedModel")),
    "a number for a model": ({"teacher": 3}, ("teacher=3 is not a model", "hub name")),
    "a folder that is a number": ({"out": 3}, ("out=3 is not a folder", "Path")),
    "a folder in a file": ({"out": Path(__file__) / "x"}, ("cannot be a folder", "is a file")),
    "a folder with a long name": ({"out": "x" * 5000}, ("xxx...", "cannot be a folder", "too long")),
    "a zero byte": ({"out": "a\0b"}, ("cannot be a folder", "null byte")),
    "an endless rate": ({"lr": math.inf}, ("lr=inf", "finite")),
    "an endless coefficient": ({"coef": math.inf}, ("coef=inf is not finite", "resumed")),
    "no student": ({"student": ""}, ("student=''", "at least 1 character")),
    "nothing to verify": ({"task": "PAIRS"}, ("kdrl reads reward", "'pairs'", "which serves pairs", "verifier")),
    "no responses": ({"method": "sft", "task": "PAIRS"}, ("sft reads responses", "'response' in every line")),
    "no pairs": ({"method": "dpo", "task": "VERIFIED"}, ("dpo reads pairs", "'chosen' and 'rejected'")),
    "no second data": ({"method": "minillm", "datasets": {}}, ("'pretrain'", "datasets.pretrain=", "lm_coef=0")),
    "no file": ({"task": "./nothing.jsonl"}, ("'./nothing.jsonl'", "does not exist")),
}


@pytest.mark.parametrize("case", BEFORE)
def test_refused_before_a_model_is_loaded(case: str, shelf: Shelf, out: Path, unloaded: None) -> None:
    own, words = BEFORE[case]
    own = {k: {"PAIRS": str(shelf.pairs), "VERIFIED": str(shelf.verified)}.get(str(v), v) for k, v in own.items()}
    method = own.pop("method", "kdrl")
    settings = shelf.settings(method if method in METHODS else "kdrl", **{"out": out, **own})
    with pytest.raises(LimbeckError) as e:
        distill(method, quiet=True, **settings)
    sentence(e, *words)
    assert not out.exists()


JSONL = {
    "empty": ("", ("holds no records",)),
    "blank": ("\n\n", ("holds no records",)),
    "not JSON": ('{"prompt": "a", "answer": "1"}\n{"prompt": "b", \n', ("line 2", "not JSON", "on each line")),
    "no prompt": (
        '{"prompt": "a", "answer": "1"}\n\n{"promt": "b"}\n',
        ("line 3", "'promt'", "did you mean 'prompt'?"),
    ),
    "a list": ("[1]\n", ("line 1", "[1]", "give an object")),
    "a number": ('{"prompt": 7}\n', ("line 1", "'prompt' is 7", "give a string")),
    "no rejected": ('{"prompt": "a", "chosen": "b"}\n', ("line 1", "'chosen' but no 'rejected'")),
}


@pytest.mark.parametrize("case", JSONL)
def test_bad_jsonl_names_its_line(case: str, shelf: Shelf, out: Path, tmp_path: Path, unloaded: None) -> None:
    text, words = JSONL[case]
    file = tmp_path / "mine.jsonl"
    file.write_text(text)
    with pytest.raises(LimbeckError) as e:
        go(shelf, "kdrl", out, task=str(file))
    sentence(e, "mine.jsonl", *words)
    with pytest.raises(LimbeckError) as e:
        go(shelf, "minillm", out, datasets={"pretrain": str(file)})
    sentence(e, "mine.jsonl", *words)


def test_a_method_value_is_checked_too(shelf: Shelf, out: Path, unloaded: None) -> None:
    value = Method(sample(student, check=False), Term(teacher, divergence_loss(rkl)), token_mean)
    settings = shelf.settings("sft")
    with pytest.raises(LimbeckError) as e:
        distill(value, out=out, quiet=True, **{**settings, "lr": -1})
    sentence(e, "lr=-1", "greater than 0")
    with pytest.raises(LimbeckError) as e:
        distill(value, out=out, quiet=True, **settings, coef=2)
    sentence(e, "'coef'", "arguments when it is built")
    with pytest.raises(LimbeckError) as e:
        distill(value, out=out, quiet=True, **{**settings, "teacher": None})
    sentence(e, "reads teacher", "--teacher")


def test_a_recipe_is_accepted_like_its_name(shelf: Shelf, out: Path) -> None:
    from limbeck.methods import kd

    result = distill(kd, out=out, quiet=True, **shelf.settings("kd", steps=1, eval_size=0))
    assert json.loads((result.out / "run.json").read_text())["method"] == "kd"


def test_wrong_settings_and_files_are_refused(tmp_path: Path) -> None:
    parsed = parse_settings(["lr=1e-4", "steps=3", "a.b=[1, 2]", "name=x y", "flag=True", "none=none", "half=.5"])
    assert parsed == {
        "lr": 1e-4,
        "steps": 3,
        "a": {"b": [1, 2]},
        "name": "x y",
        "flag": True,
        "none": None,
        "half": 0.5,
    }
    for bad in ("lr", "=3"):
        with pytest.raises(LimbeckError, match=r"write key=value"):
            parse_settings([bad])
    with pytest.raises(LimbeckError, match=r"no such file"):
        load_toml(tmp_path / "x.toml")
    (tmp_path / "x.toml").write_text("lr = = 3")
    with pytest.raises(LimbeckError, match=r"not valid TOML"):
        load_toml(tmp_path / "x.toml")
    assert configure("kdrl", {"coef": 0.5, "lr": 1}).arguments == {"coef": 0.5}


# ---------------------------------------------------------------- folders to resume


def test_folders_without_a_run_are_refused(tmp_path: Path, unloaded: None) -> None:
    cases = {None: "there is no run.json", "{": "is damaged", "{}": "has no 'config'"}
    for text, words in cases.items():
        if text is not None:
            (tmp_path / "run.json").write_text(text)
        with pytest.raises(LimbeckError) as e:
            resume(tmp_path)
        sentence(e, str(tmp_path), words)


def test_a_run_of_another_version_is_refused(shelf: Shelf, out: Path, unloaded: None) -> None:
    out.mkdir()
    config = json.loads(configure("sft", {"task": str(shelf.verified)}).model_dump_json())
    for change, words in (
        ({"new_setting": 1}, ("new_setting",)),
        ({"lr": 0}, ("lr=0",)),
        ({"method": "gone"}, ("'gone'",)),
    ):
        (out / "run.json").write_text(json.dumps({"formula": "", "inputs": {}, "config": {**config, **change}}))
        with pytest.raises(LimbeckError) as e:
            resume(out)
        sentence(e, *words)
    (out / "run.json").write_text(json.dumps({"formula": "", "inputs": {}, "config": config}))
    with pytest.raises(LimbeckError) as e:
        resume(out, steps=0)
    sentence(e, "steps=0")


# ---------------------------------------------------------------- models


def copy(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    return folder


def test_a_teacher_with_another_vocabulary_is_refused(shelf: Shelf, out: Path, tmp_path: Path) -> None:
    folder = copy(shelf.teacher, tmp_path / "other")
    document = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    a, b = (k for k, v in vocabulary.items() if v in (20, 21))
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (folder / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(LimbeckError) as e:
        go(shelf, "kdrl", out, teacher=str(folder))
    sentence(e, str(folder), "different vocabularies", "2 of 106", repr(a), repr(b), "20 / 21", "sft")
    assert not out.exists() or not any(out.iterdir())


def test_a_larger_vocabulary_that_begins_the_same_is_shared(shelf: Shelf, out: Path, tmp_path: Path) -> None:
    folder = copy(shelf.teacher, tmp_path / "longer")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    go(shelf, "kd", out, teacher=str(folder))
    assert lines(out / "metrics.jsonl")[0]["kl_forward"] > 0


def test_a_prompt_with_a_token_that_the_teacher_lacks_is_refused(shelf: Shelf, out: Path, tmp_path: Path) -> None:
    folder = copy(shelf.student, tmp_path / "longer")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["<think>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    go(shelf, "kd", out, student=str(folder), steps=1)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "<think>")
    with pytest.raises(LimbeckError) as e:
        go(shelf, "kd", out.with_name("other"), student=str(folder))
    sentence(e, "'<think>'", "vocabulary lacks", "template=FILE.jinja")


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_a_model_with_fewer_rows_than_its_tokenizer_is_refused(
    which: str, shelf: Shelf, out: Path, tmp_path: Path
) -> None:
    folder = put(llama(4, vocabulary=100), tmp_path / "short")
    with pytest.raises(LimbeckError) as e:
        go(shelf, "kdrl", out, **{which: str(folder)})
    sentence(e, str(folder), "100", "106")


def test_a_model_without_a_chat_template_is_refused(
    shelf: Shelf, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = copy(shelf.student, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with monkeypatch.context() as m:
        m.setattr(weights.AutoModelForCausalLM, "from_pretrained", _loads_nothing)
        with pytest.raises(LimbeckError) as e:
            go(shelf, "sft", out, student=str(bare))
        sentence(e, str(bare), "no chat template", "template=FILE.jinja", "template=plain")
        with pytest.raises(LimbeckError) as e:
            go(shelf, "sft", out, template="none.jinja")
        sentence(e, "template='none.jinja'", "no such file", "'plain'")
    # Only the student's prompts are rendered: nothing else needs one.
    go(shelf, "kd", out, teacher=str(_without_template(shelf.teacher, tmp_path / "teacher")), steps=1)
    for template in ("plain", str(shelf.student / "chat_template.jinja")):
        go(shelf, "sft", out.with_name(Path(template).stem), student=str(bare), template=template, steps=1)


def _without_template(source: Path, folder: Path) -> Path:
    copy(source, folder)
    (folder / "chat_template.jinja").unlink()
    return folder


def _loads_nothing(*_: object, **__: object) -> None:
    raise AssertionError("a model was loaded")


def test_templates_that_fail_are_refused(shelf: Shelf, out: Path, tmp_path: Path) -> None:
    file = tmp_path / "bad.jinja"
    cases = (
        ("{% for %}", "template"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages + 3 }}", "can only concatenate list"),
        ("{{ 1 // 0 }}", "by zero"),
    )
    for text, words in cases:
        file.write_text(text)
        with pytest.raises(LimbeckError) as e:
            go(shelf, "sft", out, template=str(file))
        sentence(e, words)
    file.write_text("")
    with pytest.raises(LimbeckError) as e:
        go(shelf, "sft", out, template=str(file))
    sentence(e, "renders to no token")
    file.write_bytes("{{ 'é' }}".encode("latin-1"))
    with pytest.raises(LimbeckError) as e:
        go(shelf, "sft", out, template=str(file))
    sentence(e, "bad.jinja", "cannot be read", "UTF-8")
    assert not out.exists()


def test_a_prompt_longer_than_the_context_is_refused(shelf: Shelf, out: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": "b", "id": "short"}, {"prompt": "ab" * 600, "answer": "b", "id": "long one"}]
    file = jsonl(tmp_path / "long.jsonl", rows)
    with pytest.raises(LimbeckError) as e:
        go(shelf, "kdrl", out, task=str(file), task_options={"test_fraction": 0})
    sentence(e, "'long one'", "the response may have 2", "reads only 1024", "shorten it, or lower max_tokens")
    with pytest.raises(LimbeckError) as e:
        go(shelf, "kdrl", out, max_tokens=1024)
    sentence(e, "may have 1024", "lower max_tokens")
    assert not out.exists() or not any(out.iterdir())


def test_no_pickle_is_loaded(shelf: Shelf, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy(shelf.student, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save(llama(1).state_dict(), folder / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", _loads_nothing)
    with pytest.raises(LimbeckError) as e:
        go(shelf, "sft", out, student=str(folder))
    sentence(e, "student=", str(folder), "safetensors")


def test_damaged_weights_are_refused(shelf: Shelf, out: Path, tmp_path: Path) -> None:
    folder = copy(shelf.student, tmp_path / "damaged")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(LimbeckError) as e:
        go(shelf, "sft", out, student=str(folder))
    sentence(e, "student=", str(folder), "could not be loaded")
    config = json.loads((folder / "config.json").read_text())
    shutil.copy(shelf.student / "model.safetensors", file)
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 32, "head_dim": 16}))
    with pytest.raises(LimbeckError) as e:
        go(shelf, "sft", out, student=str(folder))
    sentence(e, "student=", str(folder), "could not be loaded")


@pytest.mark.parametrize(
    "spec", ["/no/such/folder", "./nowhere", "~/nowhere/at/all", "a/b/c", "~nobody-of-that-name/a", "./" + "x" * 300]
)
def test_folders_that_do_not_exist_are_refused(spec: str, shelf: Shelf, out: Path) -> None:
    with pytest.raises(LimbeckError) as e:
        go(shelf, "kdrl", out, teacher=spec)
    sentence(e, f"teacher={spec!r}", "no such folder", "hub name")


def test_remote_code_runs_only_where_asked(shelf: Shelf, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    for cls in (weights.AutoModelForCausalLM, policy.AutoTokenizer):
        real = cls.from_pretrained

        def spy(*a: Any, real: Any = real, **k: Any) -> Any:
            asked.append(k["trust_remote_code"])
            if "dtype" in k:
                assert k["use_safetensors"] is True
            return real(*a, **k)

        monkeypatch.setattr(cls, "from_pretrained", spy)
    go(shelf, "kd", out, steps=1, eval_size=0)
    assert len(asked) >= 4
    assert set(asked) == {False}
    asked.clear()
    go(shelf, "kd", out, steps=1, eval_size=0, remote_code=True, overwrite=True)
    assert set(asked) == {True}


def test_code_of_a_repository_is_refused(shelf: Shelf, out: Path, tmp_path: Path) -> None:
    folder = copy(shelf.student, tmp_path / "code")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "x.C", "AutoModelForCausalLM": "x.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "x.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(LimbeckError) as e:
        go(shelf, "sft", out, student=str(folder))
    sentence(e, str(folder), "remote_code")
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------- during a run


class _Judge:
    name, serves = "judge", frozenset({"reward"})
    train = test = tuple(Prompt(f"p{i}", ({"role": "user", "content": str(i)},)) for i in range(4))

    def __init__(self, reward: float):
        self.reward = reward

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        return Verdict(self.reward, False)

    def responses(self, prompt: Prompt) -> tuple[Any, ...]:
        return ()


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_refused(reward: float, shelf: Shelf, out: Path) -> None:
    settings = shelf.settings("kdrl", eval_size=0)
    del settings["task"]
    with pytest.raises(LimbeckError) as e:
        distill("kdrl", task=_Judge(reward), out=out, quiet=True, **settings)
    sentence(e, "'judge'", f"reward {reward}", "'p", "finite", "verifier")


def test_a_single_prompt_is_trained_on_without_evaluation(shelf: Shelf, out: Path, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "one.jsonl", [{"prompt": "say a", "answer": "a", "response": "a"}])
    result = go(shelf, "kdrl", out, task=str(file))
    assert len(lines(out / "metrics.jsonl")) == 2
    assert result.before is None


def test_evaluate_refuses_wrong_values(shelf: Shelf) -> None:
    own: dict[str, Any] = {"task": str(shelf.verified), "max_tokens": 2, "cpu": True, "size": 3}
    measured = evaluate(str(shelf.student), teacher=str(shelf.teacher), samples=4, **own)
    assert {"accuracy", "kl_forward", "kl_reverse", "perplexity", "entropy", "correct", "pass_at"} <= set(measured)
    assert set(measured["pass_at"]) == {1, 2, 4}
    assert "kl_forward" not in evaluate(str(shelf.student), **own)
    with pytest.raises(LimbeckError) as e:
        evaluate(str(shelf.student), samples=4, **{**own, "task": str(shelf.pairs)})
    sentence(e, "--samples 4", "verifier")
    with pytest.raises(LimbeckError) as e:
        evaluate(str(shelf.student), **{**own, "size": -1})
    sentence(e, "eval_size=-1")
    with pytest.raises(LimbeckError) as e:
        evaluate(str(shelf.student), **{**own, "size": 0})
    sentence(e, "holds out no problem")
