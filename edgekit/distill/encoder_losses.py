"""Losses of what is inside an encoder or decoder, and of embeddings: directions, relations of tokens, relations of texts.

Each is a `Compare` (see `edgekit.distill.losses`). Means are over real tokens or rows, never over padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.distill.divergences import LossOptions
from edgekit.distill.signals import Batch, Signal

if TYPE_CHECKING:
    from torch import Tensor

# The temperature of `contrastive`: SimCSE's (Gao, Yao, Chen, arXiv:2104.08821), for cosines too.
CONTRAST = 0.05
# That of `supervised_contrastive`: Khosla et al. (arXiv:2004.11362), section 4.
TOGETHER = 0.07


def hidden(student: Signal, teacher: Signal, batch: Batch, options: LossOptions) -> Tensor:  # noqa: ARG001
    """Squared distance of matched blocks' outputs, each token's vector scaled to length 1; mean over blocks and tokens.

    Patient knowledge distillation, Sun et al. (arXiv:1908.09355), equation 7, here for every token and not the first only.
    """
    total = student.output.new_zeros(())
    for given, wanted in zip(student.hidden, teacher.hidden, strict=True):
        distance = (_direction(given) - _direction(wanted)).square().sum(dim=-1)
        total = total + (distance * batch.mask).sum() / batch.mask.sum()
    return total / max(len(student.hidden), 1)


def cosine(student: Signal, teacher: Signal, batch: Batch, options: LossOptions) -> Tensor:  # noqa: ARG001
    """1 - cosine of the last matched block's outputs, mean over real tokens: the cosine term of DistilBERT (arXiv:1910.01108)."""
    distance = 1 - (_direction(student.hidden[-1]) * _direction(teacher.hidden[-1])).sum(dim=-1)
    return (distance * batch.mask).sum() / batch.mask.sum()


def attention_relation(student: Signal, teacher: Signal, batch: Batch, options: LossOptions) -> Tensor:  # noqa: ARG001
    """KL of query-query, key-key and value-value relations, summed over the three, mean over heads and real tokens.

    MiniLMv2, Wang et al. (arXiv:2012.15828), equations 5 to 9, with the last block of both and the teacher's own heads; of a
    student with fewer channels, with as many relation heads of both, up to those, as divide both (section 3.2).
    """
    unseen = (batch.mask == 0)[:, None, None, :]
    total = student.output.new_zeros(())
    for given, wanted in zip(student.projections, teacher.projections, strict=True):
        mine, theirs = _alike(given, wanted)
        logs = _relation(theirs, unseen)
        divergence = (logs.exp() * (logs - _relation(mine, unseen))).sum(dim=-1)
        total = total + (divergence.mean(dim=1) * batch.mask).sum() / batch.mask.sum()
    return total


def contrastive(student: Signal, teacher: Signal, batch: Batch, options: LossOptions) -> Tensor:  # noqa: ARG001
    """KL of how like the teacher's texts of a batch are to each of its own, and to each of the student's; mean over rows.

    A text is the mean vector of the last matched block, likeness the softmax of cosines / CONTRAST: InfoNCE, van den Oord, Li,
    Vinyals (arXiv:1807.03748), between student and teacher as in contrastive representation distillation, Tian, Krishnan, Isola
    (arXiv:1910.10699), with the teacher's likeness where theirs has 1 for the same text and 0 for others: near texts stay near.
    """
    mine, theirs = (_direction(_text(signal.hidden[-1], batch)) for signal in (student, teacher))
    given = (mine @ theirs.T / CONTRAST).log_softmax(dim=-1)
    wanted = (theirs @ theirs.T / CONTRAST).log_softmax(dim=-1)
    return (wanted.exp() * (wanted - given)).sum(dim=-1).mean()


def supervised_contrastive(student: Signal, teacher: Signal, batch: Batch, options: LossOptions) -> Tensor:  # noqa: ARG001
    """-log softmax of the cosines / TOGETHER to all other views of the batch, mean over those of the same class, then over views.

    Supervised contrastive learning, Khosla et al. (arXiv:2004.11362), equation 2. A text's two views are not two distortions of
    it but two vectors: the pooled one, which sentence encoders are trained for, and the one that the classifier reads, which so
    comes to hold what the other does. A text without a class is like its own other view alone.
    """
    import torch

    sure, best = batch.targets.max(dim=-1)
    unsure = -1 - torch.arange(len(best), device=best.device)
    owners = best.where(sure == 1.0, unsure).repeat(len(student.views))
    views = torch.cat([_direction(view) for view in student.views])
    itself = torch.eye(len(views), dtype=torch.bool, device=views.device)
    logs = (views @ views.T / TOGETHER).masked_fill(itself, -1e9).log_softmax(dim=-1)
    same = (owners[:, None] == owners[None]) & ~itself
    found: Tensor = -((logs * same).sum(dim=-1) / same.sum(dim=-1)).mean()
    return found


def embedding(student: Signal, teacher: Signal, batch: Batch, options: LossOptions) -> Tensor:  # noqa: ARG001
    """1 - cosine of the embeddings, mean over rows (the cosine term of DistilBERT, arXiv:1910.01108, on whole texts)."""
    return 1 - (_direction(student.output) * _direction(teacher.output)).sum(dim=-1).mean()


def embedding_distance(student: Signal, teacher: Signal, batch: Batch, options: LossOptions) -> Tensor:  # noqa: ARG001
    """Huber's loss of the distances between the batch's embeddings, each side's in units of its mean; mean over pairs.

    Relational knowledge distillation, Park et al. (arXiv:1904.05068), equations 5 to 7.
    """
    given, wanted = (_distances(signal.output) for signal in (student, teacher))
    return _huber(given - wanted).sum() / max(given.numel(), 1)


def embedding_angle(student: Signal, teacher: Signal, batch: Batch, options: LossOptions) -> Tensor:  # noqa: ARG001
    """Huber's loss of the cosines of the angles that any three of the batch's embeddings form; mean over triplets.

    Relational knowledge distillation, Park et al. (arXiv:1904.05068), equations 8 to 10.
    """
    rows = len(student.output)
    given, wanted = (_angles(signal.output) for signal in (student, teacher))
    return _huber(given - wanted).sum() / max(rows * (rows - 1) * (rows - 2), 1)


def _direction(vectors: Tensor) -> Tensor:
    """Vectors along the last axis, scaled to length 1."""
    return vectors * vectors.square().sum(dim=-1, keepdim=True).clamp(min=1e-24).rsqrt()


def _relation(vectors: Tensor, unseen: Tensor) -> Tensor:
    """log softmax(x x^T / sqrt(d)) over real tokens, [batch, heads, sequence, sequence]."""
    scores = vectors @ vectors.transpose(-1, -2) / vectors.shape[-1] ** 0.5
    logs: Tensor = scores.masked_fill(unseen, -1e9).log_softmax(dim=-1)
    return logs


def _alike(given: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Both vectors of a projection [batch, heads, sequence, channels] in as many heads, of as many channels as each has."""
    if given.shape[1] == wanted.shape[1]:
        return given, wanted
    widths = [tensor.shape[1] * tensor.shape[-1] for tensor in (given, wanted)]
    heads = max(count for count in range(1, wanted.shape[1] + 1) if not any(width % count for width in widths))
    rows, _, tokens, _ = given.shape
    mine, theirs = (tensor.transpose(1, 2).reshape(rows, tokens, heads, -1) for tensor in (given, wanted))
    return mine.transpose(1, 2), theirs.transpose(1, 2)


def _text(states: Tensor, batch: Batch) -> Tensor:
    """The mean of each text's real tokens [batch, channels]."""
    mask = batch.mask[:, :, None]
    return (states * mask).sum(dim=1) / mask.sum(dim=1)


def _distances(vectors: Tensor) -> Tensor:
    """The distances of all ordered pairs of rows, over their mean."""
    rows = len(vectors)
    squares = (vectors[:, None] - vectors[None]).square().sum(dim=-1)
    apart = ~squares.new_ones(rows, rows).triu().tril().bool()
    distances = squares[apart].clamp(min=1e-24).sqrt()
    return distances / distances.mean() if rows > 1 else distances


def _angles(vectors: Tensor) -> Tensor:
    """For rows i, j, k the cosine of the angle at j [rows, rows, rows]; of a row with itself 0."""
    away = _direction(vectors[None] - vectors[:, None])
    cosines = away @ away.transpose(-1, -2)
    return cosines - cosines.diagonal(dim1=-2, dim2=-1).diag_embed()


def _huber(away: Tensor) -> Tensor:
    """x^2 / 2 up to 1, |x| - 1/2 beyond (Huber 1964)."""
    size = away.abs()
    return (away.square() / 2).where(size <= 1, size - 0.5)
