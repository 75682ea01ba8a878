"""A student's folder records its teacher, and methods that depend on it check the record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Shelf, go, open_run

import limbeck as lb
from limbeck.engine.notices import notices
from limbeck.engine.storage import provenance
from limbeck.engine.storage.fingerprint import of_folder


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "student" / provenance.FILE).read_text())
    return found


def test_a_run_writes_who_taught_the_student(shelf: Shelf, tmp_path: Path) -> None:
    first = go(shelf, "gkd", tmp_path / "a", lam=0.0, seq_kd=True, steps=1)
    assert record(first.out) == {
        "method": "gkd",
        "student": "student",
        "teachers": {"teacher": "teacher"},
        "digests": {"student": of_folder(shelf.student), "teacher": of_folder(shelf.teacher)},
        "earlier": [],
    }
    second = go(shelf, "grpo", tmp_path / "b", student=str(first.student), ref_coef=0.0, steps=1)
    told = record(second.out)
    assert (told["method"], told["teachers"]) == ("grpo", {})  # a teacher that only measures teaches nothing
    assert [r["method"] for r in told["earlier"]] == ["gkd"]
    assert provenance.teachers(str(second.student)) == ["teacher"]
    many = go(shelf, "mad_opd", tmp_path / "c", rounds=0, steps=1)
    assert record(many.out)["teachers"] == {"first": "teacher", "second": "teacher"}


def told(shelf: Shelf, out: Path, **own: Any) -> str:
    return "\n".join(s for s in notices(open_run(shelf, "lightning_opd", out, **own).session) if "stores the" in s)


def test_teacher_consistency_is_checked(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning OPD holds where the SFT data came from the same teacher."""
    taught = go(shelf, "gkd", tmp_path / "a", lam=0.0, seq_kd=True, steps=1)
    assert told(shelf, tmp_path / "b", student=str(taught.student)) == ""
    monkeypatch.chdir(tmp_path)  # the same folder by another name
    assert told(shelf, tmp_path / "b", student="a/student") == ""
    unknown = told(shelf, tmp_path / "b")
    assert f"{str(shelf.student)!r} does not name its teacher; train it on that teacher's text first" in unknown
    other = told(shelf, tmp_path / "b", student=str(taught.student), teacher=str(shelf.student))
    assert "was taught by 'teacher'" in other
    copied = shutil.copytree(shelf.teacher, tmp_path / "copied")  # known by its content, wherever it lies
    assert told(shelf, tmp_path / "b", student=str(taught.student), teacher=str(copied)) == ""
    namesake = shutil.copytree(shelf.student, tmp_path / "elsewhere" / "teacher")
    assert "was taught by" in told(shelf, tmp_path / "b", student=str(taught.student), teacher=str(namesake))
    # Others do not ask.
    assert not any("stores the" in s for s in notices(open_run(shelf, "opd", tmp_path / "b").session))


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"teachers": 3, "earlier": 4}', '{"teachers": {}, "earlier": [1, {}]}']
)
def test_a_damaged_provenance_record_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / provenance.FILE).write_text(text)
    assert provenance.teachers(str(tmp_path)) == []
    assert provenance.teachers("embedded") == provenance.teachers("no/such/folder") == []


def test_a_record_of_an_earlier_version_is_understood_and_not_handed_on(shelf: Shelf, tmp_path: Path) -> None:
    """It named the teacher by its whole path."""
    student = Path(shutil.copytree(shelf.student, tmp_path / "old"))
    old = {"method": "gkd", "student": "/home/me/models/small", "teachers": {"teacher": str(shelf.teacher)}}
    (student / provenance.FILE).write_text(json.dumps({**old, "earlier": []}))
    assert told(shelf, tmp_path / "b", student=str(student)) == ""
    (earlier,) = record(go(shelf, "sft", tmp_path / "c", student=str(student), steps=1).out)["earlier"]
    assert earlier == {"method": "gkd", "student": "small", "teachers": {"teacher": "teacher"}}


def test_the_pipeline_is_consistent(shelf: Shelf, tmp_path: Path) -> None:
    """Both stages of ``lb.pipelines.lightning`` have one teacher."""
    own = {k: v for k, v in shelf.settings("lightning_opd").items() if k != "group"}
    first, second = lb.run_pipeline(lb.pipelines.lightning(), tmp_path / "p", quiet=True, **{**own, "steps": 1})
    assert provenance.teachers(str(first.student)) == ["teacher"]
    told = record(second.out)
    assert (told["method"], told["earlier"][0]["method"]) == ("lightning_opd", "gkd")
