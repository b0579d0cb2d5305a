"""Losses between what student and teacher compute on the way: features in, a scalar out. One function a paper.

A feature has its batch first: ``[rows, channels]``, ``[rows, tokens, channels]`` or
``[rows, channels, height, width]``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def squared(student: Tensor, teacher: Tensor) -> Tensor:
    """Romero et al., FitNets: Hints for Thin Deep Nets, arXiv:1412.6550: mean squared error, shapes equal."""
    return F.mse_loss(student, teacher)


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Sanh et al., DistilBERT, arXiv:1910.01108: 1 - cosine of the channels, which are last, or second of images."""
    axis = 1 if student.ndim != 3 else 2
    return (1 - F.cosine_similarity(student, teacher, dim=axis)).mean()


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Zagoruyko and Komodakis, Paying More Attention to Attention, arXiv:1612.03928.

    Squared distance of the normalized maps of squared activations, summed over channels: widths may differ.
    """
    axis = 1 if student.ndim != 3 else 2
    maps = [F.normalize(each.square().sum(axis).flatten(1), dim=1) for each in (student, teacher)]
    return (maps[0] - maps[1]).square().sum(1).mean()


def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """Tung and Mori, Similarity-Preserving Knowledge Distillation, arXiv:1907.09682.

    Squared Frobenius distance of the row-normalized matrices of products between the rows of the batch, over rows^2.
    """
    grams = [F.normalize(each.flatten(1) @ each.flatten(1).T, dim=1) for each in (student, teacher)]
    return (grams[0] - grams[1]).square().sum() / student.shape[0] ** 2


def distances(student: Tensor, teacher: Tensor) -> Tensor:
    """Park et al., Relational Knowledge Distillation, arXiv:1904.05068: the distance-wise loss.

    Huber loss between the distances of all pairs of rows, in units of their mean.
    """
    return F.smooth_l1_loss(_distances(student.flatten(1)), _distances(teacher.flatten(1)))


def angles(student: Tensor, teacher: Tensor) -> Tensor:
    """Park et al., arXiv:1904.05068: the angle-wise loss. Huber loss between the cosines of all triples of rows."""
    return F.smooth_l1_loss(_angles(student.flatten(1)), _angles(teacher.flatten(1)))


def _distances(rows: Tensor) -> Tensor:
    first, second = torch.triu_indices(len(rows), len(rows), offset=1, device=rows.device)
    found = (rows[first] - rows[second]).square().sum(1).clamp_min(1e-12).sqrt()
    return found / found.mean().clamp_min(1e-12)


def _angles(rows: Tensor) -> Tensor:
    directions = F.normalize(rows.unsqueeze(0) - rows.unsqueeze(1), dim=2)  # [at, other, channels]
    return torch.bmm(directions, directions.transpose(1, 2))


def contrastive(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Tian et al., Contrastive Representation Distillation, arXiv:1910.10699, without their memory bank.

    Each row of the student has to find its own teacher row among all of the batch (InfoNCE, arXiv:1807.03748). Widths
    equal.
    """
    s, t = (F.normalize(each.flatten(1), dim=1) for each in (student, teacher))
    return F.cross_entropy(s @ t.T / temperature, torch.arange(len(s), device=s.device))


def attention_maps(student: Tensor, teacher: Tensor) -> Tensor:
    """Jiao et al., TinyBERT, arXiv:1909.10351, with the KL divergence of MiniLM, arXiv:2002.10957.

    ``[rows, heads, queries, keys]`` log-probabilities; averaged over heads where their numbers differ.
    """
    if student.shape[1] != teacher.shape[1]:
        student, teacher = (each.exp().mean(1, keepdim=True).clamp_min(1e-12).log() for each in (student, teacher))
    per_query = (teacher.exp() * (teacher - student)).nan_to_num(0.0).sum(-1)  # a masked key: 0 * (-inf - -inf)
    return per_query.mean()


def value_relations(student: Tensor, teacher: Tensor) -> Tensor:
    """Wang et al., MiniLM, arXiv:2002.10957: KL of softmax(V V^T / sqrt(d)) between the tokens, any widths.

    ``[rows, heads, tokens, width]``; heads are joined where their numbers differ (MiniLMv2, arXiv:2012.15828).
    """
    if student.shape[1] != teacher.shape[1]:
        student, teacher = (each.transpose(1, 2).flatten(2).unsqueeze(1) for each in (student, teacher))
    logs = [F.log_softmax(each @ each.transpose(-1, -2) / each.shape[-1] ** 0.5, -1) for each in (student, teacher)]
    return attention_maps(*logs)
