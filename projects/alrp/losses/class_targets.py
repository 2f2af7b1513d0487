"""Targets of a detector with one logit per candidate and class."""

from __future__ import annotations

import torch
from torch import Tensor

from .inputs import check_tensors


def class_targets(gt_classes: Tensor, num_classes: int) -> Tensor:
    """Targets of the ranking losses, from the class of each candidate.

    They are in the order of ``logits.flatten()`` of (Q, K) logits. As a candidate has at most one
    class, the p-th positive target belongs to the p-th candidate with a foreground class: pass the
    errors of boxes in the order of the candidates.

    Args:
        gt_classes: (Q,) integers: 0 to K - 1 for a foreground class, K for the background, -1 for a
            candidate that is ignored.
        num_classes: K.

    Returns:
        Tensor: (Q * K,) int8: 1 at the class of a candidate, -1 in all columns of an ignored one,
        else 0. One-hot encoding would take eight times the memory.

    Raises:
        TypeError: if it is no tensor.
        ValueError: on a wrong shape or dtype. On a CPU also for a class out of range; on a GPU,
            which the check would stall, such a candidate counts as background.

    Example:
        >>> class_targets(torch.tensor([1, 2, -1]), num_classes=2).view(3, 2).tolist()
        [[0, 1], [0, 0], [-1, -1]]
    """
    check_tensors(gt_classes=gt_classes)
    if gt_classes.dim() != 1 or gt_classes.is_floating_point() or gt_classes.is_complex():
        raise ValueError(
            f"gt_classes must be (Q,) integers, but are {gt_classes.dtype} of shape "
            f"{tuple(gt_classes.shape)}; flatten the candidates of all images."
        )
    if gt_classes.device.type == "cpu":
        wrong = gt_classes[(gt_classes < -1) | (gt_classes > num_classes)]
        if len(wrong):
            raise ValueError(
                f"gt_classes must be 0 to {num_classes - 1} for a foreground class, {num_classes} "
                f"for the background or -1 for an ignored candidate, but hold {wrong[0].item()}."
            )
    ignored = (gt_classes == -1).to(torch.int8).neg()
    is_positive = (gt_classes >= 0) & (gt_classes < num_classes)
    targets = ignored[:, None].repeat(1, num_classes)
    column = gt_classes.long().clamp(0, num_classes - 1)[:, None]
    return targets.scatter_(1, column, torch.where(is_positive, 1, ignored)[:, None]).flatten()
