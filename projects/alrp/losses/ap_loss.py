"""Average Precision (AP) loss with interpolated precision."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .backends.choice import backend
from .inputs import checked_logits
from .ranking import ErrorDriven, rank_positives
from .uncompiled import uncompiled


@uncompiled
def ap_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    delta: float = 1.0,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """AP loss, one minus the mean interpolated precision (Chen et al., arXiv:1904.06373, Alg. 1).

    The precision of a positive is replaced by the best precision at its rank or below, as COCO's AP
    does. The gradient is the paper's error-driven update, not the derivative of the value.

    Args:
        logits: (S,) raw scores, float16, bfloat16, float32 or float64.
        targets: (S,) integers; 1 positive, 0 negative, anything else (-1) ignored.
        delta: half width of the linear part of the step, in logit units; 1e-30 to 1e30.
        group: processes whose batches are ranked as one, see :func:`alrp.losses.alrp_loss`.

    Returns:
        Tensor: scalar in [0, 1); float32 for half precision logits, else their dtype. Without
        positives 0, with zero gradients.

    Raises:
        TypeError: if an input is no tensor.
        ValueError: on a wrong shape, dtype or device, or a ``delta`` outside its range.
        FloatingPointError: as :func:`alrp.losses.alrp_loss`.

    Example:
        >>> import torch
        >>> logits = torch.tensor([2.0, 0.5, 1.2], requires_grad=True)
        >>> ap_loss(logits, torch.tensor([1, 1, 0])).backward()
    """
    logits = checked_logits(logits, targets, delta)
    ranking = rank_positives(logits, targets, delta, group=group)
    if ranking is None:
        return logits[:0].sum()

    with torch.no_grad():
        value, pushes = backend(logits.device).ap_values(ranking.rows, logits.dtype)
    return ErrorDriven.apply(logits, value, ranking, pushes)


class APLoss(nn.Module):
    """:func:`ap_loss` with fixed options."""

    def __init__(self, delta: float = 1.0, *, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.delta = delta
        self.group = group

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return ap_loss(logits, targets, delta=self.delta, group=self.group)

    def extra_repr(self) -> str:
        return f"delta={self.delta}"
