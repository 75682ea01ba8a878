"""On-policy distillation with other rollouts: more turns over time, rewritten or selected text, several teachers."""

from __future__ import annotations

import math

from ..axes import (
    Expr,
    all_wrong,
    clip,
    column,
    confidence_column,
    correct,
    debate,
    divergence_loss,
    draft,
    entropy_gate,
    expr,
    in_top,
    init,
    log_ratio,
    on,
    once,
    other,
    patch,
    refine,
    sample,
    select,
    solution,
    stairs,
    student,
    teacher,
    token_mean,
    turn_mean,
    where,
)
from ..errors import LimbeckError, number, whole
from ..math.composed import KLMix
from ..math.divergence import Divergence, as_divergence, fkl, rkl
from ..space.method import Method
from ..space.registry import method
from ..space.term import Sum, Term


@method(paper="arXiv:2604.24005", title="TCOD, from the front")
def tcod(start: int = 1, every: int = 2, clip_range: float = 0.2, group: int = 1) -> Method:
    r"""Temporal curriculum: the student plays only the first k turns, and k grows.

    .. math:: k(n)=k_0+\lfloor n/\eta\rfloor

    In long episodes a small student drifts off, and the turns after that give no useful signal. The signal is the
    sampled log-ratio to the teacher, and every turn counts equally (in the code each turn is an experience of its own).
    The paper prints the forward KL in one equation; the code and this implementation have the reverse.

    Args:
        start: k_0; 1 (paper).
        every: eta, steps per turn; 2 (paper; the ALFWorld script of the code has 6).
        clip_range: 0.2 (code).
        group: rollouts per prompt; 1 (ours).
    """
    source = sample(student, group, check=False, turns=stairs(start, every))
    return Method(source, Term(log_ratio(teacher), clip(clip_range)), turn_mean)


@method(paper="arXiv:2604.24005", title="TCOD, from the back")
def tcod_back(every: int = 5, turns: int = 30, clip_range: float = 0.2, group: int = 1) -> Method:
    r"""Temporal curriculum from the end: all but the last turns of a successful teacher episode are replayed.

    Of an episode of L turns, the first :math:`\max(0,(L-1)-\lfloor n/c\rfloor)` are played again without being scored,
    and the student plays the rest. Where the teacher failed, the student starts at the beginning (ours; the paper
    leaves such tasks out).

    Args:
        every: c, steps per turn; 5 (code).
        turns: limit of an episode; 30 (code).
        clip_range: 0.2 (code).
        group: rollouts per prompt; 1 (ours).
    """
    start = once(sample(teacher, turns=turns))
    source = sample(student, group, check=False, turns=turns, start=start, back=stairs(0, every))
    return Method(source, Term(log_ratio(teacher), clip(clip_range)), turn_mean)


@method(paper="arXiv:2605.16826", title="Decoupling KL: mixture and entropy gate", confidence="medium")
def decoupled_kl(
    lam: float = 0.5,
    student_prefix: bool = True,
    levels: tuple[int, ...] = (),
    floor: float = -math.inf,
    gate_every: int = 100,
    group: int = 1,
) -> Method:
    r"""A mixture of the two KLs on the student's or the teacher's text, with lengths that an entropy gate raises.

    .. math:: L = \lambda\,\mathrm{KL}(q\Vert p) + (1-\lambda)\,\mathrm{KL}(p\Vert q)

    Responses are cut at :math:`L_m`. At a gate the limit rises to the next level if the mean token entropy is at least
    ``floor``. The paper gives neither the levels, nor the floor, nor lambda: **sweep them**.

    Args:
        lam: lambda; 0.5 (ours). 1 is reverse KL, 0 forward KL.
        student_prefix: whether the student writes the text, else the teacher does; True (ours).
        levels: rising limits of a response in tokens; empty (ours) takes the run's ``max_tokens`` throughout.
        floor: H_min, nats; minus infinity (ours) raises the limit at every gate.
        gate_every: steps between gates; 100 (ours).
        group: rollouts per prompt; 1 (ours).
    """
    whole("gate_every of decoupled_kl", gate_every, 1)
    number("floor of decoupled_kl", floor, -math.inf, math.inf, ends=True)
    row = rkl if lam == 1 else fkl if lam == 0 else KLMix(lam)
    limit = entropy_gate(tuple(levels), floor, gate_every) if levels else None
    source = sample(student if student_prefix else teacher, group, check=False, max_tokens=limit)
    return Method(source, Term(teacher, divergence_loss(row)), token_mean)


@method(paper="arXiv:2606.08432", title="TRD", confidence="medium")
def trd(tau: float = 0.6) -> Method:
    r"""Trajectory-refined distillation: the teacher rewrites the student's draft, and the rewrite is distilled.

    .. math:: L = \frac1N\sum_{t\in y_r}
              \mathrm{KL}\big(\pi_T(\cdot|x,y_o,y_{r,<t})\,\Vert\,\pi_\theta(\cdot|x,y_{r,<t})\big)

    Drafts and rewrites are written once. The teacher scores the rewrite with the draft in its context, as it wrote it.
    This follows the released code; we did not read the equations of the paper.

    Args:
        tau: temperature of draft and rewrite; 0.6 (code, which also samples with top-p 0.95 and top-k 20; ours does
            not).
    """
    drafts = sample(student, check=False, tau=tau)
    return Method(
        once(refine(drafts, teacher.given(draft), tau=tau)),
        Term(teacher.given(draft), divergence_loss(fkl)),
        token_mean,
    )


@method(paper="arXiv:2606.08432", title="TRD, own rewrite", confidence="medium")
def trd_self(tau: float = 0.6, show_draft: bool = True) -> Method:
    r"""TRD without a teacher: the initial student rewrites the student's draft and sees the reference solution.

    .. math:: L = \frac1N\sum_{t\in y_r}
              \mathrm{KL}\big(\pi_0(\cdot|x,y^*,y_o,y_{r,<t})\,\Vert\,\pi_\theta(\cdot|x,y_{r,<t})\big)

    Args:
        tau: temperature of draft and rewrite; 0.6 (code).
        show_draft: whether the draft is shown in addition to the solution; True (``use_initial_response`` of the code).
    """
    editor = init.given(solution, draft) if show_draft else init.given(solution)
    return Method(
        once(refine(sample(student, check=False, tau=tau), editor, tau=tau)),
        Term(editor, divergence_loss(fkl)),
        token_mean,
    )


@method(paper="arXiv:2605.09725", title="BRTS", confidence="medium")
def brts(lam: float = 10.0, n: int = 4, top_k: int = 16, group: int = 2, tau: float = 0.7) -> Method:
    r"""On-policy distillation plus the best of N teacher rollouts: the correct one that is most similar to the student.

    .. math:: L = \mathrm{KL}_k(q\Vert p)\big|_{y\sim\pi_\theta} + \lambda\,\mathrm{KL}_k(p\Vert q)\big|_{y'}

    y' is the teacher's rollout that is correct and, among the correct ones, has the largest share of tokens in the
    student's top k. Where none is correct, the teacher writes further ones and sees the reference solution; where those
    fail too, the most similar one is taken. The first KL is over the student's k entries, normalised within them, which
    is **biased**, as in the paper. The released repository has the second part off and other weights; this is the
    equation of the paper.

    Args:
        lam: lambda; 10 (paper).
        n: teacher rollouts per prompt; 4 (the best in the paper).
        top_k: k; 16 (paper).
        group: student rollouts per prompt; 2 (code).
        tau: temperature of the teacher's sampling; 0.7 (code).
    """
    number("lam of brts", lam, 0, ends=True)
    shown = sample(teacher.given(solution), n, tau=tau)
    best = select(
        patch(sample(teacher, n, tau=tau), shown, all_wrong),
        correct,
        in_top(top_k, student).over("sequence", "mean"),
    )
    own = Term(teacher, divergence_loss(rkl, top_k=top_k, by="student", tail=False), on("own"))
    if lam == 0:
        return Method({"own": sample(student, group, check=False)}, own, token_mean)
    chosen = Term(teacher, divergence_loss(fkl, top_k=top_k), on("teacher"))
    return Method({"own": sample(student, group, check=False), "teacher": best}, own + lam * chosen, token_mean)


@method(paper="arXiv:2605.01347", title="MAD-OPD")
def mad_opd(
    teachers: tuple[str, ...] = ("first", "second"),
    rounds: int = 2,
    tau: float = 1.0,
    divergence: Divergence | str = "jsd(0.5)",
    group: int = 1,
) -> Method:
    r"""Several teachers debate, then score the student's tokens and see the transcript; weights are by confidence.

    .. math:: L = \frac1N\sum_t\sum_k w_k\,D\big(p_{k}(\cdot|x,H,y_{<t}), q_t\big),\quad
              w = \mathrm{softmax}\Big(\frac{\mathrm{conf}}{100\,\tau}\Big)

    Where a confidence is not stated, the weights are uniform. Name the models with ``--set others.first=PATH``. OPAD
    (step-level sampling) is a setting of the data: ``--set task_options.per_turn=true`` cuts the trajectories of a file
    into one prompt per turn, after the earlier turns of the data. (The code keeps the turns of a trajectory together in
    a batch; we shuffle them, which does not change the expected gradient.)

    Args:
        teachers: names of the models; ``first`` and ``second`` (ours).
        rounds: R; 2 (code). 0 means no debate.
        tau: temperature of the weights; 1 (code).
        divergence: ``jsd(0.5)`` (paper, agentic; reverse KL for code).
        group: rollouts per prompt; 1 (ours).
    """
    number("tau of mad_opd", tau, 0)
    whole("rounds of mad_opd", rounds, 0)
    number("rounds of mad_opd", rounds, 0, 20, ends=True)  # ours: in every round, each teacher writes a text
    whole("the number of teachers of mad_opd", len(teachers), 1)
    for name in teachers:
        if not (isinstance(name, str) and name.isidentifier()) or teachers.count(name) > 1:
            raise LimbeckError(f"teachers={teachers}: {name!r} is no distinct name; give words such as first, second.")
    transcript = debate(tuple(teachers), rounds) if rounds else None
    views = [other(name).given(transcript) if transcript else other(name) for name in teachers]
    weights = _by_confidence(tuple(teachers), rounds, tau)
    pull = divergence_loss(as_divergence(divergence))
    terms = (Term(view, pull, weight=weight) for view, weight in zip(views, weights, strict=True))
    return Method(sample(student, group, check=False), sum(terms, Sum(())), token_mean)


def _by_confidence(teachers: tuple[str, ...], rounds: int, tau: float) -> list[Expr]:
    """The softmax of the stated confidences; uniform where one is missing."""
    uniform = 1.0 / len(teachers)
    if not rounds:
        return [expr(uniform) for _ in teachers]
    stated = [column(confidence_column(name, rounds)) for name in teachers]
    known = stated[0].eq(stated[0])  # NaN is not equal to itself
    for s in stated[1:]:
        known = known & s.eq(s)
    return [where(known, _share(k, stated, tau), uniform) for k in range(len(stated))]


def _share(k: int, stated: list[Expr], tau: float) -> Expr:
    """The k-th of softmax(stated / 100 tau), from differences, so that an overflow only gives a share of 0."""
    inverse = expr(1.0)
    for j, s in enumerate(stated):
        if j != k:
            inverse = inverse + ((s - stated[k]) / (100.0 * tau)).exp()
    return 1.0 / inverse
