"""Self-distillation: the teacher is the student (now, before or averaged), with text that the student does not see."""

from __future__ import annotations

from ..axes import (
    Context,
    behavior,
    blend,
    clip,
    confidence,
    correct,
    divergence,
    divergence_loss,
    ema,
    feedback,
    group_advantage,
    has,
    importance,
    init,
    log_ratio,
    logp,
    mean_one,
    old,
    on,
    outcome_hint,
    own_reply,
    recast,
    reinforce,
    sample,
    sampled,
    score,
    sequence_mean,
    sequence_sum,
    sibling_or_feedback,
    skill,
    solution,
    student,
    summarised_by,
    synced,
    to_go,
    token_mean,
    turn,
    verdict_phrase,
    where,
)
from ..axes.context import as_context
from ..errors import LimbeckError, number
from ..math.composed import EntryClip
from ..math.divergence import Divergence, as_divergence, rkl, soft_ce
from ..space.method import Method
from ..space.registry import method
from ..space.term import Term, nll, routed


@method(paper="arXiv:2601.18734", title="OPSD", confidence="medium")
def opsd(
    divergence: Divergence | str = "fkl",
    token_clip: float | None = None,
    entry_clip: float | None = None,
    context: Context | str = solution,
    group: int = 1,
) -> Method:
    r"""On-policy self-distillation: the teacher is the initial student, which sees the reference solution.

    .. math:: L = \frac1B\sum_b\frac1{|y|}\sum_t D\big(\pi_0(\cdot|x,c,y_{<t}),\,\pi_\theta(\cdot|x,y_{<t})\big)

    There are two clips. ``entry_clip`` is that of the paper (v3), which clips the share of each vocabulary entry before
    the sum. Its cap is given as 0.05, 1e-6 and 1e-7 in different places, so there is no default, and the literal clip
    **can raise** the divergence (see ``EntryClip``). ``token_clip`` clips the divergence of a token, which gives no
    gradient above the cap and never reverses its sign.

    Args:
        divergence: ``fkl`` (paper); the released scripts have ``jsd(0.5)``.
        token_clip: cap in nats; None (ours). The port in TRD has 0.1.
        entry_clip: cap in nats; None (ours).
        context: the text that the teacher sees; the reference solution (paper). ``step_feedback`` gives Feedback
            Alignment (arXiv:2606.11173).
        group: rollouts per prompt; 1 (paper).
    """
    row = as_divergence(divergence)
    row = row if entry_clip is None else EntryClip(row, entry_clip)
    return Method(
        sample(student, group, check=False),
        Term(init.given(as_context(context)), divergence_loss(row, cap=token_clip)),
        sequence_mean,
    )


@method(paper="arXiv:2601.18734", title="OPSD, sampled token")
def opsd_sampled(context: Context | str = solution, group: int = 1) -> Method:
    r"""OPSD from the log-probs of the sampled tokens alone, by REINFORCE (code).

    .. math:: L = -\frac1N\sum_t \mathrm{sg}\big[\log\pi_0(y_t|x,c,y_{<t}) - \log\pi_\theta(y_t|x,y_{<t})\big]
              \log\pi_\theta(y_t|x,y_{<t})

    Args:
        context: the text that the teacher sees; the reference solution (paper).
        group: rollouts per prompt; 1 (paper).
    """
    signal = log_ratio(init.given(as_context(context)), student)
    return Method(sample(student, group, check=False), Term(signal, reinforce), token_mean)


def _distilled(divergence: Divergence | str, rate: float, top_k: int | None, cap: float) -> tuple[Term, Context]:
    """The term of SDPO: a divergence to the averaged student that sees feedback, on top entries and a tail."""
    view = ema(rate).given(sibling_or_feedback)
    surrogate = divergence_loss(as_divergence(divergence), top_k=top_k, by="student")
    weight = importance(student, old, cap) * importance(old, behavior, cap)
    return Term(view, surrogate, has(sibling_or_feedback), weight), sibling_or_feedback


@method(paper="arXiv:2601.20802", title="SDPO")
def sdpo(
    divergence: Divergence | str = "jsd(0.5)",
    rate: float = 0.05,
    top_k: int | None = 100,
    is_cap: float = 2.0,
    group: int = 8,
) -> Method:
    r"""Self-distillation policy optimisation: the teacher is an average of the student that sees a correct sibling.

    .. math:: L = \frac{\sum_i z_i\sum_t \omega_t D(p_{i,t}, q_{i,t})}{\sum_i z_i |y_i|}

    Without a correct sibling, the teacher sees feedback. :math:`z_i` is 1 where there is one of them; other samples are
    in neither sum. :math:`\omega` is the product of the importance weights to the old student and to the behaviour
    policy, each capped. D is over the student's top entries and a tail.

    Args:
        divergence: ``jsd(0.5)`` (code); ``fkl`` and ``rkl`` are its alpha = 0 and 1.
        rate: of the moving average; 0.05 (code; 0.01 for code tasks).
        top_k: 100 (code); None takes the full vocabulary.
        is_cap: cap of each importance weight; 2 (code).
        group: rollouts per prompt; 8 (code).
    """
    return Method(sample(student, group), _distilled(divergence, rate, top_k, is_cap)[0], token_mean)


@method(paper="arXiv:2601.20802", title="SDPO, trust region")
def sdpo_trust_region(
    mix: float = 0.05, divergence: Divergence | str = "jsd(0.5)", top_k: int | None = 100, group: int = 8
) -> Method:
    r"""SDPO with a teacher between the initial and the present student in logits, both of which see the context.

    .. math:: p_t = \mathrm{softmax}\big((1-m)\,z_0(x,c,y_{<t}) + m\,z_\theta(x,c,y_{<t})\big)

    Args:
        mix: share of the student; 0.05 (ours, after the rate of the moving average).
        divergence, top_k, group: as in ``sdpo``.
    """
    number("mix of sdpo_trust_region", mix, 0, 1, ends=True)
    c = sibling_or_feedback
    target = blend((init.given(c), 1.0 - mix), (student.given(c), mix), space="log")
    term = Term(target, divergence_loss(as_divergence(divergence), top_k=top_k, by="student"), has(c))
    return Method(sample(student, group), term, token_mean)


@method(paper="arXiv:2601.20802", title="SDPO and GRPO in one advantage", confidence="medium")
def sdpo_hybrid(share: float = 0.1, rate: float = 0.05, group: int = 8) -> Method:
    r"""The sum of GRPO's advantage and the log-ratio to SDPO's teacher (as reported by SRPO).

    .. math:: A_t = (1-s)\,A^{GRPO} + s\,z_i\,[\log\pi_{EMA}(y_t|x,c) - \log\pi_{old}(y_t|x)]

    Args:
        share: weight of the log-ratio; 0.1 (reported by SRPO).
        rate: of the moving average; 0.05 (code).
        group: rollouts per prompt; 8 (code).
    """
    c = sibling_or_feedback
    signal = group_advantage()
    number("share of sdpo_hybrid", share, 0, 1, ends=True)
    if share != 0:  # with 0, the teacher is not needed
        signal = (1.0 - share) * signal + share * where(has(c), log_ratio(ema(rate).given(c)), 0.0)
    return Method(sample(student, group), Term(signal, clip(0.2)), token_mean)


@method(paper="arXiv:2604.02288", title="SRPO")
def srpo(beta: float = 1.0, rate: float = 0.05, top_k: int | None = 100, is_cap: float = 2.0, group: int = 8) -> Method:
    r"""Sample-routed policy optimisation: distil wrong samples for which the teacher has a context, GRPO on the others.

    .. math:: L = \frac{\sum_i z^G_i\sum_t \ell^{GRPO} + \sum_i z^S_i\sum_t w_{i,t}\,\ell^{SDPO}}{\sum_i |y_i|}

    Both parts share one denominator. :math:`w\propto e^{-\beta H(q_{i,t})}` has mean 1 over the distilled tokens, so an
    uncertain teacher gets less weight. The advantage is computed over the whole group, before routing.

    Args:
        beta: 1 (paper); 0 gives uniform weights.
        rate: of the moving average; 0.05 (paper).
        top_k: 100 (paper).
        is_cap: cap of each importance weight; 2 (paper).
        group: rollouts per prompt; 8 (paper).
    """
    term, context = _distilled("jsd(0.5)", rate, top_k, is_cap)
    distilled = ~correct & has(context)
    sure = mean_one(confidence(ema(rate).given(context), beta), distilled)
    guided = Term(term.signal, term.surrogate, weight=sure * term.weight)
    return Method(
        sample(student, group), routed(distilled, guided, Term(group_advantage(), clip(0.2, 0.28))), token_mean
    )


@method(paper="arXiv:2604.12002", title="SD-Zero, phase 2", confidence="medium")
def sd_zero(group: int = 1) -> Method:
    r"""Distil from the initial student, which sees the student's whole answer and a phrase chosen by its reward.

    .. math:: L = \frac1B\sum_b\sum_t
              \mathrm{KL}\big(\pi_\theta(\cdot|x,y_{<t})\,\Vert\,\pi_{SRT}(\cdot|x,y,P_r,y_{<t})\big)

    The teacher is the student at the start of this phase, which phase 1 (``sd_zero_srt``) trained to revise.
    ``lb.pipelines.sd_zero()`` runs both phases, once or several times. The phrases are ours.

    Args:
        group: rollouts per prompt; 1 (paper).
    """
    view = init.given(own_reply, verdict_phrase)
    return Method(sample(student, group), Term(view, divergence_loss(rkl)), sequence_sum)


@method(paper="arXiv:2604.12002", title="SD-Zero, phase 1 (SRT)", confidence="medium")
def sd_zero_srt(group: int = 1) -> Method:
    r"""Self-revision training: likelihood of the student's own correct revisions, as a reply and as one text.

    .. math:: L = -\log\pi(y_{rev}|x,y_{init},P_r) - \log\pi(y_{init}\oplus P_r\oplus y_{rev}|x)

    over sequences whose revision is correct.

    Args:
        group: rollouts per prompt; 1 (paper).
    """
    talk = sample(student, group, turns=2, retry=verdict_phrase)
    revised = correct & (turn.over("sequence", "max") > 1)
    whole = recast("talk", response="{{ turn_0 }}\n{{ said_0 }}\n{{ turn_1 }}", keep=revised)
    question = "{{ prompt }}\n\n{{ turn_0 }}\n\n{{ said_0 }}"
    second = recast("talk", question=question, response="turn 1", keep=revised)
    terms = nll(on("whole")) + nll(on("second"))
    return Method({"talk": talk, "whole": whole, "second": second}, terms, sequence_sum)


@method(paper="arXiv:2606.05152", title="DistIL", confidence="low")
def distil(future: bool = True, black_box: bool = False, rate: float = 0.05, group: int = 1) -> Method:
    r"""Distributional DAgger: cross-entropy to an expert that sees feedback, on the student's states and their future.

    .. math:: \nabla L = \sum_t\nabla H_t + \sum_t\nabla\log\pi_\theta(y_t)\,\mathrm{sg}\Big[\sum_{s>t}H_s\Big],\qquad
              H_t = -\sum_v p_t(v)\log q_t(v)

    The objective is from the project page. The gradient, the averaged weights, the missing baseline and the sum per
    sequence are our reconstruction, because neither code nor the text of the paper was available.

    Args:
        future: whether to take the second sum; True (page). False is forward KL on the student's prefixes.
        black_box: whether one token drawn from the expert stands for its whole distribution; False (ours).
        rate: of the expert's moving average; 0.05 (ours, after SDPO).
        group: rollouts per prompt; 1 (ours).
    """
    expert = ema(rate).given(feedback)
    shown = has(feedback)
    now = Term(expert, divergence_loss(soft_ce, top_k=1, by="draw") if black_box else divergence_loss(soft_ce), shown)
    if not future:
        return Method(sample(student, group), now, sequence_sum)
    cost = divergence(soft_ce, expert, old)
    later = Term(to_go(-cost, 1.0, strict=True), reinforce, shown)
    return Method(sample(student, group), now + later, sequence_sum)


@method(paper="arXiv:2604.10674", title="Skill-SD")
def skill_sd(
    lam: float = 0.001, group: int = 4, turns: int = 40, every: int = 1, summary_by: str | None = None
) -> Method:
    r"""GRPO plus a KL to a recent copy of the student that sees a skill from a bank.

    .. math:: L = L_{GRPO} + \lambda\,\frac1N\sum_{i,t}\rho_t\,k_3(\ell_t),\quad
              \ell_t = \log\pi_\theta(y_t|s_t) - \log\pi_{\bar\theta}(y_t|s_t\oplus S)

    The gradient passes through :math:`\rho`, which is not clipped: :math:`\nabla(\rho k_3)=\rho\,\ell\,\nabla\log\pi`
    is the gradient of the reverse KL. Skills come from the best sequence of a group and are chosen by UCB. Without a
    skill, and with a copy equal to the student, the KL is 0.

    Args:
        lam: 0.001 (paper).
        group: rollouts per prompt; 4 (paper).
        turns: the most turns; 40 (the paper's tasks). Use 1 for a task that is answered in one turn.
        every: batches between copies of the student; 1 (paper).
        summary_by: the role of the model that turns a sequence into advice (``student``, ``teacher``, a name of
            ``others``), as the summariser of the paper does. None (ours) keeps the sequence itself, because small
            models do not summarise.
    """
    if summary_by is not None and not summary_by.isidentifier():
        raise LimbeckError(f"summary_by={summary_by!r} names no model; give student, teacher or a name of others.")
    advice = skill if summary_by is None else summarised_by(summary_by)
    rl = Term(group_advantage(), clip(0.2, 0.28))
    distance = Term(logp(synced(every).given(advice)), sampled("k3", ratio=True))
    return Method(sample(student, group, turns=turns), rl + lam * distance, token_mean)


@method(paper="arXiv:2605.02943", title="TT-OPD", confidence="low")
def tt_opd(
    lam: float = 0.01, rate: float = 0.005, every: int = 5, reset: int = 30, group: int = 3, turns: int = 10
) -> Method:
    r"""GRPO plus a KL per turn to an averaged student that sees the outcome of the episode.

    .. math:: L = L_{GRPO} + \lambda_d \sum \mathrm{KL}\big(\pi_\theta\,\Vert\,\pi_{EMA}(\cdot|x,h)\big)

    The method is known to us from a README and notes, which do not give the truncation, the estimator and the length
    shaping. This takes k2, no truncation and no shaping.

    Args:
        lam: lambda_d; 0.01 (Algorithm 1 of the paper; its README has 4).
        rate: 0.005, which is alpha 0.995 (README).
        every: batches between updates of the average; 5 (README).
        reset: batches between hard copies; 30 (README).
        group: rollouts per prompt; 3 (README).
        turns: the most turns; 10 (ours). Use 1 for a task that is answered in one turn.
    """
    view = ema(rate, every, reset).given(outcome_hint)
    rl = Term(group_advantage(of=score), clip(0.2))
    return Method(sample(student, group, turns=turns), rl + lam * Term(logp(view), sampled("k2")), token_mean)
