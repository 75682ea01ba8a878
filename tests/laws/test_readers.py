"""Readers know their kind and whose weights they have; nothing finds that out from a role's name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import limbeck
from limbeck.axes import behavior, ema, init, old, other, ref, sample, solution, student, synced, teacher
from limbeck.axes.reader import FROZEN, HELD_BY_STUDENT, KINDS, POLICIES, Follow, Reader, Weights, by_role
from limbeck.axes.source import joint_author
from limbeck.errors import LimbeckError
from limbeck.types import STUDENT, TEACHER

PARSES = re.compile(r"""role\.(?:partition|split|startswith|removeprefix)|\br\.partition\("\("|(?<!f)["']synced\(""")
"""Looks into a role."""

READERS: dict[str, tuple[Reader, str, Weights]] = {
    "student": (student, "student", Weights.STUDENT_NOW),
    "student in a context": (student.given(solution), "student_given", Weights.STUDENT_NOW),
    "old": (old, "old", Weights.STUDENT_BEFORE),
    "behavior": (behavior, "behavior", Weights.STUDENT_BEFORE),
    "synced at every batch": (synced(), "synced", Weights.STUDENT_BEFORE),
    "synced at every other": (synced(2), "synced", Weights.STUDENT_FOLLOWING),
    "ema": (ema(0.05), "ema", Weights.STUDENT_FOLLOWING),
    "ema that copies": (ema(1.0), "ema", Weights.STUDENT_FOLLOWING),
    "init": (init, "init", Weights.INITIAL),
    "ref": (ref.at(2.0), "ref", Weights.INITIAL),
    "teacher": (teacher, "teacher", Weights.GIVEN),
    "other": (other("critic"), "critic", Weights.GIVEN),
}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_knows_whose_weights_it_has(name: str) -> None:
    """And by which name ``lb.objective`` takes its log-probs."""
    reader, slot, weights = READERS[name]
    assert reader.weights is weights
    assert reader.slot == slot
    assert joint_author((reader,)) == (TEACHER if weights is Weights.GIVEN else STUDENT)


def test_every_kind_of_reader_is_in_the_table() -> None:
    """A new kind says whose weights it has, and is tried here."""
    assert {reader.kind for reader, _, _ in READERS.values()} == set(KINDS)
    assert {reader.kind for reader, _, _ in READERS.values() if reader.is_policy} == {r.kind for r in POLICIES}


def test_a_role_is_written_from_the_kind_and_the_rule() -> None:
    """As ``explain`` and ``run.json`` print it."""
    roles = [r.role for r in (ema(0.05), ema(0.005, 5, 30), synced(), synced(4), other("critic"), ref)]
    assert roles == ["ema(0.05)", "ema(0.005, every 5, reset 30)", "synced(1)", "synced(4)", "critic", "ref"]
    assert str(ema(0.05).given(solution).at(2)) == "ema(0.05)(solution)@2"


def test_sets_of_weights_follow_from_the_enum() -> None:
    """Whose they are, who holds them, and whether a model has to be loaded for them."""
    assert [w for w in Weights if not w.of_student] == [Weights.GIVEN]
    assert [w for w in Weights if not w.from_run] == [Weights.INITIAL, Weights.GIVEN]
    assert {reader.role for reader, _, w in READERS.values() if w.in_student} - {"behavior"} == HELD_BY_STUDENT


def test_the_student_in_a_context_is_another_policy() -> None:
    """It needs a pass of its own, so the method lists it among what it reads."""
    assert student.is_policy
    assert student.at(2.0).is_policy
    assert not student.given(solution).is_policy
    assert not synced().is_policy


def test_roles_are_known_by_name_in_one_place() -> None:
    """A question of a context names the model that answers."""
    assert [by_role(r.role) for r in (student, *FROZEN)] == [student, *FROZEN]
    assert by_role("critic") == other("critic")
    for taken in ("old", "ema", "other"):
        with pytest.raises(LimbeckError, match="a role of its own"):
            by_role(taken)


def test_an_unknown_kind_is_refused() -> None:
    """With the way to name a further model."""
    with pytest.raises(LimbeckError, match=r"'critic' is no kind of reader.*other\(name\)"):
        Reader("critic")
    with pytest.raises(LimbeckError, match="the name of a reader is 3"):
        other(3)  # type: ignore[arg-type]
    assert Reader("synced", follow=Follow(1.0, 1, 0)) == synced()


def test_nothing_parses_a_role() -> None:
    """Neither its text nor a magic word."""
    found = {}
    for path in sorted(Path(limbeck.__file__).parent.rglob("*.py")):
        lines = [n for n, line in enumerate(path.read_text().splitlines(), 1) if PARSES.search(line)]
        if lines:
            found[path.name] = lines
    assert found == {}


def test_a_copy_of_the_old_policy_writes_in_the_students_hand() -> None:
    """As does the student before training."""
    assert sample(old).author == sample(init).author == sample(student).author == STUDENT
