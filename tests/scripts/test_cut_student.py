"""Cutting a student: which layers stay, and that what stays is the teacher's."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from limbeck.errors import LimbeckError

SHAPE = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


def llama(layers: int = 5, tied: bool = True) -> LlamaForCausalLM:
    """A tiny random Llama."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, num_hidden_layers=layers, tie_word_embeddings=tied)).eval()


@pytest.fixture
def folder(tmp_path):
    """A saved Llama of five layers."""
    llama().save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def test_spread_keeps_both_ends_and_is_even(cutter):
    assert cutter.spread(30, 15) == [0, 2, 4, 6, 8, 10, 12, 15, 17, 19, 21, 23, 25, 27, 29]
    assert cutter.spread(6, 1) == [0]
    for total in range(2, 20):
        for kept in range(2, total + 1):
            layers = cutter.spread(total, kept)
            gaps = {after - before for before, after in itertools.pairwise(layers)}
            assert len(set(layers)) == kept
            assert (layers[0], layers[-1]) == (0, total - 1)
            assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("tied", [True, False])
def test_kept_layers_are_the_teachers(cutter, tied):
    teacher = llama(tied=tied)
    student = cutter.cut(teacher, [0, 3, 4])
    assert student.config.num_hidden_layers == 3
    assert teacher.config.num_hidden_layers == 5
    for new, old in enumerate([0, 3, 4]):
        theirs = teacher.model.layers[old].state_dict()
        for name, tensor in student.model.layers[new].state_dict().items():
            assert torch.equal(tensor, theirs[name]), (new, name)
    assert torch.equal(student.model.norm.weight, teacher.model.norm.weight)
    assert torch.equal(student.lm_head.weight, teacher.lm_head.weight)
    assert (student.lm_head.weight is student.model.embed_tokens.weight) == tied


def test_nothing_is_shared_with_the_teacher(cutter):
    teacher = llama()
    before = teacher.model.layers[0].mlp.up_proj.weight.clone()
    with torch.no_grad():
        cutter.cut(teacher, [0, 4]).model.layers[0].mlp.up_proj.weight.add_(1)
    assert torch.equal(teacher.model.layers[0].mlp.up_proj.weight, before)


def test_all_layers_kept_is_the_same_model(cutter):
    teacher, ids = llama(), torch.tensor([[1, 5, 9, 2]])
    with torch.no_grad():
        assert torch.equal(cutter.cut(teacher, range(5))(ids).logits, teacher(ids).logits)


def test_generation_with_the_cache_equals_without(cutter):
    student = cutter.cut(llama(), [0, 2, 4])
    assert [layer.self_attn.layer_idx for layer in student.model.layers] == [0, 1, 2]
    ids = torch.tensor([[1, 5, 9, 2]])
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        assert torch.isfinite(student(ids).logits).all()
        cached = student.generate(ids, use_cache=True, **options)
        assert cached.shape == (1, 12)
        assert torch.equal(cached, student.generate(ids, use_cache=False, **options))


def test_settings_of_each_layer_are_cut_too(cutter):
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    config = Qwen2Config(**SHAPE, num_hidden_layers=4, layer_types=kinds, sliding_window=4, use_sliding_window=True)
    student = cutter.cut(Qwen2ForCausalLM(config), [0, 1, 3])
    assert student.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    assert config.layer_types == kinds
    assert torch.isfinite(student(torch.arange(8)[None]).logits).all()


def test_the_saved_student_loads(cutter, folder, capsys):
    out = folder.parent / "made" / "student"
    assert cutter.main([str(folder), str(out), "--keep", "0,2,4"]) == 0
    assert "3 of 5 layers (0, 2, 4)" in capsys.readouterr().out
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 3
    assert "3 of its 5 layers" in (out / "README.md").read_text()
    assert [path.name for path in out.parent.iterdir()] == ["student"], "scratch folders are gone"


def test_half_of_the_layers_is_the_default(cutter, folder):
    assert cutter.main([str(folder), str(folder.parent / "student")]) == 0
    assert AutoModelForCausalLM.from_pretrained(folder.parent / "student").config.num_hidden_layers == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layers", "6"], "the model has 5 layers"),
        (["--layers", "0"], "give 1 to 5"),
        (["--keep", "0,x"], "not a list of layer numbers"),
        (["--keep", "0,5"], "from 0 to 4"),
        (["--keep", "2,1"], "increasing"),
    ],
)
def test_a_mistake_is_one_sentence(cutter, folder, capsys, options, words):
    assert cutter.main([str(folder), str(folder.parent / "student"), *options]) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("\n") == 1
    assert not (folder.parent / "student").exists()


def test_a_folder_without_a_model_is_refused(cutter, tmp_path, capsys):
    assert cutter.main([str(tmp_path / "none"), str(tmp_path / "student")]) == 2
    assert "make smollm2" in capsys.readouterr().err


def test_existing_folders_are_not_overwritten(cutter, folder):
    out = folder.parent / "student"
    cutter.make(str(folder), out, 2, None)
    with pytest.raises(LimbeckError, match="--force"):
        cutter.make(str(folder), out, 3, None)
    cutter.make(str(folder), out, 3, None, force=True)
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 3
    precious = folder.parent / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    with pytest.raises(LimbeckError, match="not written by this script"):
        cutter.make(str(folder), precious, 3, None, force=True)
    with pytest.raises(LimbeckError, match="is the model to cut"):
        cutter.make(str(out), out, 2, None, force=True)
    assert (precious / "thesis.tex").exists()
