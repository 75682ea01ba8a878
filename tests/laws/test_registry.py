"""Laws that hold for every method of the registry and its variants.

A method added to the registry inherits all of them.
"""

from __future__ import annotations

import copy
import importlib
import re
import threading
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import limbeck as lb
from laws.cases import BATCH, CONFIDENCE, LENGTH, PER_TOKEN, VARIANTS, VOCABULARY, WIDTH, Case, changed, make
from limbeck.axes import column
from limbeck.axes.choice import Chosen, Draw
from limbeck.axes.expression import Over
from limbeck.axes.surrogate import Question
from limbeck.kernels import tiles
from limbeck.loss.terms import Prepared, loss
from limbeck.math.statistic import Entropy, LogProb
from limbeck.space.explain import denominators
from limbeck.space.method import Method
from limbeck.space.registry import REGISTRY
from limbeck.space.term import Sum
from limbeck.types import Dense, Head

core = importlib.import_module("limbeck.loss.terms")  # the attribute of that name is the function
EVERY = pytest.mark.parametrize("m", VARIANTS.values(), ids=VARIANTS)
CLOCKS = pytest.mark.parametrize("off_policy", [False, True], ids=["on-policy", "off-policy"])
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, **CLOSE)


def through(m: Method, prepared: Prepared, logits: Tensor, **how: int) -> tuple[Tensor, Tensor]:
    """Loss and gradient of a (micro-)batch with respect to its rows of logits."""
    leaf = logits.detach().clone().requires_grad_()
    value = loss(m, prepared, Dense(leaf), **how).loss
    return value.detach(), torch.autograd.grad(value, leaf)[0]


# ---------------------------------------------------------------- how a batch is cut


@EVERY
@CLOCKS
def test_micro_batches_add_up_to_the_whole(m: Method, off_policy: bool) -> None:
    """Also with batch-wide weights and gates. A group is never cut: ``tokens=1`` gives one each."""
    m, prepared, live = make(off_policy=off_policy).prepared(m)
    whole, whole_grad = through(m, prepared, live.logits_NV)
    for tokens, count in ((1, 4), (14, 3)):
        micros = list(prepared.micros(tokens))
        assert len(micros) == count
        rows = live.logits_NV.split([x.record.n_tokens for x in micros])
        parts = [through(m, x, z) for x, z in zip(micros, rows, strict=True)]
        same(torch.stack([v for v, _ in parts]).sum(), whole)
        same(torch.cat([g for _, g in parts]), whole_grad)


@EVERY
@CLOCKS
def test_plain_tensors_and_records_agree(m: Method, off_policy: bool) -> None:
    """``lb.objective`` gives the same numbers as the records of the engine."""
    case = make(off_policy=off_policy)
    value, grad = case.value_and_grad(m)
    aliased, prepared, live = case.prepared(m)
    got, got_grad = through(aliased, prepared, live.logits_NV)
    same(got, value)
    same(got_grad, case.rows(grad))


@EVERY
@CLOCKS
def test_separable_way_equals_general_way(m: Method, off_policy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which way is derived from the value; both give the same numbers."""
    case = make(off_policy=off_policy)
    value, grad = case.value_and_grad(m)
    monkeypatch.setattr(Method, "separable", property(lambda self: False))
    monkeypatch.setattr(core, "fused", None)
    general, general_grad = case.value_and_grad(m)
    same(general, value)
    same(general_grad, grad)


@EVERY
def test_tile_size_changes_nothing(m: Method) -> None:
    """Tiles bound the memory only: loss and gradient are the same for every tile size."""
    m, prepared, live = make().prepared(m)
    value, grad = through(m, prepared, live.logits_NV, tile=1000)
    for tile in (1, 3):
        got, got_grad = through(m, prepared, live.logits_NV, tile=tile)
        same(got, value)
        same(got_grad, grad)


HEADS = {
    "weight": {},
    "bias and scale": {"bias_V": torch.linspace(-1, 1, VOCABULARY, dtype=torch.float64), "scale": 0.5},
    "softcap": {"softcap": 2.0},
}


@EVERY
def test_hidden_states_with_a_head_equal_dense_logits(m: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """One loss core for every carrier, gradient through the head too, in tiles of three rows."""
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", 3 * VOCABULARY)
    for head in HEADS:
        _hidden_equals_dense(m, head)


def _hidden_equals_dense(m: Method, head: str) -> None:
    gen = torch.Generator().manual_seed(5)
    hidden = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64, generator=gen).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, generator=gen).requires_grad_()
    case = make()
    h = Head(weight, **HEADS[head])
    args = case.arguments(m)
    z = hidden @ weight.T
    z = z if h.bias_V is None else z + h.bias_V
    z = z * h.scale
    z = z if h.softcap is None else h.softcap * torch.tanh(z / h.softcap)
    dense = lb.objective(m)(z, case.tokens, case.mask, **args).loss
    want = torch.autograd.grad(dense, [hidden, weight])
    got_loss = lb.objective(m)(tokens=case.tokens, mask=case.mask, student_hidden=hidden, student_head=h, **args).loss
    got = torch.autograd.grad(got_loss, [hidden, weight])
    same(got_loss, dense)
    for a, b in zip(got, want, strict=True):
        same(a, b)


@EVERY
def test_readers_may_come_as_hidden_states(m: Method) -> None:
    """Teacher targets as dense logits or as hidden states with a head."""
    case = make()
    gen = torch.Generator().manual_seed(6)
    args = case.arguments(m)
    want, got = dict(args), dict(args)
    for key in [k for k in args if k.endswith("_logits")]:
        hidden = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64, generator=gen)
        weight = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, generator=gen)
        role = key.removesuffix("_logits")
        want[key] = hidden @ weight.T
        got = {k: v for k, v in got.items() if k != key} | {f"{role}_hidden": hidden, f"{role}_head": weight}
    objective = lb.objective(m)
    same(
        objective(case.logits, case.tokens, case.mask, **got).loss,
        objective(case.logits, case.tokens, case.mask, **want).loss,
    )


def sharded(m: Method, case: Case) -> Tensor:
    """The sum of two processes' losses, each with half of the groups, whose ``all_sum`` adds over both."""
    barrier, slots, results = threading.Barrier(2), [None, None], [None, None]

    def run(rank: int) -> None:
        def all_sum(x: Tensor) -> Tensor:
            slots[rank] = x
            barrier.wait(20)
            total = slots[0] + slots[1]
            barrier.wait(20)
            return total

        half = slice(0, BATCH // 2) if rank == 0 else slice(BATCH // 2, BATCH)
        args = case.arguments(m)
        cut = {k: v[half] for k, v in args.items() if k not in ("step", "columns")}
        cut["columns"] = {k: v[half] for k, v in args["columns"].items()}
        try:
            results[rank] = lb.objective(m)(
                case.logits[half], case.tokens[half], case.mask[half], step=3, all_sum=all_sum, **cut
            ).loss
        except BaseException as e:
            results[rank] = e
            barrier.abort()

    threads = [threading.Thread(target=run, args=(r,)) for r in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for r in results:
        if isinstance(r, BaseException):
            raise r
    return results[0] + results[1]


def looks(m: Method, *kinds: type) -> bool:
    """Whether an expression of the method holds such a node."""
    nodes = [node for _, term in m.parts for v in term.exprs for node in v.walk()]
    return any(isinstance(n, kinds) for n in nodes)


CHOOSING = {k: m for k, m in VARIANTS.items() if looks(m, Chosen)}
"""They rank a process's own tokens (``axes/choice.py``), because ranks over processes are no sum."""
GLOBAL = {k: m for k, m in VARIANTS.items() if k not in CHOOSING}
DRAWING = {k: m for k, m in VARIANTS.items() if looks(m, Draw)}
"""Their random numbers are seeded by the text, in its order."""
ORDERLESS = {k: m for k, m in VARIANTS.items() if k not in DRAWING}
WITHOUT_LUCK = pytest.mark.parametrize("m", ORDERLESS.values(), ids=ORDERLESS)


@pytest.mark.parametrize("m", GLOBAL.values(), ids=GLOBAL)
def test_processes_add_up_to_the_whole(m: Method) -> None:
    """Z and batch-wide statistics are global, summed over ranks."""
    case = make()
    same(sharded(m, case), case.loss(m))


def _chosen_in(half: slice, m: Method, case: Case) -> Tensor:
    """The loss of the whole batch when only tokens of one half may be chosen."""
    ((coefficient, term),) = m.parts
    assert isinstance(term.where, Chosen)
    assert term.where.among is None
    inside = torch.zeros(BATCH, dtype=torch.float64)
    inside[half] = 1.0
    where = replace(term.where, among=column("half") > 0.0)
    args = case.arguments(m)
    args["columns"] = {**args["columns"], "half": inside}
    own = replace(m, terms=Sum(((coefficient, replace(term, where=where)),)))
    return lb.objective(own)(case.logits, case.tokens, case.mask, **args).loss


@pytest.mark.parametrize("m", CHOOSING.values(), ids=CHOOSING)
def test_each_process_chooses_among_its_own_tokens(m: Method) -> None:
    """The share is taken of each process's tokens; the denominator counts what all of them chose."""
    case = make()
    fraction = next(v.fraction for v in m.parts[0][1].where.walk() if isinstance(v, Chosen))
    among = case.mask & case.given["correct"][:, None] if m == VARIANTS["drawn among the correct"] else case.mask
    total = weighted = 0.0
    for half in (slice(0, BATCH // 2), slice(BATCH // 2, BATCH)):
        args = {k: v[half] for k, v in case.arguments(m).items() if isinstance(v, Tensor)}
        args["columns"] = {k: v[half] for k, v in case.arguments(m)["columns"].items()}
        chosen = max(1, int(fraction * int(among[half].sum())))
        if any(isinstance(v, Over) and v.how in ("min", "max") for v in m.parts[0][1].where.walk()):
            alone = _chosen_in(half, m, case)  # the least and the greatest are those of the whole batch
        else:
            alone = lb.objective(m)(case.logits[half], case.tokens[half], case.mask[half], step=3, **args).loss
        total, weighted = total + chosen, weighted + chosen * alone
    same(sharded(m, case), weighted / total)


@WITHOUT_LUCK
def test_order_of_sequences_and_groups_changes_nothing(m: Method) -> None:
    """Groups move as wholes and members inside them; the loss stays."""
    case = make()
    order = torch.tensor([5, 4, 2, 3, 7, 6, 1, 0])
    args = case.arguments(m)
    moved = {k: v if k == "step" else [v[int(i)] for i in order] if k == "source" else v for k, v in args.items()}
    for k, v in moved.items():
        if isinstance(v, Tensor):
            moved[k] = v[order]
    moved["columns"] = {k: v[order] for k, v in args["columns"].items()}
    got = lb.objective(m)(case.logits[order], case.tokens[order], case.mask[order], **moved).loss
    same(got, case.loss(m))


# ---------------------------------------------------------------- what gradient may touch


@EVERY
@CLOCKS
def test_masked_tokens_touch_nothing(m: Method, off_policy: bool) -> None:
    """Masks select rows before any arithmetic, so a NaN there reaches neither loss nor gradient."""
    case = make(off_policy=off_policy)
    value, grad = case.value_and_grad(m)
    hidden = ~case.mask
    for poison in (torch.nan, torch.inf, -torch.inf):
        bad = {k: v.clone() for k, v in case.given.items() if k.endswith(("_logits", "_logp")) or k in PER_TOKEN}
        for x in bad.values():
            x[hidden] = poison
        logits, tokens = case.logits.detach().clone(), case.tokens.clone()
        logits[hidden], tokens[hidden] = poison, -100
        got, got_grad = changed(case, logits=logits, tokens=tokens, **bad).value_and_grad(m)
        same(got, value)
        same(got_grad, grad)
        assert (got_grad[hidden] == 0).all()


@EVERY
@CLOCKS
def test_only_the_student_gets_gradient(m: Method, off_policy: bool) -> None:
    """Teacher, reference, old, writer, rewards, labels and columns are detached."""
    case = make(off_policy=off_policy)
    leaves = {k: v.clone().requires_grad_() for k, v in case.given.items() if v.is_floating_point()}
    changed(case, logits=case.logits.requires_grad_(), **leaves).loss(m).backward()
    assert case.logits.grad is not None
    assert [k for k, v in leaves.items() if v.grad is not None] == []


@EVERY
def test_loss_sees_only_log_probs(m: Method) -> None:
    """A constant added to every row of logits changes nothing: of the student, and of each reader."""
    case = make()
    shift = torch.linspace(-5, 5, BATCH * LENGTH, dtype=torch.float64).view(BATCH, LENGTH, 1)
    value, grad = case.value_and_grad(m)
    given = {k: v + shift.flip(0) for k, v in case.given.items() if k.endswith("_logits")}
    got, got_grad = changed(case, logits=case.logits.detach() + shift, **given).value_and_grad(m)
    same(got, value)
    same(got_grad, grad)


@EVERY
def test_padded_vocabulary_counts_nothing(m: Method) -> None:
    """Entries that both sides exclude (-inf) leave the loss of the smaller vocabulary."""
    case = make()
    value, grad = case.value_and_grad(m)

    def pad(z: Tensor) -> Tensor:
        return torch.cat([z.detach(), torch.full((*z.shape[:-1], 2), -torch.inf, dtype=z.dtype)], dim=-1)

    given = {k: pad(v) for k, v in case.given.items() if k.endswith("_logits")}
    got, got_grad = changed(case, logits=pad(case.logits), **given).value_and_grad(m)
    same(got, value)
    same(got_grad[..., :VOCABULARY], grad)
    assert (got_grad[..., VOCABULARY:] == 0).all()


# ---------------------------------------------------------------- edges


def _first(case: Case) -> Tensor:
    return case.mask & (torch.arange(LENGTH) == 0)


def _rows(case: Case) -> Tensor:
    return torch.arange(BATCH)[:, None].expand_as(case.mask)


ONES = torch.ones(BATCH, dtype=torch.float64)
EDGES = {
    "all correct": lambda c: changed(c, correct=ONES.bool(), reward=ONES),
    "all wrong": lambda c: changed(c, correct=~ONES.bool(), reward=0 * ONES),
    "one token": lambda c: changed(c, mask=_first(c)),
    "group of one": lambda c: changed(c, group=torch.arange(BATCH)),
    "an empty sequence": lambda c: changed(c, mask=c.mask & (_rows(c) != 1)),
    "an empty group": lambda c: changed(c, mask=c.mask & (_rows(c) > 1)),
    "empty mask": lambda c: changed(c, mask=c.mask & False),
    "constant columns": lambda c: changed(c, told=0 * ONES, heft=torch.zeros(BATCH, LENGTH).double()),
    "teacher = student": lambda c: changed(c, **{k: c.logits.clone() for k in c.given if k.endswith("_logits")}),
    "no context": lambda c: changed(c, **{k: ~ONES.bool() for k in c.given if k.startswith("has ")}),
    "nobody is sure": lambda c: changed(c, **dict.fromkeys(CONFIDENCE, ONES * torch.nan)),
    "one turn": lambda c: changed(c, turn=torch.zeros(BATCH, LENGTH, dtype=torch.int64)),
}


@EVERY
@pytest.mark.parametrize("edge", EDGES)
def test_finite_at_the_edges(m: Method, edge: str) -> None:
    """0/0 on all-correct, all-wrong, empty. An empty mask gives exactly 0."""
    for off_policy in (False, True):
        if edge == "group of one" and "label" in m.fields:  # a preference needs two
            with pytest.raises(lb.LimbeckError, match="label belongs to a group of one at sequence 0"):
                EDGES[edge](make(off_policy=off_policy)).value_and_grad(m)
            continue
        value, grad = EDGES[edge](make(off_policy=off_policy)).value_and_grad(m)
        assert value.isfinite()
        assert grad.isfinite().all()
        if edge == "empty mask":
            assert value == 0
            assert (grad == 0).all()


@WITHOUT_LUCK
def test_empty_sequences_leave_the_means_alone(m: Method) -> None:
    """Limbeck's sequence mean is over sequences with a kept token. Losing a whole group of empty
    sequences is then the same as never having had it."""
    case = make()
    kept = torch.arange(BATCH) >= 2
    args = case.arguments(m)
    cut = {k: v[kept] for k, v in args.items() if isinstance(v, Tensor)}
    cut["columns"] = {k: v[kept] for k, v in args["columns"].items()}
    if "source" in args:
        cut["source"] = args["source"][2:]
    without = lb.objective(m)(case.logits[kept], case.tokens[kept], case.mask[kept], step=3, **cut).loss
    same(changed(case, mask=case.mask & kept[:, None]).loss(m), without)


UNBOUNDED = ("alpha(2)", "alpha(-1)", "chi2", "neyman_chi2", "ρ·k3")
"""Infinite themselves where one law has no mass (k3's gradient is not, but the one that rho lends it is)."""

BOUNDED = {k: m for k, m in VARIANTS.items() if not any(name in str(m.terms) for name in UNBOUNDED)}


@pytest.mark.parametrize("m", BOUNDED.values(), ids=BOUNDED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_extreme_half_precision_logits_are_finite(m: Method, dtype: torch.dtype) -> None:
    """Logits of ±1e4 in the dtype of a model."""
    case = make()
    gen = torch.Generator().manual_seed(9)
    z = [1e4 * torch.randn(BATCH, LENGTH, VOCABULARY, generator=gen).sign() for _ in range(3)]
    slots = [k for k in case.given if k.endswith("_logits")]
    given = {k: z[1 + i % 2].to(dtype) for i, k in enumerate(slots)}
    case = changed(replace(case, off_policy=False), logits=z[0].to(dtype), **given)
    value, grad = case.value_and_grad(m)
    assert value.isfinite()
    assert grad.isfinite().all()
    assert grad.dtype == dtype


def test_doubles_stay_double_without_a_reward() -> None:
    """Constants and shares take the precision of the student, also where no float64 record field is given."""
    case = make()
    args = {"teacher_logits": case.given["teacher_logits"]}
    got = lb.objective(lb.methods.opd(coef=0.3))(case.logits, case.tokens, case.mask, **args).loss
    unit = lb.objective(lb.methods.opd())(case.logits, case.tokens, case.mask, **args).loss
    same(got, 0.3 * unit)


@CLOCKS
def test_data_needs_no_sampling_log_probs(off_policy: bool) -> None:
    """``rollout_logp`` is NaN for data. MiniLLM's language-modelling rows leave it alone."""
    case, m = make(off_policy=off_policy), lb.methods.minillm()
    data = torch.tensor([s == "lm" for s in case.arguments(m)["source"]])
    unknown = case.given["rollout_logp"].masked_fill(data[:, None], torch.nan)
    value, grad = changed(case, rollout_logp=unknown).value_and_grad(m)
    want, want_grad = case.value_and_grad(m)
    same(value, want)
    same(grad, want_grad)


@EVERY
def test_what_is_observed_is_what_was_asked(m: Method) -> None:
    """``observe``: statistics of every token, also where a term asks the same question, both ways through."""
    m, prepared, live = make().prepared(m)
    logq = live.logits_NV.log_softmax(-1)
    sampled_logp = logq.gather(-1, prepared.record.token_N[:, None])[:, 0]
    seen = loss(m, prepared, live, observe=[Question(LogProb()), Question(Entropy())], tile=2).observed
    same(seen[0], sampled_logp)
    same(seen[1], -(logq.exp() * logq).sum(-1))


# ---------------------------------------------------------------- values


@EVERY
def test_values_compare_and_hash_by_structure(m: Method) -> None:
    """Values are frozen and compared by structure."""
    twin = copy.deepcopy(m)
    assert m == twin
    assert hash(m) == hash(twin)
    assert m != replace(m, updates=m.updates + 1)


def test_different_variants_are_different_values() -> None:
    """No argument of a method is ignored: every variant is a different value."""
    assert len(set(VARIANTS.values())) == len(VARIANTS)


@pytest.mark.parametrize("name", REGISTRY)
def test_a_recipe_builds_the_same_value_twice(name: str) -> None:
    """And knows its name, title and paper."""
    recipe = REGISTRY[name]
    assert recipe() == recipe()
    assert len({recipe(), recipe()}) == 1
    assert (recipe().name, recipe().title, recipe().paper) == (name, recipe.title, recipe.paper)


UNPUBLISHED = {"sft"}


@pytest.mark.parametrize("name", REGISTRY)
def test_docstring_tells_every_argument(name: str) -> None:
    """A method's page is generated from its docstring, title and paper."""
    recipe = REGISTRY[name]
    told = recipe.doc.partition("Args:")[2].replace("\n", " ")
    documented = {w.strip() for line in told.split(":") for w in line.replace(".", " ").replace(",", " ").split()}
    assert [a for a in recipe.arguments if a not in documented] == []
    assert "math:" in recipe.doc
    assert recipe.title
    assert (name in UNPUBLISHED) == (not recipe.paper)
    assert recipe.confidence in ("high", "medium", "low")


COEFFICIENTS = {
    "kdrl": ("coef", "teacher", [0, 0.0, "0"]),
    "kdrl_shaping": ("coef", "teacher", [0, 0.0, "0"]),
    "kdrl_reward": ("coef", "teacher", [0, 0.0, "0"]),
    "grpo": ("ref_coef", "ref", [0, 0.0, "0"]),
    "kd": ("weight", "teacher", [0, 0.0]),
    "sod": ("coef", "teacher", [0, 0.0]),
    "sdpo_hybrid": ("share", "ema(0.05)", [0, 0.0]),
    "skill_sd": ("lam", "synced(1)", [0, 0.0]),
    "tt_opd": ("lam", "ema(0.005, every 5, reset 30)", [0, 0.0]),
    "opsd_rl": ("beta", "student", [0, 0.0]),
}


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_a_zero_coefficient_removes_the_needs(name: str) -> None:
    """A constant 0 removes the term and its needs."""
    argument, role, zeros = COEFFICIENTS[name]
    assert role in REGISTRY[name]().roles
    for zero in zeros:
        assert role not in REGISTRY[name](**{argument: zero}).roles


def test_minillm_without_lm_needs_no_second_data_set() -> None:
    """The third term is language modelling on a second data set."""
    assert set(lb.methods.minillm().sources) == {"roll", "lm"}
    assert set(lb.methods.minillm(lm_coef=0).sources) == {"roll"}


def test_minillm_without_mixing_needs_no_text_from_the_teacher() -> None:
    """With alpha = 0 the teacher has weight 0 in the mixture, so it samples nothing."""
    assert lb.methods.minillm(mix=0).roles["teacher"] == {"dense", "sampled"}


# ---------------------------------------------------------------- explain


@EVERY
def test_explain_names_every_reader_and_denominator(m: Method) -> None:
    """``explain`` prints Z_1, Z_2 ..., what is read from whom, and how it is computed."""
    text = lb.explain(m)
    assert all(f"denominator {i + 1}" in text for i in range(len(m.parts)))
    reads = lb.explain(m).partition("reads")[2]
    assert all(f"{role}: {', '.join(sorted(abilities))}" in reads for role, abilities in m.roles.items())
    assert bool(re.search(r"computed +in one pass", text)) == m.separable
    supports = [s for _, t in m.parts if (s := getattr(t.surrogate, "support", None))]
    within = any(not s.tail for s in supports)
    assert ("normalised within the top-k, no bound" in text) == within
    assert ("biased low" in text) == (not within and any(s.tail for s in supports))
    if m.name:
        assert m.name in text
        assert m.title in text
    assert lb.diff(m, m) == []


@EVERY
def test_denominators_coincide_where_explain_says_so(m: Method) -> None:
    """Two terms share a denominator iff (reduction, per, what per looks at) are equal."""
    case = make()
    fewer = changed(case, mask=case.mask & (_rows(case) != 5))  # what agrees by chance agrees on one batch only
    totals = [[part.total for part in c.prepared(m)[1].parts] for c in (case, fewer)]
    told = denominators(m)
    for i, a in enumerate(zip(*totals, strict=True)):
        for j, b in enumerate(zip(*totals, strict=True)):
            if i != j:
                assert (f"term {j + 1}" in told[i]) == (a == b), told


def test_two_methods_differ_in_the_axes_they_differ_in() -> None:
    """``limbeck diff``."""
    lines = {axis for axis, _, _ in lb.diff(lb.methods.gkd(divergence="rkl"), lb.methods.opd_full())}
    assert lines == {"source"}
