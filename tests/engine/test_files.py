"""Files are whole or not there, a full disk loses nothing, and a folder that is not ours is left alone."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tiny_runs import Killed, Shelf, dies, go, jsonl, lines, tensors
from torch import nn

from limbeck.engine import resume
from limbeck.engine.storage import atomic as files
from limbeck.engine.storage import checkpoint, fingerprint
from limbeck.errors import LimbeckError
from limbeck.json_files import read_json_lines


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def fill(folder: Path, error: BaseException | None = None) -> None:
    with files.whole_folder(folder) as beside:
        (beside / "x").write_text("new")
        if error is not None:
            raise error


# ---------------------------------------------------------------- primitives


def test_a_crash_while_writing_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    files.write_text(file, "old")
    for name in ("fsync", "replace"):
        with monkeypatch.context() as m:
            if name == "fsync":
                m.setattr(os, "fsync", _raising(Killed()))
            else:
                m.setattr(Path, "replace", _raising(Killed()))
            with pytest.raises(Killed):
                files.write_text(file, "new")
        assert tree(tmp_path) == {"a.json": b"old"}
    files.write_text(file, "new")
    assert tree(tmp_path) == {"a.json": b"new"}


def test_a_text_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: order.append("fsync"))
    monkeypatch.setattr(Path, "replace", lambda a, b: (order.append("replace"), replace(a, b))[1])
    files.write_text(tmp_path / "a", "x")
    assert order == ["fsync", "replace", "fsync"]  # the last of the folder, which holds the name
    order.clear()
    with files.whole_folder(tmp_path / "f") as beside:
        (beside / "inner").mkdir()
        (beside / "x").write_text("x")
        (beside / "inner" / "y").write_text("y")
    assert order == [*["fsync"] * 4, "replace", "fsync"]  # two files, the two folders, the name


def test_a_crash_in_a_folder_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    with files.whole_folder(folder) as beside:
        (beside / "x").write_text("old")
    with pytest.raises(Killed):
        fill(folder, Killed())
    assert tree(tmp_path) == {"student/x": b"old"}


def test_the_old_folder_is_there_until_the_new_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between removing the old and naming the new would lose both."""
    folder = tmp_path / "student"
    with files.whole_folder(folder) as beside:
        (beside / "x").write_text("old")
    with monkeypatch.context() as m:
        m.setattr(Path, "replace", _raising(Killed()))
        with pytest.raises(Killed):
            fill(folder)
    assert any(content in (b"old", b"new") for content in tree(tmp_path).values())
    with files.whole_folder(folder) as beside:
        (beside / "x").write_text("newest")
    assert tree(tmp_path) == {"student/x": b"newest"}


def test_lines_survive_a_half_written_one(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    odd = {"step": 1, "text": "a\u2028b\u0085c\nd"}  # line ends to Python's splitlines, not to JSON
    files.append_line(file, {"step": 0, "loss": float("nan")})
    files.append_line(file, odd)
    with file.open("ab") as f:
        f.write('{"step": 2, "text": "é'.encode()[:-1])  # cut within a character
    assert read_json_lines(file) == [{"step": 0, "loss": None}, odd]
    assert read_json_lines(tmp_path / "none") == []
    files.write_lines(file, [odd])
    assert read_json_lines(file) == [odd]


# ---------------------------------------------------------------- a full disk


def _raising(error: BaseException) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


FULL = OSError(errno.ENOSPC, "No space left on device")
RUST = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")  # as seen on tmpfs


@pytest.mark.parametrize("error", [FULL, OSError(errno.EDQUOT, "quota"), RUST], ids=["full", "quota", "safetensors"])
def test_a_full_disk_gives_one_sentence(error: Exception, tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "x").write_text("old")
    with pytest.raises(LimbeckError, match=r"disk is full.*f could not be written.*free some space.*--resume"):
        fill(tmp_path / "f", error)
    assert tree(tmp_path) == {"f/x": b"old"}


def test_other_disk_errors_are_not_reported_as_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(PermissionError):
        fill(tmp_path / "f", PermissionError(errno.EACCES, "no"))
    with pytest.raises(SafetensorError):
        fill(tmp_path / "f", SafetensorError("invalid header"))


def test_a_disk_that_fills_while_a_text_is_written_keeps_the_old_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_text(tmp_path / "run.json", "old")
    files.append_line(tmp_path / "metrics.jsonl", {"step": 0})
    with monkeypatch.context() as m:
        m.setattr(os, "fsync", _raising(FULL))
        with pytest.raises(LimbeckError, match=r"disk is full"):
            files.write_text(tmp_path / "run.json", "new")
    with monkeypatch.context() as m:
        m.setattr(Path, "open", _raising(FULL))
        with pytest.raises(LimbeckError, match=r"disk is full"):
            files.append_line(tmp_path / "metrics.jsonl", {"step": 1})
    assert tree(tmp_path) == {"run.json": b"old", "metrics.jsonl": b'{"step": 0}\n'}


def test_a_run_continues_from_the_checkpoint_before_the_disk_was_full(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run stops with a sentence; with space it goes on from the checkpoint before, to the same weights."""
    own = {"steps": 4, "save_every": 1}
    straight = go(shelf, "kdrl", tmp_path / "straight", **own)
    save, calls = checkpoint.save_file, []

    def fills(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 6:  # the optimiser of the third checkpoint
            raise RUST
        save(*arguments)

    with monkeypatch.context() as m:
        m.setattr(checkpoint, "save_file", fills)
        with pytest.raises(LimbeckError, match=r"disk is full.*step-000003.*--resume"):
            go(shelf, "kdrl", tmp_path / "full", **own)
    names = {p.name for p in (tmp_path / "full" / "checkpoints").iterdir()}
    assert names == {"step-000001", "step-000002"}
    resumed = resume(tmp_path / "full")
    assert (resumed.student / "model.safetensors").read_bytes() == (straight.student / "model.safetensors").read_bytes()
    assert lines(tmp_path / "full" / "metrics.jsonl") == lines(straight.out / "metrics.jsonl")


# ---------------------------------------------------------------- checkpoints


def module(width: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    m = nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(m.parameters(), lr=0.1)
    m(torch.ones(width)).sum().backward()
    optimizer.step()
    return m, optimizer


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    m, optimizer = module()
    path = checkpoint.save(tmp_path, 7, m, optimizer, {"cursors": {"task": 3}}, keep=1)
    before = {k: v.clone() for k, v in m.state_dict().items()}
    fresh, other = nn.Linear(3, 2), None
    other = torch.optim.AdamW(fresh.parameters(), lr=0.1)
    state = checkpoint.load(path, fresh, other)
    assert (state["step"], state["cursors"]) == (7, {"task": 3})
    assert all(torch.equal(before[k], v) for k, v in fresh.state_dict().items())
    for a, b in zip(optimizer.state_dict()["state"].values(), other.state_dict()["state"].values(), strict=True):
        assert set(a) == set(b) == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert not any(p.suffix in (".pt", ".bin", ".pkl") for p in path.iterdir())  # nothing to unpickle


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    m, optimizer = module()
    for step in (8, 9, 10, 11):
        checkpoint.save(tmp_path, step, m, optimizer, {}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000010", "step-000011"]
    (tmp_path / ".step-000012.tmp").mkdir()  # a killed one
    (tmp_path / "notes").mkdir()
    assert checkpoint.latest(tmp_path) == tmp_path / "step-000011"
    assert checkpoint.latest(tmp_path / "nothing") is None


CURSORS = {"cursors": {"task": 3}}


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _state(**own: Any) -> Any:
    """Replace fields of a checkpoint's state.json."""

    def change(p: Path) -> None:
        document = json.loads((p / "state.json").read_text()) | own
        (p / "state.json").write_text(json.dumps({k: v for k, v in document.items() if v is not LACKING}))

    return change


def _group(**own: Any) -> Any:
    def change(p: Path) -> None:
        (group,) = json.loads((p / "state.json").read_text())["groups"]
        _state(groups=[group | own])(p)

    return change


def _moments(change: Callable[[dict[str, torch.Tensor]], object]) -> Any:
    """Change the optimiser's tensors."""

    def rewrite(p: Path) -> None:
        found = tensors(p / "optimizer.safetensors")
        change(found)
        save_file(found, p / "optimizer.safetensors")

    return rewrite


LACKING = object()
DAMAGE = {
    "no state": lambda p: (p / "state.json").unlink(),
    "half a state": lambda p: _truncate(p / "state.json"),
    "a list": lambda p: (p / "state.json").write_text("[]"),
    "no step": lambda p: (p / "state.json").write_text('{"format": 3}'),
    "no groups": lambda p: (p / "state.json").write_text('{"format": 3, "step": 1}'),
    "no list of files": _state(files=LACKING),
    "files in a list": _state(files=[1]),
    "nothing of what did not move": _state(unmoved=LACKING),
    "another step": _state(step=2),
    "no cursors": _state(cursors=LACKING),
    "a step below 0": _state(step=-1),
    "half a step": _state(step=1.5),
    "one group too many": _state(groups=[{}, {}]),
    "a group of nothing": _state(groups=[{}]),
    "a group of other parameters": _group(params=[0]),
    "a moment of no parameter": _moments(lambda t: t.update({"7.exp_avg": t.pop("0.exp_avg")})),
    "a moment of no number": _moments(lambda t: t.update({"x.exp_avg": t.pop("0.exp_avg")})),
    "a moment misnamed": _moments(lambda t: t.update({"0.exp_avgs": t.pop("0.exp_avg")})),
    "a moment without a name": _moments(lambda t: t.update({"exp_avg": t.pop("0.exp_avg")})),
    "a moment missing": _moments(lambda t: t.pop("0.exp_avg_sq")),
    "a moment of another shape": _moments(lambda t: t.update({"0.exp_avg": torch.zeros(5)})),
    "no moments": _moments(lambda t: t.clear()),
    "moments of one parameter": _moments(lambda t: [t.pop(k) for k in list(t) if k.startswith("1.")]),
    "a moment in half precision": _moments(lambda t: t.update({"0.exp_avg": t["0.exp_avg"].half()})),
    "a moment of one number": _moments(lambda t: t.update({"0.exp_avg": torch.zeros(())})),
    "a step that is whole": _moments(lambda t: t.update({"0.step": t["0.step"].long()})),
    "deep brackets": lambda p: (p / "state.json").write_text("[" * 100_000),
    "no format": _state(format=LACKING),
    "no weights": lambda p: (p / "weights.safetensors").unlink(),
    "half the weights": lambda p: _truncate(p / "weights.safetensors"),
    "no weights in it": lambda p: (p / "weights.safetensors").write_bytes(b"not tensors"),
    "half the optimiser": lambda p: _truncate(p / "optimizer.safetensors"),
    "a pickle": lambda p: shutil.copy(_pickle(p), p / "weights.safetensors"),
}
FORGED = {
    "cursors in a list": _state(cursors=[1]),
    "a cursor that is text": _state(cursors={"task": "x"}),
    "a cursor that is true": _state(cursors={"task": True}),
    "a cursor below 0": _state(cursors={"task": -1}),
    "a cursor beyond all data": _state(cursors={"task": 10**30}),
    "a scaler that is text": _state(scaler="x"),
    "half a scaler": _state(scaler={"scale": 1.0}),
    "groups that are text": _state(groups="x"),
    "betas that are text": _group(betas=["a", "b"]),
    "one beta": _group(betas=[0.9]),
    "a rate that is text": _group(lr="x"),
    "an endless rate": _group(weight_decay=float("inf")),
}
"""Values that only somebody who edits the file puts there; the digest shows them."""


def _pickle(folder: Path) -> Path:
    path = folder / "pickle"
    torch.save({"a": torch.zeros(1)}, path)
    return path


def sign(path: Path) -> None:
    """Make the digests of a checkpoint those of what is there now, where it still has a table to hold them."""
    with contextlib.suppress(OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        told = json.loads((path / "state.json").read_text())
        told["files"] = {name: fingerprint.of_file(path / name) for name in told["files"] if (path / name).exists()}
        (path / "state.json").write_text(json.dumps({**told, "digest": checkpoint._digest(told)}))


@pytest.mark.parametrize(
    ("damage", "signed"),
    [*((d, False) for d in (*DAMAGE, *FORGED)), *((d, True) for d in DAMAGE)],
    ids=lambda x: x if isinstance(x, str) else "signed" if x else "",
)
def test_what_is_no_checkpoint_is_refused(damage: str, signed: bool, tmp_path: Path) -> None:
    m, optimizer = module()
    path = checkpoint.save(tmp_path, 1, m, optimizer, CURSORS, keep=1)
    (DAMAGE | FORGED)[damage](path)
    if signed:
        sign(path)
    with torch.no_grad():
        m.weight += 1.0  # so that a weight taken from the damaged folder shows
    before = {k: v.clone() for k, v in m.state_dict().items()}
    with pytest.raises(LimbeckError, match=r"step-000001 is not a checkpoint of Limbeck.*remove this one") as e:
        checkpoint.load(path, m, optimizer)
    assert "\n" not in str(e.value)
    assert all(torch.equal(before[k], v) for k, v in m.state_dict().items())


def test_a_checkpoint_of_another_model_or_version_is_refused(tmp_path: Path) -> None:
    m, optimizer = module()
    path = checkpoint.save(tmp_path, 1, m, optimizer, CURSORS, keep=1)
    wide = module(4)
    with pytest.raises(LimbeckError, match=r"holds another model: weight does not fit.*own student"):
        checkpoint.load(path, *wide)
    deep = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(LimbeckError, match=r"holds another model: .* does not fit"):
        checkpoint.load(path, deep, torch.optim.AdamW(deep.parameters()))
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "format": 99}))
    with pytest.raises(LimbeckError, match=r"format 99 and this version reads 3"):
        checkpoint.load(path, m, optimizer)
    (path / "state.json").write_text(json.dumps({**state, "format": 1}))
    with pytest.raises(LimbeckError, match=r"format 1 and this version reads 3; start a new run, or resume with"):
        checkpoint.load(path, m, optimizer)
    (path / "state.json").write_text(json.dumps({**state, "format": 2}))
    with pytest.raises(LimbeckError, match=r"format 2 and this version reads 3; start a new run, or resume with"):
        checkpoint.load(path, m, optimizer)


def test_weights_of_another_precision_are_refused(tmp_path: Path) -> None:
    m, optimizer = module()
    path = checkpoint.save(tmp_path, 1, m, optimizer, CURSORS, keep=1)
    before = {k: v.clone() for k, v in m.state_dict().items()}
    half = {k: v.half() for k, v in tensors(path / "weights.safetensors").items()}
    save_file(half, path / "weights.safetensors")
    sign(path)
    with pytest.raises(LimbeckError, match=r"weight is float16, not float32; .*the one before it") as e:
        checkpoint.load(path, m, optimizer)
    assert "\n" not in str(e.value)
    assert all(torch.equal(before[k], v) for k, v in m.state_dict().items())


@pytest.mark.parametrize("name", ["weights", "optimizer", "following-0"])
def test_one_changed_byte_of_a_checkpoint_is_seen(name: str, tmp_path: Path) -> None:
    (m, optimizer), (shadow, _) = module(), module()
    path = checkpoint.save(tmp_path, 1, m, optimizer, CURSORS, keep=1, following={"ema": shadow})
    checkpoint.load(path, m, optimizer, following={"ema": shadow})
    file = path / f"{name}.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(LimbeckError, match=f"step-000001 is not a checkpoint.*{name}.* is not what was written"):
        checkpoint.load(path, m, optimizer, following={"ema": shadow})


def test_a_renamed_checkpoint_is_refused(tmp_path: Path) -> None:
    """It would undo the wrong steps of metrics.jsonl."""
    m, optimizer = module()
    path = checkpoint.save(tmp_path, 2, m, optimizer, CURSORS, keep=1)
    renamed = path.rename(tmp_path / "step-000009")
    with pytest.raises(LimbeckError, match=r"step-000009 is not a checkpoint.*written as step-000002.*renamed"):
        checkpoint.load(renamed, m, optimizer)


def test_parameters_that_no_gradient_has_reached_need_no_moments(tmp_path: Path) -> None:
    m = nn.ModuleDict({"used": nn.Linear(2, 1), "idle": nn.Linear(2, 1)})
    optimizer = torch.optim.AdamW(m.parameters(), lr=0.1)
    m["used"](torch.ones(2)).sum().backward()
    optimizer.step()
    path = checkpoint.save(tmp_path, 1, m, optimizer, CURSORS, keep=1)
    assert checkpoint.load(path, m, optimizer)["unmoved"] == ["idle.weight", "idle.bias"]


def test_a_damaged_checkpoint_can_be_removed_and_the_one_before_serves(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"steps": 4, "save_every": 1}
    straight = go(shelf, "kdrl", tmp_path / "straight", **own)
    heal = dies(monkeypatch, at=3)
    with pytest.raises(Killed):
        go(shelf, "kdrl", tmp_path / "stopped", **own)
    heal()
    newest = tmp_path / "stopped" / "checkpoints" / "step-000003"
    _truncate(newest / "weights.safetensors")
    metrics = (tmp_path / "stopped" / "metrics.jsonl").read_bytes()
    with pytest.raises(LimbeckError, match=r"step-000003 is not a checkpoint"):
        resume(tmp_path / "stopped")
    assert (tmp_path / "stopped" / "metrics.jsonl").read_bytes() == metrics
    shutil.rmtree(newest)
    result = resume(tmp_path / "stopped")
    assert (result.student / "model.safetensors").read_bytes() == (straight.student / "model.safetensors").read_bytes()


# ---------------------------------------------------------------- output folders


def test_another_run_is_not_written_over(shelf: Shelf, out: Path) -> None:
    go(shelf, "sft", out, steps=1, eval_size=0)
    before = tree(out)
    with pytest.raises(LimbeckError, match=r"already holds a run.*--resume.*--overwrite"):
        go(shelf, "kdrl", out)
    assert tree(out) == before


def test_overwrite_takes_only_what_a_run_wrote(shelf: Shelf, out: Path) -> None:
    go(shelf, "sft", out, steps=1, lora_rank=2)
    (out / "notes.txt").write_text("mine")
    (out / "data").mkdir()
    (out / "data" / "set.jsonl").write_text("mine too")
    go(shelf, "kdrl", out, steps=1, eval_size=0, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "data" / "set.jsonl").read_text() == "mine too"
    assert not (out / "adapter").exists()
    assert not (out / "evaluations.jsonl").exists()
    assert len(lines(out / "metrics.jsonl")) == 1
    assert json.loads((out / "run.json").read_text())["method"] == "kdrl"


def test_overwrite_with_a_bad_model_loses_nothing(shelf: Shelf, out: Path) -> None:
    go(shelf, "sft", out, steps=1, eval_size=0)
    before = tree(out)
    with pytest.raises(LimbeckError, match=r"no such folder"):
        go(shelf, "kdrl", out, overwrite=True, teacher="/nowhere/at/all")
    assert tree(out) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_limbeck_did_not_write_is_left_alone(overwrite: bool, shelf: Shelf, out: Path) -> None:
    out.mkdir()
    jsonl(out / "metrics.jsonl", [{"mine": 1}])
    before = tree(out)
    with pytest.raises(LimbeckError, match=r"is not empty and holds no run; name a new one"):
        go(shelf, "sft", out, overwrite=overwrite)
    assert tree(out) == before


def test_a_file_in_place_of_the_output_folder_is_refused(shelf: Shelf, out: Path) -> None:
    out.write_text("mine")
    with pytest.raises(LimbeckError, match=r"is a file\); name another"):
        go(shelf, "sft", out, overwrite=True)
    assert out.read_text() == "mine"


def test_an_empty_folder_is_taken(shelf: Shelf, out: Path) -> None:
    out.mkdir()
    result = go(shelf, "sft", out, steps=1, eval_size=0)
    assert tensors(result.student / "model.safetensors")
    assert not list(out.rglob("*.tmp"))
