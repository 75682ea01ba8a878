"""Published recipes of more than one stage, by name: ``lb.pipelines.sd_zero(iterations=2)``, ``limbeck pipeline``.

What one method can say is a method (VPD's two steps alternate within one run). A pipeline hands a student on.
"""

from __future__ import annotations

from ..errors import whole
from ..space.pipeline import Pipeline, pipeline, stage


@pipeline(paper="arXiv:2604.12002", title="SD-Zero")
def sd_zero(iterations: int = 1) -> Pipeline:
    """Learn to revise, then let the reviser teach: SD-Zero's two phases, once or several times.

    Phase 1 (``sd_zero_srt``) trains the student on its own correct revisions. In phase 2 (``sd_zero``) the teacher is
    what phase 1 left, frozen. With more iterations both are repeated on the student so far; the paper's further
    iterations set the teacher to the student after each epoch.

    Args:
        iterations: how often both phases are run; 1 (paper; it reports a further gain from another).
    """
    whole("iterations of sd_zero", iterations, 1)
    return Pipeline((stage("sd_zero_srt"), stage("sd_zero")), repeat=iterations)


@pipeline(paper="arXiv:2604.13010", title="Lightning OPD")
def lightning(advantage_clip: float | None = None) -> Pipeline:
    """Train on the teacher's own text, then distil offline from log-probs that the same teacher stored.

    The first stage is ``gkd`` with a forward KL on text that the teacher writes: the expected gradient of supervised
    fine-tuning on it, with less variance. Then ``lightning_opd``, whose rollouts and teacher's log-probs are made once.
    The same teacher in both is what the paper calls teacher consistency, and the point of having them in one pipeline.

    Args:
        advantage_clip: of the second stage; None (code; the paper's value is not published).
    """
    return Pipeline(
        (stage("gkd", lam=0.0, divergence="fkl", seq_kd=True), stage("lightning_opd", advantage_clip=advantage_clip))
    )


@pipeline(paper="arXiv:2605.16826", title="Distillation, then GRPO")
def opd_then_rl(divergence: str = "rkl", reference: float = 0.0) -> Pipeline:
    """On-policy distillation over the full vocabulary, then GRPO from its student.

    The paper reports that GRPO falls from a reverse-KL start and rises from a forward-KL one (read off figures by a
    note-taker); compare ``divergence="fkl"`` with the default.

    Args:
        divergence: of the first stage; ``rkl``.
        reference: GRPO's coefficient of the KL to the distilled student; 0 (ours), so that none is kept in memory.
    """
    return Pipeline((stage("opd_full", divergence=divergence), stage("grpo", ref_coef=reference)))
