"""Generation: what is sampled, from which distribution; every log-prob is recomputed by a plain forward pass."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_runs import VOCABULARY, Shelf, naive_logits, naive_logp, put
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from limbeck.engine.models.generate import SamplingPolicy, Written, generate
from limbeck.engine.models.policy import Policy, conversation_ids, load_policy, share_vocabulary

SAYINGS = ("go", "say a long thing: 12+34-56*78", "x", "abc abc")
MAX = 12


def policies(shelf: Shelf) -> tuple[Policy, Policy]:
    student, teacher = load_policy(str(shelf.student), "student"), load_policy(str(shelf.teacher), "teacher")
    share_vocabulary(student, teacher)
    return student, teacher


def prompts(policy: Policy, times: int = 1) -> list[list[int]]:
    ids = [conversation_ids(policy, [{"role": "user", "content": s}]) for s in SAYINGS]
    assert len({len(i) for i in ids}) > 1  # ragged, so that padding matters
    return [i for i in ids for _ in range(times)]


def write(law: SamplingPolicy, ids: list[list[int]], batch: int = 64, seed: int = 0) -> list[Written]:
    torch.manual_seed(seed)
    return generate(law, ids, MAX, batch)


def close(a: torch.Tensor, b: list[float]) -> bool:
    return torch.allclose(a, torch.tensor(b), rtol=1e-4, atol=2e-5)


def test_log_probs_are_the_models_own(shelf: Shelf) -> None:
    student, _ = policies(shelf)
    for tau in (1.0, 0.6, 2.0):
        ids = prompts(student, 4)
        for prompt, w in zip(ids, write(SamplingPolicy(((student, 1.0),), tau), ids), strict=True):
            assert len(w.ids) == len(w.logp)
            assert close(naive_logp(student, prompt, w.ids, tau), w.logp)


def test_greedy_takes_the_likeliest_and_reports_its_log_prob_at_one(shelf: Shelf) -> None:
    student, _ = policies(shelf)
    ids = prompts(student)
    for prompt, w in zip(ids, write(SamplingPolicy(((student, 1.0),), 0.0), ids), strict=True):
        rows = naive_logits(student, prompt + w.ids)[len(prompt) - 1 : -1]
        assert rows.argmax(-1).tolist() == w.ids
        assert close(naive_logp(student, prompt, w.ids), w.logp)


def test_a_batch_is_written_as_one_by_one(shelf: Shelf) -> None:
    student, _ = policies(shelf)
    law, ids = SamplingPolicy(((student, 1.0),), 0.0), prompts(student)
    together, alone = write(law, ids), write(law, ids, batch=1)
    assert [w.ids for w in together] == [w.ids for w in alone]
    for a, b in zip(together, alone, strict=True):
        assert close(torch.tensor(a.logp), b.logp)


def test_a_blend_is_a_mixture_of_probabilities(shelf: Shelf) -> None:
    student, teacher = policies(shelf)
    ids = prompts(student, 4)
    mixed = write(SamplingPolicy(((student, 0.8), (teacher, 0.2))), ids)
    for prompt, w in zip(ids, mixed, strict=True):
        p, q = (naive_logp(m, prompt, w.ids).double().exp() for m in (student, teacher))
        assert close((0.8 * p + 0.2 * q).log().float(), w.logp)
    # A token of the teacher's alone is written, too: where the student's share is far below the mixture's.
    shares = [naive_logp(student, p, w.ids) - torch.tensor(w.logp) for p, w in zip(ids, mixed, strict=True)]
    assert float(torch.cat(shares).min()) < -2


def test_a_blend_works_with_absolute_positions(shelf: Shelf, tmp_path: Path) -> None:
    """Padding on the left must not move the second writer's text, which a rotary model would not notice."""
    student, _ = policies(shelf)
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=112, n_positions=64, n_embd=16, n_layer=1, n_head=2, initializer_range=0.7, eos_token_id=2
    )
    other = load_policy(str(put(GPT2LMHeadModel(config).eval(), tmp_path / "gpt2")), "teacher")
    share_vocabulary(student, other)
    ids = prompts(student, 2)
    for first, second in ((student, other), (other, student)):
        for prompt, w in zip(ids, write(SamplingPolicy(((first, 0.5), (second, 0.5))), ids), strict=True):
            p, q = (naive_logp(m, prompt, w.ids).double().exp() for m in (student, other))
            assert close((0.5 * p + 0.5 * q).log().float(), w.logp)


def test_frequencies_follow_the_law(shelf: Shelf) -> None:
    """First tokens of 4,000 responses against the law itself, within five standard errors."""
    student, _ = policies(shelf)
    ids = prompts(student)[0]
    torch.manual_seed(5)
    first = torch.tensor([w.ids[0] for w in generate(SamplingPolicy(((student, 1.0),)), [ids] * 4000, 1, 4000)])
    p = naive_logits(student, ids)[-1].softmax(-1)
    share = torch.bincount(first, minlength=VOCABULARY) / 4000
    assert bool(((share - p).abs() < 5 * (p * (1 - p) / 4000).sqrt() + 1e-3).all())


def test_the_end_token_comes_once_and_limits_are_told(shelf: Shelf) -> None:
    student, _ = policies(shelf)
    with torch.no_grad():  # end tokens often enough
        student.model.lm_head.weight[2] *= 2
    written = write(SamplingPolicy(((student, 1.0),)), prompts(student, 16))
    for w in written:
        ended = w.ids[-1] == 2
        assert w.ids.count(2) == int(ended)
        assert w.truncated == (not ended)
        assert len(w.ids) == MAX or ended
    assert {w.truncated for w in written} == {True, False}


def test_generation_stops_at_each_of_several_end_tokens(shelf: Shelf) -> None:
    student, _ = policies(shelf)
    student.model.generation_config.eos_token_id = [2, 30]
    written = write(SamplingPolicy(((student, 1.0),)), prompts(student, 16))
    assert any(w.ids[-1] == 30 for w in written)
    assert all(30 not in w.ids[:-1] for w in written)


def test_padded_entries_are_never_written(shelf: Shelf) -> None:
    """Rows of the embedding that no text uses would win every draw if they were allowed."""
    student, teacher = policies(shelf)
    with torch.no_grad():
        for policy in (student, teacher):
            policy.model.lm_head.weight[VOCABULARY:] = 9 * policy.model.lm_head.weight[:1]
            policy.model.lm_head.weight[VOCABULARY + 1] *= -1
    for law in (
        SamplingPolicy(((student, 1.0),)),
        SamplingPolicy(((student, 1.0),), 0.0),
        SamplingPolicy(((student, 0.5), (teacher, 0.5))),
    ):
        ids = prompts(student, 8)
        for prompt, w in zip(ids, write(law, ids), strict=True):
            assert max(w.ids) < VOCABULARY
            if len(law.parts) == 1:
                assert close(naive_logp(student, prompt, w.ids), w.logp)


HOSTILE = {
    "temperature": 0.3,
    "top_k": 2,
    "top_p": 0.4,
    "min_p": 0.5,
    "typical_p": 0.3,
    "repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "bad_words_ids": [[17], [20]],
    "suppress_tokens": [40, 41],
    "begin_suppress_tokens": [2],
    "min_new_tokens": 6,
    "num_return_sequences": 2,
    "return_dict_in_generate": True,
    "output_scores": True,
    "exponential_decay_length_penalty": (2, 1.5),
    "do_sample": True,
}


def test_a_models_generation_config_is_ignored(shelf: Shelf) -> None:
    student, _ = policies(shelf)
    ids = prompts(student, 4)
    laws = [SamplingPolicy(((student, 1.0),)), SamplingPolicy(((student, 1.0),), 0.0)]
    plain = [write(law, ids) for law in laws]
    own = student.model.generation_config
    for key, value in HOSTILE.items():
        student.model.generation_config = GenerationConfig(
            **{"eos_token_id": 2, "pad_token_id": 0, "do_sample": True, key: value}
        )
        for law, expected in zip(laws, plain, strict=True):
            assert [w.ids for w in write(law, ids)] == [w.ids for w in expected], key
            assert [w.logp for w in write(law, ids)] == [w.logp for w in expected], key
        assert getattr(student.model.generation_config, key) == value  # and it is still the model's own afterwards
    student.model.generation_config = own


def test_gradient_checkpointing_does_not_change_what_is_written(shelf: Shelf) -> None:
    student, _ = policies(shelf)
    ids = prompts(student, 4)
    law = SamplingPolicy(((student, 1.0),))
    plain = write(law, ids)
    student.model.gradient_checkpointing_enable()
    student.model.train()
    assert write(law, ids) == plain
    assert student.model.training
