"""``lb.objective``: which turn a token belongs to, and whose reward is whose, also where a turn's tokens are masked."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import limbeck as lb
from limbeck.axes import divergence_loss, hint, init, reinforce, reward, sample, score, student, to_go, token_sum, turn
from limbeck.axes.expression import Expr
from limbeck.errors import LimbeckError

torch.manual_seed(3)
B, T, V = 2, 6, 5
LOGITS = torch.randn(B, T, V, dtype=torch.float64)
TOKENS = torch.randint(V, (B, T))
TURNS = torch.tensor([[0, 0, 1, 2, 2, 2], [0, 1, 1, 1, 2, 2]])
REWARDS = torch.tensor([[1.0, 9.0, 4.0], [2.0, 0.5, 3.0]], dtype=torch.float64)


def told(what: Expr, mask: torch.Tensor, **given: Any) -> torch.Tensor:
    """``[B, T]`` what each token is told, read off the gradient of ``-sum A log p`` in the log-probs."""
    logp = LOGITS.log_softmax(-1).gather(-1, TOKENS[..., None])[..., 0].requires_grad_()
    objective = lb.objective(lb.Method(sample(student), lb.Term(what, reinforce), token_sum))
    objective(student_logp=logp, tokens=TOKENS, mask=mask, **{"turn": TURNS, **given}).loss.backward()
    assert logp.grad is not None
    return -logp.grad


@pytest.mark.parametrize("masked", [None, 0, 1, 2])
def test_a_reward_is_of_the_turn_with_its_number(masked: int | None) -> None:
    mask = torch.ones(B, T) if masked is None else (masked != TURNS).double()
    rewards = REWARDS.clone()
    if masked is not None:
        rewards[:, masked] = 0.0
    torch.testing.assert_close(told(reward, mask, turn_reward=rewards), rewards.gather(1, TURNS) * mask)
    returns = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(told(to_go(reward, 1.0), mask, turn_reward=rewards), returns.gather(1, TURNS) * mask)


def test_rewards_may_go_on_beyond_the_last_turn_as_nan() -> None:
    mask, beyond = torch.ones(B, T), torch.full((B, 2), torch.nan, dtype=torch.float64)
    wide = torch.cat([REWARDS, beyond], 1)
    torch.testing.assert_close(told(reward, mask, turn_reward=wide), REWARDS.gather(1, TURNS))


def test_a_sequence_without_a_kept_token_keeps_its_score() -> None:
    """It counts where a reduction asks for the empty ones too, as a group's baseline does, and nowhere else."""
    mask = torch.ones(B, T)
    mask[1] = 0
    mates = told(score.over("group", "mean", empty=True), mask, turn_reward=REWARDS, group=torch.zeros(B))
    torch.testing.assert_close(mates, REWARDS.sum(1).mean() * mask.double())
    others = told(score.over("group", "mean"), mask, turn_reward=REWARDS, group=torch.zeros(B))
    torch.testing.assert_close(others, REWARDS[0].sum() * mask.double())


def test_what_the_mask_hides_may_have_any_turn() -> None:
    """Collators pad with 0 or -1."""
    mask = torch.ones(B, T)
    mask[:, -2:] = 0
    rewards = torch.tensor([[1.0, 9.0, 4.0], [2.0, 5.0, 0.0]], dtype=torch.float64)
    want = rewards.gather(1, TURNS) * mask
    for padding in (0, -1, 7):
        padded = torch.where(mask.bool(), TURNS, padding)
        torch.testing.assert_close(told(reward, mask, turn=padded, turn_reward=rewards), want)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float32])
def test_rewards_of_turns_may_be_counts(kind: torch.dtype) -> None:
    counts = torch.tensor([[0, 1, 0], [1, 1, 0]])
    got = told(reward, torch.ones(B, T), turn_reward=counts.to(kind))
    torch.testing.assert_close(got, counts.double().gather(1, TURNS))


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_a_reward_that_is_read_is_finite(odd: float) -> None:
    rewards = REWARDS.clone()
    rewards[1, 1] = odd
    with pytest.raises(LimbeckError, match=r"reward is .* at sequence 1, which the method reads"):
        told(reward, torch.ones(B, T), turn_reward=rewards)
    with pytest.raises(LimbeckError, match=r"reward is .* at sequence 1, which the method reads"):
        told(score, torch.ones(B, T), reward=rewards[:, 1])
    told(turn, torch.ones(B, T), turn_reward=rewards)  # nobody reads it


def test_a_view_is_called_as_its_argument_is() -> None:
    ids, logp = torch.arange(3).expand(B, T, 3), torch.full((B, T, 3), torch.nan)
    with pytest.raises(LimbeckError, match=r"^init_given_topk has log-probs that are NaN"):
        lb.objective(lb.Method(sample(student), lb.Term(init.given(hint), divergence_loss("fkl", top_k=3)), token_sum))(
            LOGITS, TOKENS, init_given_topk=(ids, logp)
        )


def test_who_has_a_context_is_yes_or_no() -> None:
    given = {"ema_given_logits": LOGITS, "reward": torch.ones(B)}
    for odd in (torch.tensor([torch.nan, 1.0]), torch.tensor([0.5, 1.0]), torch.tensor([-1, 1])):
        with pytest.raises(LimbeckError, match="holds numbers other than 0 and 1"):
            lb.objective("sdpo")(LOGITS, TOKENS, columns={"has sibling_or_feedback": odd}, **given)


def test_a_misspelt_context_is_refused() -> None:
    sdpo, told = lb.objective("sdpo"), torch.tensor([True, False])
    given = {"ema_given_logits": LOGITS, "reward": torch.ones(B)}
    sdpo(LOGITS, TOKENS, columns={"has sibling_or_feedback": told, "level": told}, **given)
    with pytest.raises(LimbeckError, match=r"'has feedback'.* is not a context of sdpo.*'has sibling_or_feedback'"):
        sdpo(LOGITS, TOKENS, columns={"has feedback": told}, **given)
    with pytest.raises(LimbeckError, match="is not a context of sdpo"):
        sdpo(LOGITS, TOKENS, columns={"Has_sibling_or_feedback": told}, **given)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"turn": TURNS + 1}, "turn holds 3, but turn_reward has a reward for turns 0 to 2; count turns from 0"),
        ({"turn": TURNS - 1}, "turn holds -1"),
        ({"turn": TURNS.flip(1)}, "turn falls along a sequence"),
        ({"turn": TURNS.clamp(max=1)}, "gives sequence 0 4 for turn 2, none of whose tokens count"),
        ({"turn_reward": REWARDS[:, :2]}, "turn holds 2, but turn_reward has a reward for turns 0 to 1"),
    ],
)
def test_impossible_numbers_are_refused(given: dict[str, torch.Tensor], sentence: str) -> None:
    with pytest.raises(LimbeckError, match=sentence):
        told(reward, torch.ones(B, T), **{"turn_reward": REWARDS, **given})
