"""Named expressions: the signals, weights and masks that methods are written with.

Record fields are ``reward`` (one per turn), ``score`` (its sum over the sequence), ``correct``, ``truncated``,
``label``, ``length`` (one per sequence) and ``position`` (one per token). Readers are scored with ``logp``, ``entropy``
and ``divergence``. The others are short compositions.
"""

from __future__ import annotations

from ..errors import LimbeckError, number
from ..math.divergence import Divergence, Renyi, as_divergence
from ..math.statistic import Distance, Entropy, InTop, LogProb, Support
from ..types import AUTHORS
from .choice import Cohort, Draw, Running, Top
from .context import Context
from .expression import Const, Expr, ExprLike, Slope, ToGo, op
from .leaves import Column, Field, Has, On, Read, Tagged
from .levels import Level, as_level
from .reader import Reader, TargetReader, old, student

reward = Field("reward", Level.TURN)
correct, truncated, label, length = Field("correct"), Field("truncated"), Field("label"), Field("length")
position, turn = Field("position", Level.TOKEN), Field("turn", Level.TURN)


def column(name: str, at: Level | str = Level.SEQUENCE) -> Expr:
    """A named number of the data, per sequence or per token."""
    return Column(name, as_level(at))


def on(source: str) -> Expr:
    """A mask that is true on the sequences of the named source."""
    return On(source)


def has(context: Context) -> Expr:
    """A mask that is true on the sequences that have the evidence of the context."""
    return Has(context)


def by(author: str) -> Expr:
    """A mask that is true on the tokens of an author: ``student``, ``teacher`` or ``data``."""
    if author not in AUTHORS:
        raise LimbeckError(f"by({author!r}): unknown author; use 'student', 'teacher' or 'data'.")
    return Field("author", Level.TOKEN).eq(AUTHORS[author])


def tagged(column: str, value: str) -> Expr:
    """A mask that is true on the sequences whose prompt has the word ``value`` in the column."""
    return Tagged(column, value)


def where(mask: Expr, a: ExprLike, b: ExprLike) -> Expr:
    """``a`` where the mask is true, else ``b``."""
    return op("where", mask, a, b)


everywhere: Expr = Const(1.0)
"""The constant 1: as a signal 1, as a mask every unit, as a weight 1."""


def logp(reader: Reader) -> Expr:
    """Log-prob of the scored token in nats, per token."""
    return Read(reader, LogProb(), None, None)


def entropy(reader: Reader) -> Expr:
    """Entropy of the next-token distribution in nats, per token."""
    return Read(reader, Entropy(), None, None)


def divergence(
    row: Divergence | str, target: TargetReader, of: Reader = student, support: Support | None = None
) -> Expr:
    """Divergence of ``of`` to ``target`` in nats, per token, over the full vocabulary or a support."""
    return Read(of, Distance(as_divergence(row), support is None or support.tail), target, support)


def in_top(k: int, reader: Reader) -> Expr:
    """1 where the scored token is among the k most likely tokens of the reader, else 0, per token."""
    return Read(reader, InTop(k), None, None)


def to_go(of: Expr, gamma: float, strict: bool = False, mean: bool = False) -> Expr:
    """The discounted sum over the rest of the sequence, ``sum_{s>=t} gamma^(s-t) x_s`` (``strict``: s > t)."""
    return ToGo(of, gamma, strict, mean)


score: Expr = reward.total
"""The reward of the whole sequence."""


def standardise(
    of: Expr, level: Level | str, eps: float = 1e-8, scale: bool = True, where: Expr | None = None, empty: bool = False
) -> Expr:
    """(x − mean) / (std + eps) over the level, with statistics of the units where the mask is true.

    The std is the unbiased one, 0 for a single value; ``scale=False`` keeps x − mean. Units without a kept token are
    left out, unless ``empty`` is set.
    """
    centred = of - of.over(level, "mean", where, empty)
    return centred / (of.over(level, "std", where, empty) + eps) if scale else centred


def group_advantage(scale: bool = True, of: Expr = score, eps: float = 1e-6) -> Expr:
    """The advantage of GRPO (arXiv:2402.03300), the score standardised within its group.

    With ``scale=False`` it is that of Dr. GRPO. The std is the unbiased one, as in TRL and verl; eps 1e-6 is from verl
    (TRL has 1e-4). A group of one response, or with equal scores, gets 0 (verl keeps the raw reward of a group of one).
    A response without a kept token counts in the baseline, as in verl, because its score is a sample of the group.
    """
    return standardise(of, Level.GROUP, eps, scale, empty=True)


def log_ratio(target: Reader, base: Reader = old) -> Expr:
    """log π_target − log π_base at the scored token, in nats."""
    return logp(target) - logp(base)


LOG_RATIO_LIMIT = 20.0
"""Log importance ratios are clamped to ±20 before they are exponentiated (the value of verl)."""


def ratio_of(log_ratio: Expr) -> Expr:
    """A ratio of policies from its logarithm, which is clamped to ±20 so that a rare token cannot make it infinite."""
    return log_ratio.clip(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def importance(a: Reader, b: Reader, cap: float | None = None) -> Expr:
    """π_a / π_b at the scored token, detached; its logarithm is clamped to ±20, and the ratio capped at ``cap``."""
    if cap is not None:
        number("the cap of an importance ratio (is_cap)", cap, 0)
    ratio = ratio_of(logp(a) - logp(b))
    return ratio if cap is None else ratio.clip(hi=cap)


def divergence_advantage(row: Divergence | str, target: Reader, base: Reader = old) -> Expr:
    """The advantage whose on-policy policy gradient is that of a divergence: f'(1) − f'(u) with u = base/target.

    ``Term(divergence_advantage(row, teacher), reinforce)`` has the expected gradient of the full divergence. That of
    Renyi needs the row total ``M = exp((a−1) D)``, so it reads both distributions in full.
    """
    row = as_divergence(row)
    log_u = logp(base) - logp(target)
    if isinstance(row, Renyi):
        a = row.alpha  # u^(a-1) / M in logarithms, where neither overflows: log M = (a - 1) D
        return (-a / (a - 1)) * ((a - 1) * (log_u - divergence(row, target, base))).exp()
    return Slope(row, log_u)


def minmax(of: Expr, level: Level | str = Level.BATCH) -> Expr:
    """(x − min) / (max − min) over the level; 0 where all values are equal."""
    low, high = of.over(level, "min"), of.over(level, "max")
    return where(high > low, (of - low) / where(high > low, high - low, 1.0), 0.0)


def soft_or(a: Expr, b: Expr) -> Expr:
    """1 − (1 − a)(1 − b) (TIP)."""
    return a + b - a * b


def top(of: Expr, fraction: float, among: Expr | None = None) -> Expr:
    """A mask of the given fraction of the batch's tokens, those with the largest values (at least one token)."""
    return Top(of, fraction, among)


def draw(of: Expr, fraction: float, among: Expr | None = None) -> Expr:
    """A mask of the given fraction of the batch's tokens, drawn without replacement in proportion to their values."""
    return Draw(of, fraction, among)


def cohort(of: Expr) -> Expr:
    """The mean over the turns of a group at the same position in their sequences, per turn."""
    return Cohort(of)


def running(of: Expr, rate: float, among: Expr | None = None) -> Expr:
    """A moving average over batches of a value per batch; batches without a unit in ``among`` are skipped."""
    return Running(of, rate, among)


def step_drift(target: Reader, ceiling: float, eps: float = 1e-6, base: Reader = old) -> Expr:
    """The weight of a turn in SOD: min((d_1 + eps) / (d_k + eps), 1 + ceiling), d_k its mean |log-ratio| to target.

    The running product of the paper telescopes to this (arXiv:2605.07725; eps 1e-6 is from its code).
    """
    number("ceiling of step_drift", ceiling, 0, ends=True)
    d = abs(log_ratio(target, base)).over(Level.TURN, "mean")
    return ((d.over(Level.SEQUENCE, "first") + eps) / (d + eps)).clip(hi=1.0 + ceiling)


def confidence(reader: Reader, beta: float = 1.0) -> Expr:
    """exp(−beta H) per token, which is near 1 where the reader's entropy H is small (SRPO)."""
    return (-beta * entropy(reader)).exp()


def mean_one(of: Expr, among: Expr) -> Expr:
    """x divided by its mean over the batch's tokens where the mask is true."""
    mean = of.over(Level.BATCH, "mean", among)
    return of / where(mean > 0.0, mean, 1.0)


all_wrong: Expr = ~correct.over(Level.GROUP, "any")
all_right: Expr = correct.over(Level.GROUP, "all")
