"""Published recipes of more than one stage, by name: ``lb.pipelines.sd_zero(iterations=2)``, ``limbeck pipeline``.

Each stage trains the student from the previous stage. Steps that alternate within one run, as in VPD, are one method.
"""

from __future__ import annotations

from ..errors import whole
from ..space.pipeline import Pipeline, pipeline, stage


@pipeline(paper="arXiv:2604.12002", title="SD-Zero")
def sd_zero(iterations: int = 1) -> Pipeline:
    """The two phases of SD-Zero, once or several times: learn to revise, then distil from the reviser.

    Phase 1 (``sd_zero_srt``) trains the student on its own correct revisions. In phase 2 (``sd_zero``) the teacher is
    the student from phase 1, frozen. Further iterations repeat both phases on the student so far; in the paper, they
    set the teacher to the student after each epoch.

    Args:
        iterations: the number of times that both phases run; 1 (paper, which reports a further gain from another).
    """
    whole("iterations of sd_zero", iterations, 1)
    return Pipeline((stage("sd_zero_srt"), stage("sd_zero")), repeat=iterations)


@pipeline(paper="arXiv:2604.13010", title="Lightning OPD")
def lightning(advantage_clip: float | None = None) -> Pipeline:
    """Train on the teacher's own text, then distil offline from stored log-probs of the same teacher.

    The first stage is ``gkd`` with a forward KL on text from the teacher. It has the expected gradient of supervised
    fine-tuning on that text, with less variance. The second stage is ``lightning_opd``, which samples rollouts and
    scores them with the teacher once. Both stages need the same teacher (the paper calls this teacher consistency),
    which one pipeline ensures.

    Args:
        advantage_clip: clip of the advantage in the second stage; None (code; the paper does not publish its value).
    """
    return Pipeline(
        (stage("gkd", lam=0.0, divergence="fkl", seq_kd=True), stage("lightning_opd", advantage_clip=advantage_clip))
    )


@pipeline(paper="arXiv:2605.16826", title="Distillation, then GRPO")
def opd_then_rl(divergence: str = "rkl", reference: float = 0.0) -> Pipeline:
    """On-policy distillation over the full vocabulary, then GRPO on the distilled student.

    The paper reports that GRPO gets worse from a student of the reverse KL and better from one of the forward KL
    (values that we have second-hand, read off figures). Compare ``divergence="fkl"`` with the default.

    Args:
        divergence: of the first stage; ``rkl`` (ours).
        reference: GRPO's coefficient of the KL to the distilled student; 0 (ours), which keeps no reference in memory.
    """
    return Pipeline((stage("opd_full", divergence=divergence), stage("grpo", ref_coef=reference)))
