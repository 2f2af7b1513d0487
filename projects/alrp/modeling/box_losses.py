"""Losses of the boxes of positives, and the weight that balances them with the classification.

Every one of them may stand beside every classification loss of :mod:`alrp.modeling.head_losses`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Iterable
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from ..losses import SelfBalance, localization_error

# Least sum of score weights, and least area of a union, that is divided by. Both as published.
_LEAST_SCORE_SUM = 1e-12
_LEAST_UNION = 1e-6


class BoxLoss(nn.Module, ABC):
    """A loss of P predicted boxes and their matched ground truth.

    Attributes:
        compares_boxes: whether it takes boxes, or what the head predicts, such as deltas.
        reads_scores: whether it takes the scores of the candidates.
    """

    compares_boxes: bool
    reads_scores = False

    @abstractmethod
    def forward(
        self,
        predicted: Tensor,
        expected: Tensor,
        scores: Tensor | None = None,
        *,
        group: dist.ProcessGroup | None = None,
    ) -> Tensor:
        """
        Args:
            predicted: (P, 4) boxes XYXY in any frame if ``compares_boxes``, else deltas.
            expected: (P, 4) the ground truth in the same form.
            scores: (P,) the greatest score of each candidate over all classes, in [0, 1], without
                gradient; if ``reads_scores``.
            group: processes whose positives are averaged as one batch, which all must call; None:
                this process alone.

        Returns:
            Tensor: scalar >= 0, at least float32. Without positives 0, with zero gradients.
        """


class WeightedGIoULoss(BoxLoss):
    """Mean of 1 - GIoU in which a box weighs what its candidate scores, in [0, 2].

    The box loss of RS Loss (Oksuz et al., ICCV 2021). As published, the score is the greatest over
    all classes, which need not be that of the ground truth.
    """

    compares_boxes = True
    reads_scores = True

    def forward(self, predicted, expected, scores=None, *, group=None):
        losses = _giou_losses(predicted, expected)
        return pooled_mean((scores * losses).sum(), scores.sum(), group)


class GIoULoss(BoxLoss):
    """Mean of 1 - GIoU (Rezatofighi et al., arXiv:1902.09630), in [0, 2]."""

    compares_boxes = True

    def forward(self, predicted, expected, scores=None, *, group=None):
        losses = _giou_losses(predicted, expected)
        return pooled_mean(losses.sum(), len(losses), group)


class SmoothL1Loss(BoxLoss):
    """Smooth L1 loss between deltas, a mean over all 4 P numbers.

    Args:
        beta: where the loss turns from squared to absolute error.
        per_box: divide by P instead of 4 P, as FoveaBox with focal loss is published.
    """

    compares_boxes = False

    def __init__(self, beta: float = 1.0, *, per_box: bool = False) -> None:
        super().__init__()
        if not beta >= 0:
            raise ValueError(f"SmoothL1Loss: beta must be at least 0, but is {beta}.")
        self.beta = beta
        self.per_box = per_box

    def forward(self, predicted, expected, scores=None, *, group=None):
        # A sum is 0 in the graph without positives, where a mean would be NaN.
        total = F.smooth_l1_loss(
            predicted.float(), expected.float(), beta=self.beta, reduction="sum"
        )
        return pooled_mean(total, len(predicted) if self.per_box else predicted.numel(), group)


class IterationBalance(nn.Module):
    """Weight that gives the box loss the value of the classification loss, in every step.

    From the first step on, unlike :class:`alrp.losses.SelfBalance`, and as RS Loss does (Oksuz et
    al., ICCV 2021). It has no state, and each process balances its own losses.

    The published weight is unbounded. Where boxes are almost exact, as where ground truth is added
    to the proposals and nothing else is positive, it reaches thousands, and so do the gradients of
    the boxes. Here it ends at ``max_weight``.

    Args:
        max_weight: greatest weight. It is reached where the box loss is this many times smaller
            than the classification loss, as with 50 at a mean GIoU over 0.98.
    """

    def __init__(self, max_weight: float = 50.0) -> None:
        super().__init__()
        if not 0 < max_weight < float("inf"):
            raise ValueError(
                f"IterationBalance: max_weight must be a finite number > 0, but is {max_weight}."
            )
        self.max_weight = max_weight

    @torch.no_grad()
    def forward(self, classification: Tensor, boxes: Tensor) -> Tensor:
        """Weight of the box loss from the values of both losses; a scalar without gradient.

        It is 0 where the classification loss is 0, as for a batch without positives.
        """
        least = (classification / self.max_weight).clamp(min=torch.finfo(boxes.dtype).tiny)
        return classification / torch.maximum(boxes, least)

    def extra_repr(self) -> str:
        return f"max_weight={self.max_weight}"


@torch.no_grad()
def matched_iou(predicted: Tensor, expected: Tensor) -> Tensor:
    """(P,) IoU in [0, 1] of pairs of boxes (P, 4) XYXY, at least float32, without gradient."""
    dtype = torch.promote_types(predicted.dtype, torch.float32)
    predicted, expected = predicted.to(dtype), expected.to(dtype)
    top_left = torch.maximum(predicted[:, :2], expected[:, :2])
    bottom_right = torch.minimum(predicted[:, 2:], expected[:, 2:])
    overlap = (bottom_right - top_left).clamp(min=0).prod(1)
    areas = sum((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (predicted, expected))
    # Of equal boxes, rounding may give more than 1.
    return (overlap / (areas - overlap).clamp(min=_LEAST_UNION)).clamp(max=1)


def _giou_losses(predicted: Tensor, expected: Tensor) -> Tensor:
    """(P,) 1 - GIoU, which is the localisation error at tau 0.5."""
    return localization_error(predicted, expected, tau=0.5)


def pooled_mean(total: Tensor, size: Tensor | int, group: dist.ProcessGroup | None) -> Tensor:
    """``total / size`` of all processes of a group; 0 where there is nothing to divide.

    Each process returns the value of the whole batch. Its own gradients are multiplied by the
    number of processes, because ``DistributedDataParallel`` divides their sum by it.
    """
    if group is None:
        if isinstance(size, int):
            return total / max(size, 1)
        return total / torch.where(size < _LEAST_SCORE_SUM, 1.0, size)
    size = torch.as_tensor(size, dtype=total.dtype, device=total.device)
    sums = torch.stack([total.detach(), size])
    dist.all_reduce(sums, group=group)
    all_total, all_size = sums
    all_size = torch.where(all_size < _LEAST_SCORE_SUM, 1.0, all_size)
    own = total * (dist.get_world_size(group) / all_size)
    return own + (all_total / all_size - own.detach())


# Box loss -> its published balance.
_PUBLISHED_BALANCE = {
    "ranked": "period",
    "weighted_giou": "iteration",
    "giou": "iteration",
    "smooth_l1": "constant",
}


def build_box_loss(cfg, published: str) -> tuple[BoxLoss | None, nn.Module | float | None]:
    """Box loss by ``MODEL.ALRP.BOX_LOSS``, and its balance by ``MODEL.ALRP.SELF_BALANCE``.

    Args:
        cfg: with the keys of :func:`alrp.add_alrp_config`.
        published: the box loss that a ``BOX_LOSS`` of "" stands for.

    Returns:
        tuple[BoxLoss | None, nn.Module | float | None]: the loss, or None for the localisation part
        of aLRP; a ``SelfBalance`` whose period may be left open, an :class:`IterationBalance`, a
        constant, or None for a weight of 1.

    Raises:
        UserError: for an unknown name, or a combination without a meaning.
        ValueError: for a number out of range.
    """
    alrp = cfg.MODEL.ALRP
    name = alrp.BOX_LOSS or published
    _check_choice("MODEL.ALRP.BOX_LOSS", name, _PUBLISHED_BALANCE)
    if name == "ranked" and alrp.LOSS_TYPE != "alrp":
        raise UserError(
            'MODEL.ALRP.BOX_LOSS "ranked" is the localisation part of aLRP Loss, but '
            f'MODEL.ALRP.LOSS_TYPE is "{alrp.LOSS_TYPE}"; set BOX_LOSS "weighted_giou", or '
            'LOSS_TYPE "alrp".'
        )
    losses = {
        "ranked": lambda: None,
        "weighted_giou": WeightedGIoULoss,
        "giou": GIoULoss,
        "smooth_l1": lambda: SmoothL1Loss(alrp.SMOOTH_L1_BETA, per_box=alrp.LOSS_TYPE == "focal"),
    }
    return losses[name](), _build_balance(alrp.SELF_BALANCE, name)


def _build_balance(balance, box_loss: str) -> nn.Module | float | None:
    mode = balance.MODE or _PUBLISHED_BALANCE[box_loss]
    _check_choice("MODEL.ALRP.SELF_BALANCE.MODE", mode, _PUBLISHED_BALANCE.values())
    if not balance.ENABLED:
        return None
    if mode == "constant":
        return balance.WEIGHT
    if (mode == "period") != (box_loss == "ranked"):
        raise UserError(
            f'MODEL.ALRP.SELF_BALANCE.MODE "{mode}" does not go with the box loss "{box_loss}": '
            '"period" balances the two parts of aLRP Loss, so BOX_LOSS "ranked", and "iteration" '
            'the other box losses; set the MODE that fits, "constant", or for "ranked" in every '
            "iteration SELF_BALANCE.PERIOD 1."
        )
    if mode == "period":
        return SelfBalance(balance.PERIOD or None, balance.INIT_WEIGHT)
    return IterationBalance(balance.MAX_WEIGHT)


def _check_choice(key: str, name: str, choices: Iterable[str]) -> None:
    choices = dict.fromkeys(choices)
    if name not in choices:
        listed = ", ".join(f'"{choice}"' for choice in choices)
        raise UserError(f'{key} must be one of {listed}, or "" as published, but is "{name}".')
