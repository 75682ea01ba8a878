"""Rectangles and the shift by one: rows handed to the loss are a plain forward's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_runs import VOCABULARY, Shelf, llama, naive_logits, put, record_of

from limbeck.engine.models.policy import Policy, add_lora, load_policy
from limbeck.engine.scoring.forward import rectangle, run_model, score_record
from limbeck.kernels.tiles import StatisticRequest, _logits, statistics
from limbeck.math.statistic import LogProb
from limbeck.types import Dense, Hidden, Rollout, Sampled, TopK

TEXTS = [("a", "12+3"), ("longer prompt", "x"), ("b", ""), ("c", "ab" * 9), ("dd", "7")]
BASE = {
    "vocab_size": 112,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "initializer_range": 0.5,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {"tie_word_embeddings": False},
    "Qwen3": {"tie_word_embeddings": True},
    "Gemma2": {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 4.0},
    "Phi": {},  # a head with a bias
    "GPTNeoX": {},
    "HyperCLOVAX": {"logits_scaling": 4.0},
    "FalconH1": {
        "lm_head_multiplier": 0.2,
        "mamba_d_ssm": 16,
        "mamba_n_heads": 2,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
    },
}


def logits_of(carrier: Dense | Hidden) -> torch.Tensor:
    if isinstance(carrier, Dense):
        return carrier.logits_NV.detach()
    h = carrier.head
    return _logits(carrier.hidden_NH, h.weight_VH, h.bias_V, h.scale, h.softcap, torch.float32).detach()


def naive_rows(policy: Policy, record: Rollout) -> torch.Tensor:
    """Logits of every scored token, one sequence at a time."""
    rows = []
    for b in range(record.n_sequences):
        first, last = int(record.start_B1[b]), int(record.start_B1[b + 1])
        logits = naive_logits(policy, record.ids_L[first:last].tolist())
        mine = record.pos_N[record.seq_N == b] - first
        rows.append(logits[mine - 1])
    return torch.cat(rows)


def family(name: str, own: dict[str, Any], folder: Path) -> Policy:
    torch.manual_seed(3)
    config = getattr(transformers, f"{name}Config")(**{**BASE, **own})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():  # biases start at zero and scales at one: move them
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    put(model, folder)
    policy = load_policy(str(folder), "student")
    policy.scorer.vocabulary = VOCABULARY
    return policy


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_are_the_models_own_logits(name: str, tmp_path: Path) -> None:
    policy = family(name, FAMILIES[name], tmp_path / "model")
    record = record_of(policy, TEXTS)
    expected = naive_rows(policy, record)
    got = run_model(policy, record, logits_of)
    assert got.shape == (record.n_tokens, VOCABULARY)
    assert float(expected.abs().max()) > 0.5
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_rectangle_pads_right_and_shifts_by_one(shelf: Shelf) -> None:
    policy = load_policy(str(shelf.student), "student")
    record = record_of(policy, TEXTS)
    ids_BT, mask_BT, (row_N, column_N) = rectangle(record, pad=77, device=torch.device("cpu"))
    assert ids_BT.shape == (5, int(record.start_B1.diff().max()))
    for b in range(5):
        first, last = int(record.start_B1[b]), int(record.start_B1[b + 1])
        assert ids_BT[b, : last - first].tolist() == record.ids_L[first:last].tolist()
        assert ids_BT[b, last - first :].tolist() == [77] * (ids_BT.shape[1] - last + first)
        assert mask_BT[b].sum() == last - first
    assert ids_BT[row_N, column_N + 1].tolist() == record.token_N.tolist()


@pytest.mark.parametrize("micro_tokens", [1, 20, 10_000])
def test_views_do_not_depend_on_micro_batches(micro_tokens: int, shelf: Shelf) -> None:
    policy = load_policy(str(shelf.teacher), "teacher")
    policy.scorer.vocabulary = VOCABULARY
    record = record_of(policy, TEXTS)
    logq = naive_rows(policy, record).log_softmax(-1)
    sampled = score_record(policy, record, frozenset({"sampled"}), micro_tokens, None)
    assert isinstance(sampled, Sampled)
    own = logq.gather(1, record.token_N.unsqueeze(1)).squeeze(1)
    assert torch.allclose(sampled.logp_N, own, atol=1e-4)
    top = score_record(policy, record, frozenset({"topk"}), micro_tokens, 5)
    assert isinstance(top, TopK)
    assert torch.allclose(top.logp_NK, logq.topk(5).values, atol=1e-4)
    assert torch.equal(top.ids_NK, logq.topk(5).indices)
    dense = score_record(policy, record, frozenset({"dense", "sampled"}), micro_tokens, None)
    assert isinstance(dense, Dense | Hidden)
    assert torch.allclose(logits_of(dense).log_softmax(-1), logq, atol=1e-4)
    assert not any(x.requires_grad for x in (sampled.logp_N, top.logp_NK, logits_of(dense)))


def test_what_was_read_of_the_student_stays_when_the_student_moves(shelf: Shelf) -> None:
    """``old`` is the student at the start of the batch, its head too, although updates happen in place."""
    policy = load_policy(str(shelf.student), "student")
    policy.scorer.vocabulary = VOCABULARY
    record = record_of(policy, TEXTS)
    view = score_record(policy, record, frozenset({"dense"}), 10_000, None)
    assert isinstance(view, Dense | Hidden)
    before = logits_of(view).clone()
    with torch.no_grad():
        for p in policy.model.parameters():
            p.mul_(1.5)
    assert torch.equal(logits_of(view), before)


def test_gradients_are_those_of_a_plain_forward(shelf: Shelf) -> None:
    policy = load_policy(str(shelf.student), "student")  # tied: the head's gradient joins the embedding's
    policy.scorer.vocabulary = VOCABULARY
    record = record_of(policy, TEXTS)
    weight = torch.linspace(-1, 1, record.n_tokens)

    def loss(carrier: Dense | Hidden) -> torch.Tensor:
        return (statistics(carrier, record.token_N, [StatisticRequest(LogProb())])[0] * weight).sum()

    run_model(policy, record, loss).backward()
    got = {n: p.grad.clone() for n, p in policy.model.named_parameters()}
    policy.model.zero_grad()
    total, at = torch.zeros(()), 0
    for b in range(record.n_sequences):
        first, last = int(record.start_B1[b]), int(record.start_B1[b + 1])
        logits = policy.model(input_ids=record.ids_L[first:last].unsqueeze(0)).logits[0, :, :VOCABULARY]
        for pos in (record.pos_N[record.seq_N == b] - first).tolist():
            total = total + weight[at] * logits[pos - 1].log_softmax(-1)[record.ids_L[first + pos]]
            at += 1
    total.backward()
    for n, p in policy.model.named_parameters():
        assert torch.allclose(got[n], p.grad, rtol=1e-3, atol=1e-4 * float(p.grad.abs().max())), n


def test_a_lora_model_reads_through_its_adapters(shelf: Shelf) -> None:
    policy = load_policy(str(shelf.student), "student")
    policy.scorer.vocabulary = VOCABULARY
    torch.manual_seed(0)
    add_lora(policy, 2, 8)
    record = record_of(policy, TEXTS)
    plain = run_model(policy, record, logits_of)
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            if "lora_B" in name:
                p.normal_()
    assert torch.allclose(run_model(policy, record, logits_of), naive_rows(policy, record), atol=1e-4)
    assert not torch.allclose(run_model(policy, record, logits_of), plain, atol=1e-1)


def test_a_model_object_is_taken_as_it_is(shelf: Shelf) -> None:
    model = llama(9, attention_dropout=0.5)
    model.train()  # as a constructor leaves it
    model.name_or_path = str(shelf.student)
    policy = load_policy(model, "student")
    policy.scorer.vocabulary = VOCABULARY
    record = record_of(policy, TEXTS)
    first = run_model(policy, record, logits_of)
    assert torch.equal(first, run_model(policy, record, partial(logits_of)))  # no dropout
