"""Rollouts and scores are cut, selected, joined and moved by the suffix of their fields, without loss."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.types import Dense, Head, Hidden, Prompt, Rollout, Sampled, Scores, TopK, concatenate
from limbeck.types.rollout import POINTS_TO, axis_of

SIZES = ((2, (1, 3)), (1, (2, 0)), (2, (4,)), (3, (1, 1, 2)), (1, (5,)), (2, (0,)))
"""Prompt length and scored tokens of each turn, one entry a sequence; two tokens stand between turns."""

GROUPS = (0, 0, 1, 1, 1, 2)


def record() -> Rollout:
    """Ragged, with an empty turn and an empty response; every field holds values that name their place."""
    ids: list[int] = []
    pos: list[int] = []
    turns: list[int] = []
    seq: list[int] = []
    start = [0]
    for b, (root, lengths) in enumerate(SIZES):
        at = len(ids) + root
        for k, n in enumerate(lengths):
            at += 2 if k else 0
            pos += range(at, at + n)
            turns += [len(seq)] * n
            seq.append(b)
            at += n
        ids += range(100 * b, 100 * b + at - len(ids))
        start.append(len(ids))
    B, N, U = len(SIZES), len(pos), len(seq)
    return Rollout(
        ids_L=torch.tensor(ids),
        start_B1=torch.tensor(start),
        root_B=torch.tensor([root for root, _ in SIZES]),
        pos_N=torch.tensor(pos),
        turn_N=torch.tensor(turns),
        seq_U=torch.tensor(seq),
        group_B=torch.tensor(GROUPS),
        author_N=torch.zeros(N, dtype=torch.int8),
        rollout_logp_N=torch.arange(N) / 7,
        origin_B=torch.zeros(B, dtype=torch.int64),
        reward_U=torch.arange(U) / 3,
        correct_B=torch.arange(B) % 2 == 0,
        truncated_B=torch.arange(B) % 3 == 0,
        label_B=torch.arange(B) / 5,
        columns_B={"b": torch.arange(B) + 0.5},
        columns_N={"n": torch.arange(N) + 0.25},
        prompts_B=tuple(Prompt(f"p{g}", ()) for g in GROUPS),
        feedback_B=tuple(f"f{b}" for b in range(B)),
        drafts_B=tuple(f"d{b}" for b in range(B)),
        said_U=tuple(f"s{u}" for u in range(U)),
    ).check()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Rollout):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(Rollout))
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


def test_every_field_but_the_names_of_the_sources_has_an_axis() -> None:
    assert {f.name for f in fields(Rollout) if not axis_of(f.name)} == {"sources"}
    assert POINTS_TO.keys() <= {f.name for f in fields(Rollout)}


def test_parts_join_to_the_whole() -> None:
    whole = record()
    parts = [whole.groups(g, g + 1)[0].check() for g in range(whole.n_groups)]
    assert same(concatenate(parts), whole)
    assert same(concatenate([whole.groups(0, 0)[0], *parts]), whole)
    assert same(whole.select(range(whole.n_sequences)), whole)
    assert same(whole.select([2, 3, 4]), parts[1])
    assert whole.select([]).check().n_groups == 0


def test_selected_sequences_keep_everything_that_is_theirs() -> None:
    whole, chosen = record(), [4, 3, 1, 5]
    got = whole.select(chosen).check()
    assert got.group_B.tolist() == [0, 0, 1, 2]
    for new, old in enumerate(chosen):
        assert same(got.select([new]), whole.select([old]))
    merged = whole.select([0, 2, 5, 1], [0, 0, 3, 3]).check()
    assert merged.group_B.tolist() == [0, 0, 1, 1]
    twice = whole.select([1, 1]).check()
    assert same(twice.select([0]), twice.select([1]))


def test_turns_and_groups_are_found() -> None:
    whole = record()
    tokens = whole.token_N.tolist()
    assert [tokens[s] for s in whole.tokens_U[:4]] == [[2], [5, 6, 7], [101, 102], []]
    assert [list(turns) for turns in whole.turns_B] == [[0, 1], [2, 3], [4], [5, 6, 7], [8], [9]]
    assert [list(members) for members in whole.sequences_G] == [[0, 1], [2, 3, 4], [5]]
    assert whole.prompt_ids(3) == [300, 301, 302]


def test_a_column_that_a_part_lacks_is_nan_there() -> None:
    whole = record()
    first, last = whole.groups(0, 1)[0], replace(whole.groups(1, 3)[0], columns_B={}, columns_N={})
    joined = concatenate([first, last])
    assert joined.columns_B["b"].isnan().tolist() == [False] * 2 + [True] * 4
    assert joined.columns_N["n"].isnan().tolist() == [False] * first.n_tokens + [True] * last.n_tokens


HEAD = Head(torch.randn(5, 3, requires_grad=True), torch.randn(5, requires_grad=True))
FORMS = {
    "log-probs": Sampled(torch.randn(4, requires_grad=True)),
    "top-k": TopK(torch.arange(8).view(4, 2), torch.randn(4, 2, requires_grad=True)),
    "logits": Dense(torch.randn(4, 5, requires_grad=True)),
    "hidden states": Hidden(torch.randn(4, 3, requires_grad=True), HEAD),
}


@pytest.mark.parametrize("kind", FORMS)
def test_scores_are_cut_joined_detached_and_moved(kind: str) -> None:
    scores = FORMS[kind]
    assert scores.kind == kind
    assert (scores.n_rows, scores.width) == (4, 5 if kind in ("logits", "hidden states") else None)
    joined = Scores.cat([scores.rows(slice(0, 1)), scores.rows(torch.tensor([1, 2, 3]))])
    assert torch.equal(joined.values, scores.values)
    still, moved = scores.detach(), scores.to("meta")
    tensors = [x for s in (still, moved) for x in vars(s).values() if isinstance(x, Tensor)]
    assert not any(x.requires_grad for x in tensors[: len(tensors) // 2])
    assert all(x.is_meta for x in tensors[len(tensors) // 2 :])
    if isinstance(scores, Hidden):
        assert isinstance(still, Hidden)
        assert isinstance(moved, Hidden)
        assert not still.head.weight_VH.requires_grad
        assert moved.head.weight_VH.is_meta


def test_a_snapshot_stays_when_the_head_moves() -> None:
    head = Head(torch.ones(5, 3), torch.ones(5))
    kept = Hidden(torch.ones(4, 3), head).snapshot()
    head.weight_VH.mul_(2)
    assert bool((kept.head.weight_VH == 1).all())
