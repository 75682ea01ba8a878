"""Weights that are missing or no numbers, models that are not causal, padding, precision, adapters and dropout."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from tiny_runs import VOCABULARY, Shelf, go, lines, put, tensors
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from limbeck.engine import configure, distill, train
from limbeck.engine.models.checks import checkpointing, losses_left_out, refuse_chance, refuse_quantised
from limbeck.engine.models.generate import SamplingPolicy, check_writing, generate
from limbeck.engine.models.policy import load_policy
from limbeck.errors import LimbeckError

SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def lively(model: PreTrainedModel) -> PreTrainedModel:
    """Weights large enough that what a model does is seen in its logits."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.4)
    return model.eval()


def rwkv() -> PreTrainedModel:
    return lively(RwkvForCausalLM(RwkvConfig(**{k: v for k, v in SMALL.items() if "heads" not in k})))


def opt() -> PreTrainedModel:
    return lively(OPTForCausalLM(OPTConfig(**SMALL, ffn_dim=24, word_embed_proj_dim=16, layerdrop=0.5)))


def gpt2() -> PreTrainedModel:
    return lively(
        GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)
        )
    )


def changed(source: Path, folder: Path, **config: Any) -> Path:
    shutil.copytree(source, folder)
    text = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(text | config))
    return folder


@pytest.mark.parametrize("role", ["student", "teacher", "ref"])
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ("drop", r"lacks \(model.norm.weight\)"),
        ("add", r"holds weights .* \(more\)"),
        ("shape", r"other shapes \(.*norm"),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_refused(
    role: str, edit: str, said: str, shelf: Shelf, tmp_path: Path
) -> None:
    folder = changed(shelf.teacher, tmp_path / "m")
    file = folder / "model.safetensors"
    held = load_file(file)
    if edit == "add":
        held["more"] = torch.zeros(2)
    else:
        norm = held.pop("model.norm.weight")
        held |= {"model.norm.weight": torch.cat([norm, norm])} if edit == "shape" else {}
    save_file(held, file, metadata={"format": "pt"})
    with pytest.raises(LimbeckError, match=rf"{role}=.*{said}.*give the whole checkpoint"):
        load_policy(str(folder), role)


@pytest.mark.parametrize("layers", [1, 9, 0, -1])
def test_another_number_of_layers_is_refused(layers: int, shelf: Shelf, tmp_path: Path) -> None:
    folder = changed(shelf.teacher, tmp_path / "m", num_hidden_layers=layers)
    with pytest.raises(LimbeckError, match="configuration describes" if layers > 0 else f"num_hidden_layers={layers}"):
        load_policy(str(folder), "teacher")


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_size": 0},
        {"num_attention_heads": 3},
        {"rms_norm_eps": "x"},
        {"num_key_value_heads": 0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": -1.0}},
        {"vocab_size": 0},
    ],
)
def test_an_impossible_configuration_gives_one_sentence(config: dict[str, Any], shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match="teacher=") as e:
        load_policy(str(changed(shelf.teacher, tmp_path / "m", **config)), "teacher")
    assert "tokenizer could not" not in str(e.value)


def test_weights_that_are_no_numbers_are_named(shelf: Shelf) -> None:
    model = AutoModelForCausalLM.from_pretrained(shelf.teacher)
    model.model.norm.weight.data[0] = torch.nan
    with pytest.raises(LimbeckError, match=r"hold NaN or infinity, in model.norm.weight"):
        load_policy(model, "teacher")


def test_models_that_are_not_causal_are_refused(tmp_path: Path) -> None:
    bert = BertLMHeadModel(BertConfig(**SMALL, intermediate_size=24))
    with pytest.raises(LimbeckError, match="BertLMHeadModel is not a causal language model"):
        load_policy(str(put(bert, tmp_path / "bert")), "student")
    sizes = {
        f"{side}_{k}": v
        for side in ("encoder", "decoder")
        for k, v in {"layers": 1, "attention_heads": 2, "ffn_dim": 24}.items()
    }
    bart = BartForConditionalGeneration(BartConfig(vocab_size=VOCABULARY, d_model=16, **sizes))
    with pytest.raises(LimbeckError, match=r"is an encoder-decoder \(bart\)"):
        load_policy(str(put(bart, tmp_path / "bart")), "student")


@pytest.mark.parametrize("mixed", [False, True])
def test_a_recurrent_model_writes_as_if_alone(mixed: bool, shelf: Shelf, tmp_path: Path) -> None:
    """Its log-probs are those of a pass over the text without padding, and a mixture needs no cache of it."""
    policy = load_policy(str(put(rwkv(), tmp_path / "rwkv")), "student")
    other = load_policy(str(shelf.student), "student")
    parts = ((other, 0.5), (policy, 0.5)) if mixed else ((policy, 1.0),)
    prompts = [[5], [6, 7, 8, 9, 10], [11]]
    for prompt, written in zip(prompts, generate(SamplingPolicy(parts), prompts, 4, 8), strict=True):
        ids = torch.tensor([prompt + written.ids])
        with torch.no_grad():
            laws = [w * p.model(input_ids=ids).logits[0, :, :VOCABULARY].softmax(-1) for p, w in parts]
        law = torch.stack(laws).sum(0)[len(prompt) - 1 : -1].log()
        expected = law.gather(1, torch.tensor(written.ids).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(torch.tensor(written.logp), expected, rtol=0, atol=1e-4)
    assert policy.writes == "alone"  # Transformers' RWKV mixes the rows of a batch in its state
    assert other.writes == ("padded" if mixed else "")


def test_a_model_that_reads_padding_writes_for_prompts_of_one_length(shelf: Shelf, tmp_path: Path) -> None:
    config = RecurrentGemmaConfig(
        **{**SMALL, "num_hidden_layers": 3},
        num_key_value_heads=1,
        intermediate_size=24,
        lru_width=16,
        head_dim=8,
        bos_token_id=1,
        eos_token_id=1,
    )
    policy = load_policy(str(put(lively(RecurrentGemmaForCausalLM(config)), tmp_path / "rg")), "student")
    before = torch.get_rng_state()
    check_writing(policy)
    assert policy.writes == "alike"
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_that_cannot_generate_is_refused_in_one_sentence(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(str(shelf.student), "student")

    def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("no such cache\nand more")

    monkeypatch.setattr(policy.model, "generate", broken)
    with pytest.raises(LimbeckError, match=r"cannot write: generate fails on a short prompt \(no such cache\); give"):
        check_writing(policy)


def test_a_model_whose_cache_is_wrong_is_refused(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(str(shelf.student), "student")
    real = policy.model.forward

    def forgets(*a: Any, past_key_values: Any = None, **k: Any) -> Any:
        out = real(*a, past_key_values=past_key_values, **k)
        if k.get("use_cache"):
            out.logits = out.logits.flip(-1)
        return out

    monkeypatch.setattr(policy.model, "forward", forgets)
    with pytest.raises(LimbeckError, match=r"nats from those of one pass over the same text"):
        check_writing(policy)


def test_half_precision_is_held_in_full(shelf: Shelf, out: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(shelf.student).bfloat16()
    before = {k: v.float().clone() for k, v in model.state_dict().items()}
    given = {**shelf.settings("sft", lr=1e-5, eval_size=0), "student": model}
    after = tensors(distill("sft", out=out, quiet=True, **given).student / "model.safetensors")
    moved = sum(int((after[k] != before[k]).sum()) for k in after) / sum(v.numel() for v in after.values())
    assert model.dtype == torch.float32
    assert moved > 0.5


def adapter(shelf: Shelf, folder: Path) -> tuple[Path, torch.Tensor]:
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(shelf.student)
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(model, config).eval()
    adapted.save_pretrained(folder)
    return folder, adapted(input_ids=torch.tensor([[5, 6, 7]])).logits.detach()


def test_an_adapter_is_merged_into_its_base_and_borrows_its_tokenizer(shelf: Shelf, out: Path, tmp_path: Path) -> None:
    folder, expected = adapter(shelf, tmp_path / "tuned")
    policy = load_policy(str(folder), "student")
    torch.testing.assert_close(policy.model(input_ids=torch.tensor([[5, 6, 7]])).logits, expected)
    go(shelf, "kd", out, student=str(folder), teacher=str(folder), lora_rank=2, steps=1, eval_size=0)


def test_the_adapter_that_a_run_leaves_may_be_the_next_student(shelf: Shelf, tmp_path: Path) -> None:
    """Its configuration names the base model without a path; the run's folder knows where that lies."""
    first = go(shelf, "kd", tmp_path / "a", lora_rank=2, steps=1, eval_size=0).out
    config = json.loads((first / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == shelf.student.name
    policy = load_policy(str(first / "adapter"), "student")
    merged = load_policy(str(first / "student"), "student")
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(policy.model(input_ids=ids).logits, merged.model(input_ids=ids).logits)


@pytest.mark.parametrize("edit", ["drop", "add", "base"])
def test_adapters_that_do_not_fit_are_refused(edit: str, shelf: Shelf, tmp_path: Path) -> None:
    folder, _ = adapter(shelf, tmp_path / "tuned")
    file = folder / "adapter_model.safetensors"
    held = load_file(file)
    name = next(iter(held))
    config = json.loads((folder / "adapter_config.json").read_text())
    if edit == "base":
        (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "./gone"}))
    elif edit == "drop":
        held.pop(name)
    else:
        held[name.replace("layers.0", "layers.7")] = held[name].clone()
    save_file(held, file)
    said = {"base": r"adapter of '\./gone', and there is no such", "drop": "lacks", "add": "holds weights"}[edit]
    with pytest.raises(LimbeckError, match=said):
        load_policy(str(folder), "teacher")


@pytest.mark.parametrize("make", [gpt2, opt])
def test_checkpointing_leaves_dropout_off(make: Any, shelf: Shelf, out: Path, tmp_path: Path) -> None:
    model = make()
    checkpointing(model)
    assert any(m.training for m in model.modules())
    refuse_chance(model, "student")
    model.train()
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout):
            m.p = 0.5
    if make is gpt2:
        with pytest.raises(LimbeckError, match="two passes over one text differ"):
            refuse_chance(model, "student")


def test_a_reference_is_the_student_under_checkpointing(shelf: Shelf, out: Path, tmp_path: Path) -> None:
    folder = str(put(gpt2(), tmp_path / "gpt2"))
    go(shelf, "grpo", out, student=folder, gradient_checkpointing=True, steps=1, eval_size=0)
    assert lines(out / "metrics.jsonl")[0]["term/2/loss"] == pytest.approx(0, abs=1e-9)


def test_a_router_loss_is_said_to_be_left_out() -> None:
    for asked in (True, False):
        config = MixtralConfig(**SMALL, intermediate_size=24, num_key_value_heads=2, num_local_experts=2)
        config.output_router_logits = asked
        said = losses_left_out(MixtralForCausalLM(config))
        assert said == (["router_aux_loss_coef=0.001"] if asked else [])


def test_what_is_done_to_given_models_is_said(shelf: Shelf, out: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(shelf.student).bfloat16()
    folder, _ = adapter(shelf, tmp_path / "tuned")
    console = Console(file=io.StringIO(), width=1000)
    config = configure("kd", shelf.settings("kd", teacher=str(folder), steps=1, eval_size=0))
    train(config, out, console=console, models={"student": model})
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "note: the student's weights were given in bfloat16" in said
    assert f"note: teacher={str(folder)!r} is an adapter; it is merged into its base model." in said


def test_quantised_weights_are_trained_by_adapters_only(shelf: Shelf) -> None:
    model = AutoModelForCausalLM.from_pretrained(shelf.student)
    model.is_quantized = True
    refuse_quantised(model, "student='q'", 4)
    with pytest.raises(LimbeckError, match=r"student='q' is quantised.*give lora_rank"):
        refuse_quantised(model, "student='q'", 0)
