"""Losses between what student and teacher predict: rows of scores ``[rows, classes]`` in, a scalar out.

Means over rows. The teacher's scores carry no gradient. One function a paper.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Hinton et al., Distilling the Knowledge in a Neural Network, arXiv:1503.02531.

    T^2 KL(teacher || student) of the softmax at temperature T: T^2 keeps the gradient's size as T grows.
    """
    log_student, log_teacher = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def reverse_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Gu et al., MiniLLM, arXiv:2306.08543: T^2 KL(student || teacher), which a small model meets by leaving out modes.

    On the teacher's own tokens, without sampling from the student.
    """
    log_student, log_teacher = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    return temperature**2 * F.kl_div(log_teacher, log_student, reduction="batchmean", log_target=True)


def top_k(teacher: Tensor, count: int) -> Tensor:
    """Log-probabilities of the ``count`` likeliest classes; what is left is spread evenly over the others."""
    classes = teacher.shape[1]
    if count >= classes:
        return F.log_softmax(teacher, 1)
    values, places = F.log_softmax(teacher, 1).topk(count, 1)
    return spread(values, places, classes)


def spread(values: Tensor, places: Tensor, classes: int) -> Tensor:
    """All ``classes`` from the log-probabilities ``values`` at ``places``: the rest shares what is left evenly."""
    left = (1.0 - values.double().exp().sum(1, keepdim=True)).clamp_min(1e-12).log()
    rest = (left - torch.tensor(float(classes - values.shape[1])).log()).to(values.dtype)
    return rest.expand(-1, classes).scatter(1, places.long(), values)


def decoupled(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, target: float, others: float
) -> Tensor:
    """Zhao et al., Decoupled Knowledge Distillation, arXiv:2203.08679.

    ``target`` weighs the KL of (the label's probability, all the rest), ``others`` that among the other classes; soft
    targets are both with weights 1 and 1 - p(label).
    """
    student, teacher = student / temperature, teacher / temperature
    mine = F.one_hot(labels, student.shape[1]).bool()
    s, t = F.log_softmax(student, 1), F.log_softmax(teacher, 1)

    def two(log: Tensor) -> Tensor:
        return torch.stack([log[mine], log.masked_fill(mine, -torch.inf).logsumexp(1)], 1)

    on_target = F.kl_div(two(s), two(t), reduction="batchmean", log_target=True)
    rows, classes = student.shape
    without = [F.log_softmax(scores[~mine].view(rows, classes - 1), 1) for scores in (student, teacher)]
    on_others = F.kl_div(without[0], without[1], reduction="batchmean", log_target=True)
    return temperature**2 * (target * on_target + others * on_others)


def dist(student: Tensor, teacher: Tensor, temperature: float, between: float, within: float) -> Tensor:
    """Huang et al., Knowledge Distillation from A Stronger Teacher (DIST), arXiv:2205.10536.

    1 - Pearson correlation of the probabilities, over the classes of each row (``between``) and over the rows of each
    class (``within``).
    """
    s, t = (F.softmax(scores / temperature, 1) for scores in (student, teacher))
    rows, columns = 1 - _pearson(s, t).mean(), 1 - _pearson(s.T, t.T).mean()
    return temperature**2 * (between * rows + within * columns)


def _pearson(one: Tensor, other: Tensor) -> Tensor:
    return F.cosine_similarity(one - one.mean(1, keepdim=True), other - other.mean(1, keepdim=True), dim=1, eps=1e-8)


def listwise(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cao et al., Learning to Rank: From Pairwise to Listwise Approach (ListNet, ICML 2007), with a teacher's scores.

    Each row is one query's list of items; cross entropy of the top-one probabilities, less the teacher's entropy.
    """
    return soft_targets(student, teacher, temperature) / temperature**2


def pairwise(student: Tensor, teacher: Tensor) -> Tensor:
    """Burges et al., Learning to Rank using Gradient Descent (RankNet, ICML 2005), with a teacher's probabilities.

    For all pairs of items of a row: the cross entropy of sigmoid(s_i - s_j) against sigmoid(t_i - t_j).
    """
    count = student.shape[1]
    first, second = torch.triu_indices(count, count, offset=1, device=student.device)
    margins, wanted = student[:, first] - student[:, second], (teacher[:, first] - teacher[:, second]).sigmoid()
    return F.binary_cross_entropy_with_logits(margins, wanted)


def margin(student: Tensor, teacher: Tensor) -> Tensor:
    """Hofstaetter et al., cross-architecture distillation for ranking (Margin-MSE), arXiv:2010.02666, all pairs."""
    count = student.shape[1]
    first, second = torch.triu_indices(count, count, offset=1, device=student.device)
    return F.mse_loss(student[:, first] - student[:, second], teacher[:, first] - teacher[:, second])
