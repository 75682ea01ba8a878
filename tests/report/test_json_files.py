"""The reader of a run's JSON files, and values as JSON can hold them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from limbeck.json_files import as_json_value, read_and_count_json_lines, read_json_lines, read_json_object


def test_broken_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    """A Unicode line separator inside a text does not end a line; half a line, a list and a number are not objects."""
    file = tmp_path / "metrics.jsonl"
    file.write_bytes('{"a": 1}\n{"b": \n\n[1]\n3\n{"c": "x\u2028y"}\n{"d": "'.encode() + b"\xff" + b'"}\n')
    rows = [{"a": 1}, {"c": "x\u2028y"}, {"d": "\ufffd"}]
    assert read_and_count_json_lines(file) == (tuple(rows), 3)
    assert read_json_lines(file) == rows
    assert read_json_lines(tmp_path / "none.jsonl") == read_json_lines(tmp_path) == []


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_a_file_without_an_object_is_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.json"
    file.write_text(text)
    assert read_json_object(file) is None


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json_object(tmp_path / "run.json")


def test_values_become_those_of_json() -> None:
    value = {1: (math.nan, -math.inf, 0.5), "t": torch.tensor([[1, 2]]), "s": {"b", "a"}, "p": Path("x")}
    assert as_json_value(value) == {"1": [None, None, 0.5], "t": [[1, 2]], "s": ["a", "b"], "p": "x"}
