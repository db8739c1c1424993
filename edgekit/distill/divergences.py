"""How far a student's logits are from a teacher's, or from labels: a value for each token or row, with its gradient.

With p the teacher's probabilities and q the student's, both of logits / T, a divergence D of them has the gradient
(1 / T) (g - q sum(g)) in the student's logits, where g = q dD/dq. Each function computes D and g in closed form, so that one pass
gives both, and nothing is kept for a backward pass.

Near p = q a divergence of second order in the logits' difference falls as 1 / T^2, one of first order as 1 / T. The factor T^2
or T keeps a loss's share when T changes: Hinton, Vinyals, Dean (arXiv:1503.02531), section 2.

Every function takes the student's logits `given` and the teacher's `wanted`, each [rows, width], and returns values [rows] and
gradients [rows, width]. They are as exact as their input: give float32 or float64, not bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

from edgekit.distill.signals import IGNORED, Recorded

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """What losses are told beside the signals: the temperature, the parameters of divergences that have any, and corrections.

    jensen_shannon: the teacher's share of the mixture. skew: the share of the first distribution in the mixture. alpha, beta: the
    exponents of `alpha_beta`. correct_teacher: the least margin of the right answer's probability (`correct`), None for none.
    confidence: the exponent of `confidence`, 0 for weights that are all 1. label_smoothing: the share of all classes alike.
    taid: the teacher's share in the teacher that `interpolate` makes, 1 for the teacher itself.
    """

    temperature: float = 1.0
    jensen_shannon: float = 0.5
    skew: float = 0.1
    alpha: float = 0.2
    beta: float = 0.7
    correct_teacher: float | None = None
    confidence: float = 0.0
    label_smoothing: float = 0.0
    taid: float = 1.0


Compared = tuple["Tensor", "Tensor"]
"""Values [rows], and their gradients in the student's logits [rows, width]."""

Divergence = Callable[["Tensor", "Tensor", LossOptions], Compared]
"""(the student's logits, the teacher's, options) -> values and gradients."""


def forward_kl(given: Tensor, wanted: Tensor, options: LossOptions) -> Compared:
    """T^2 KL(p || q); its gradient is T (q - p). Hinton, Vinyals, Dean (arXiv:1503.02531), section 2."""
    heat = options.temperature
    (theirs, p), (mine, q) = _softmax(wanted, heat), _softmax(given, heat)
    values = theirs.sub_(mine).mul_(p).sum(dim=-1) * heat**2
    return values, q.sub_(p).mul_(heat)


def recorded_kl(given: Tensor, wanted: Recorded, options: LossOptions) -> Compared:
    """`forward_kl` with a teacher that was recorded at the same temperature: T^2 (-H(p) - sum(w log q)) and T (q - w), where the
    weights w have the mean p over draws. A single value may be below 0.
    """
    heat = options.temperature
    mine, q = _softmax(given, heat)
    weights = wanted.weights.to(q.dtype)
    values = (weights * mine.gather(1, wanted.ids)).sum(dim=-1).add_(wanted.entropy).mul_(-(heat**2))
    return values, q.scatter_add_(1, wanted.ids, -weights).mul_(heat)


def reverse_kl(given: Tensor, wanted: Tensor, options: LossOptions) -> Compared:
    """T^2 KL(q || p). MiniLLM, Gu et al. (arXiv:2306.08543)."""
    (theirs, _), (mine, q) = _softmax(wanted, options.temperature), _softmax(given, options.temperature)
    parts = mine.sub_(theirs).mul_(q)
    # dD/dq = log(q / p) + 1: the constant falls out of g - q sum(g).
    return _finish(parts.sum(dim=-1), parts, q, options, order=2)


def jensen_shannon(given: Tensor, wanted: Tensor, options: LossOptions) -> Compared:
    """T^2 (b KL(p || m) + (1 - b) KL(q || m)) with m = b p + (1 - b) q. GKD, Agarwal et al. (arXiv:2306.13649), equation 1.

    The share b is above 0 and below 1, where it is symmetric at 1 / 2; `forward_kl` and `reverse_kl` are its limits, divided by b
    and by 1 - b.
    """
    share = options.jensen_shannon
    (theirs, p), (mine, q) = _softmax(wanted, options.temperature), _softmax(given, options.temperature)
    mixed = _mix(p, q, share).log_()
    first = theirs.sub_(mixed).mul_(p).sum(dim=-1) * share
    # b KL(p || m) adds -b (1 - b) p / m to dD/dq, and (1 - b) KL(q || m) adds (1 - b) (log(q / m) + 1) - (1 - b)^2 q / m: the
    # fractions sum to the constant 1 - b.
    pull = mine.sub_(mixed).mul_(q).mul_(1 - share)
    return _finish(first + pull.sum(dim=-1), pull, q, options, order=2)


def skew_kl(given: Tensor, wanted: Tensor, options: LossOptions) -> Compared:
    """T^2 KL(p || s p + (1 - s) q). DistiLLM, Ko et al. (arXiv:2402.03898)."""
    skew = options.skew
    (theirs, p), (_, q) = _softmax(wanted, options.temperature), _softmax(given, options.temperature)
    mixed = _mix(p, q, skew)
    pull = (p * q).div_(mixed).mul_(skew - 1)
    values = theirs.sub_(mixed.log_()).mul_(p).sum(dim=-1)
    return _finish(values, pull, q, options, order=2)


def skew_reverse_kl(given: Tensor, wanted: Tensor, options: LossOptions) -> Compared:
    """T^2 KL(q || s q + (1 - s) p). DistiLLM, Ko et al. (arXiv:2402.03898)."""
    skew = options.skew
    (_, p), (mine, q) = _softmax(wanted, options.temperature), _softmax(given, options.temperature)
    mixed = _mix(q, p, skew)
    rest = (q * q).div_(mixed)
    pull = mine.sub_(mixed.log_()).mul_(q)
    values = pull.sum(dim=-1)
    return _finish(values, pull.sub_(rest, alpha=skew), q, options, order=2)


def alpha_beta(given: Tensor, wanted: Tensor, options: LossOptions) -> Compared:
    """T^2 times the alpha-beta divergence of p and q, Cichocki, Cruces, Amari 2011 (Entropy 13, 134-170); as a loss of
    distillation ABKD, Wang et al., ICML 2025. alpha and beta are above 0; alpha = 1 nears KL(p || q) as beta nears 0, beta = 1
    nears KL(q || p) as alpha does.
    """
    alpha, beta = options.alpha, options.beta
    both = alpha + beta
    (theirs, _), (mine, q) = _softmax(wanted, options.temperature), _softmax(given, options.temperature)
    product = (theirs * alpha).add_(mine, alpha=beta).exp_()
    own = mine.mul_(both).exp_()
    values = theirs.mul_(both).exp_().mul_(alpha / both).add_(own, alpha=beta / both).sub_(product).sum(dim=-1)
    return _finish(values / (alpha * beta), own.sub_(product).div_(alpha), q, options, order=2)


def total_variation(given: Tensor, wanted: Tensor, options: LossOptions) -> Compared:
    """T / 2 sum(|p - q|), of first order. f-distill, Wen et al. (arXiv:2307.15190)."""
    p, q = _softmax(wanted, options.temperature)[1], _softmax(given, options.temperature)[1]
    away = q - p
    values = away.abs().sum(dim=-1) / 2
    return _finish(values, away.sign_().mul_(q).div_(2), q, options, order=1)


def uld(given: Tensor, wanted: Tensor, options: LossOptions) -> Compared:
    """T times the distance of the sorted probabilities, sum(|p_(i) - q_(i)|), of first order: it compares vocabularies of any two
    tokenizers, the smaller one filled up with zeros. ULD, Boizard et al. (arXiv:2402.12030).
    """
    p = _softmax(wanted, options.temperature)[1].sort(dim=-1, descending=True).values
    q = _softmax(given, options.temperature)[1]
    mine, order = q.sort(dim=-1, descending=True)
    width, theirs = mine.shape[-1], p.shape[-1]
    shared = min(width, theirs)
    away = mine.clone()
    away[:, :shared] -= p[:, :shared]
    values = away.abs().sum(dim=-1) + p[:, shared:].sum(dim=-1)
    signs = away.sign()
    return _finish(values, signs.new_zeros(q.shape).scatter_(-1, order, signs).mul_(q), q, options, order=1)


def logit_squares(given: Tensor, wanted: Tensor, options: LossOptions) -> Compared:  # noqa: ARG001
    """The mean squared difference of the logits, which knows no temperature. Kim et al. (arXiv:2105.08919)."""
    away = given - wanted
    return away.square().mean(dim=-1), away.mul_(2 / away.shape[-1])


def pull_tokens(given: Tensor, ids: Tensor, weights: Tensor, temperature: float) -> Compared:
    """-w log q(y) of drawn ids [rows], each with a weight; its gradient is w (q - 1_y) / T, q at the sampling's temperature T.

    With an answer's advantage as the weight of its tokens: the policy gradient, Williams 1992 (REINFORCE), section 4.
    """
    logs = _logs(given, temperature)
    values = -weights * logs.gather(-1, ids[:, None])[:, 0]
    gradient = logs.exp_()
    gradient.scatter_add_(-1, ids[:, None], gradient.new_full((len(ids), 1), -1.0))
    return values, gradient.mul_((weights / temperature)[:, None])


def cross_entropy(given: Tensor, targets: Tensor, options: LossOptions) -> Compared:
    """-sum(y log q) at T = 1, with y the targets: ids [rows], or probabilities [rows, width], smoothed as `smooth` does.

    Ids that are IGNORED give 0.
    """
    logs = _logs(given, 1.0)
    if targets.is_floating_point():
        wanted = smooth(targets, options.label_smoothing)
        values = -(wanted * logs).sum(dim=-1)
        return values, logs.exp_().mul_(wanted.sum(dim=-1, keepdim=True)).sub_(wanted)
    share, known = options.label_smoothing, targets != IGNORED
    ids = targets.clamp(min=0)[:, None]
    values = -(1 - share) * logs.gather(-1, ids)[:, 0]
    if share:
        values = values - share * logs.mean(dim=-1)
    gradient = logs.exp_()
    if share:
        gradient.sub_(share / given.shape[-1])
    gradient.scatter_add_(-1, ids, gradient.new_full(ids.shape, share - 1))
    return values * known, gradient.mul_(known[:, None])


def smooth(targets: Tensor, share: float) -> Tensor:
    """Wanted probabilities [rows, classes] mixed with a share of all classes alike; a row of zeros stays so.

    Label smoothing, Szegedy et al. (arXiv:1512.00567), section 7.
    """
    return (
        targets if share == 0 else targets * (1 - share) + targets.sum(-1, keepdim=True) * (share / targets.shape[-1])
    )


def correct(wanted: Tensor, targets: Tensor, options: LossOptions) -> Tensor:
    """A teacher's logits whose probabilities at T hold the right answer ahead of any other by the margin `correct_teacher`.

    p' = (1 - m) p + m y with m = (margin - d) / (1 - d), and d by how much the right answer leads (below 0 where another does):
    after it p' leads by the margin exactly. Rows where it leads by more, and rows without one right answer, stay as they are.
    Minifinetuning (arXiv:2506.15702). targets: as for `cross_entropy`.
    """
    margin, heat = options.correct_teacher, options.temperature
    if margin is None:
        return wanted
    logs = _logs(wanted, heat)
    if targets.is_floating_point():
        most, ids = targets.max(dim=-1, keepdim=True)
        known = most == 1
    else:
        known, ids = (targets != IGNORED)[:, None], targets.clamp(min=0)[:, None]
    right = logs.gather(-1, ids)
    other = logs.scatter(-1, ids, -float("inf")).max(dim=-1, keepdim=True).values
    lead = right.exp() - other.exp()
    mix = ((margin - lead) / (1 - lead).clamp(min=1e-9)).clamp(min=0.0, max=1.0).masked_fill(~known, 0.0)
    kept = (-mix).log1p()
    corrected = (right + kept).logaddexp(mix.log())
    moved = mix > 0
    return wanted.where(~moved, (logs + kept).scatter(-1, ids, corrected) * heat)


def interpolate(wanted: Tensor, given: Tensor, options: LossOptions) -> Tensor:
    """The logits of a teacher between student and teacher, (1 - t) z_s + t z_t with t the option `taid`, both [rows, width].

    No gradient goes through it: it is a target. At t = 1 it is the teacher's logits themselves. TAID, Shing et al.
    (arXiv:2501.16937), section 3.
    """
    share = options.taid
    return wanted if share == 1.0 else (wanted * share).add_(given.detach(), alpha=1 - share)


def confidence(wanted: Tensor, power: float) -> Tensor:
    """How sure a teacher is of each row, 1 - H(p) / log(width) at T = 1, between 0 and 1, to a power: a row's weight [rows].

    H / log(width) is Shannon's relative entropy (1948, section 7): 1 where the teacher finds all alike, who then teaches nothing.
    """
    logs = _logs(wanted, 1.0)
    entropy = -(logs.exp() * logs).sum(dim=-1)
    return (1 - entropy / log(max(wanted.shape[-1], 2))).clamp(min=0.0) ** power


def _logs(logits: Tensor, heat: float) -> Tensor:
    """log softmax(logits / T): a tensor of its own."""
    return (logits if heat == 1.0 else logits / heat).log_softmax(dim=-1)


def _softmax(logits: Tensor, heat: float) -> tuple[Tensor, Tensor]:
    """log softmax(logits / T) and softmax(logits / T), with one exponential for both: tensors of their own."""
    logs = logits - logits.amax(dim=-1, keepdim=True)
    if heat != 1.0:
        logs.div_(heat)
    shares = logs.exp()
    total = shares.sum(dim=-1, keepdim=True)
    return logs.sub_(total.log()), shares.div_(total)


def _mix(first: Tensor, second: Tensor, share: float) -> Tensor:
    """share first + (1 - share) second; where both are 0 next to it, so that it has a logarithm and divides."""
    return (first * share).add_(second, alpha=1 - share).clamp_(min=1e-37)


def _finish(values: Tensor, pull: Tensor, q: Tensor, options: LossOptions, *, order: int) -> Compared:
    """The scaled values, and the gradients that follow from pull = q dD/dq, which is used up."""
    heat = options.temperature
    pull.addcmul_(q, pull.sum(dim=-1, keepdim=True), value=-1)
    scale = heat ** (order - 1)
    return values * heat**order, pull if scale == 1 else pull.mul_(scale)
