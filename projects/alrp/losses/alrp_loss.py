"""Average Localisation-Recall-Precision (aLRP) loss."""

from __future__ import annotations

import math
from typing import NamedTuple
import torch
import torch.distributed as dist
from torch import Tensor, nn

from .backends.choice import backend
from .inputs import checked_logits, result_dtype
from .ranking import ErrorDriven, ValuePerPositive, rank_positives
from .uncompiled import uncompiled


class ALRPLossOutput(NamedTuple):
    """What :func:`alrp_loss` returns.

    Attributes:
        cls: scalar in [0, 1), ``mean_i FP_i / rank_i``; sends its gradient to the logits.
        loc: scalar >= 0, the localisation part; sends its gradient to the localisation errors.
        rank: (P,) smoothed rank of each positive in ``targets`` order, without gradient.
    """

    cls: Tensor
    loc: Tensor
    rank: Tensor


@uncompiled
def alrp_loss(
    logits: Tensor,
    targets: Tensor,
    loc_errors: Tensor,
    *,
    delta: float = 1.0,
    eps: float = 1e-5,
    group: dist.ProcessGroup | None = None,
) -> ALRPLossOutput:
    """Average LRP loss over all positives of a mini-batch (Oksuz et al., arXiv:2009.13592, Eq. 9).

    ``cls + loc`` is the aLRP value. The gradient of ``cls`` w.r.t. ``logits`` is the paper's
    error-driven update, which also carries the localisation errors of better ranked positives; it
    is not the derivative of ``cls``. ``loc`` sends no gradient to ``logits``, ``cls`` none to
    ``loc_errors``.

    Everything passed in one call is ranked together, so the batch size per process is part of the
    loss. As published, the sums of ``loc`` run over the hard order of the positives (equal logits:
    lowest index first) while ``rank`` is smoothed.

    Time is O(S log P), memory O(S + P); sums are in float64 (float32 on MPS, which lacks it). Kept
    from forward to backward: 2 bytes per entry (4 from 16,384 positives on), up to 0.3 KB per
    positive, and for half precision logits their float32 copy. Used during forward by operators of
    PyTorch, where neither compiled loops nor kernels run: about 10 bytes per entry, 50 for each of
    up to 2^22 entries, and on a GPU 4 KB per positive; by the kernels of a GPU 1 KB per positive,
    and beyond 8 million entries 1 KB more for every 16 million.

    Args:
        logits: (S,) raw scores, float16, bfloat16, float32 or float64.
        targets: (S,) integers; 1 positive, 0 negative, anything else (-1) ignored. An ignored
            entry may hold any value and gets exactly zero gradient.
        loc_errors: (P,) localisation errors >= 0, one per positive in the order of
            ``targets.eq(1).nonzero()``; see :func:`alrp.losses.localization_error`.
        delta: half width of the linear part of the step, in logit units; 1e-30 to 1e30. Rounding
            errors grow like ``1e-16 * max(abs(logits)) / delta``.
        eps: a positive with no more than ``eps`` false positives above it sends no gradient to the
            logits, since no negative is there to swap it with; >= 0.
        group: rank the batches of all processes of this group as one. All of them must call the
            loss, also those without positives; O(P) numbers are exchanged. Every process gets the
            value of the whole batch. ``DistributedDataParallel`` averages their gradients to those
            of the whole batch in one process. A wrong shape, dtype or option is refused before any
            exchange: if only one process has it, the others wait in vain. None: this process alone,
            as published.

    Returns:
        ALRPLossOutput: ``cls`` and ``rank`` in the dtype of the logits, ``loc`` in that of the
        errors, but at least float32. Without positives both parts are 0, with zero gradients.

    Raises:
        TypeError: if an input is no tensor.
        ValueError: on a wrong shape, dtype, device or length, a ``delta`` outside its range, an
            ``eps`` that is negative or not finite, or negative localisation errors.
        FloatingPointError: if a valid logit or a localisation error is NaN or Inf, if a positive's
            logit exceeds 1e12 ``delta`` (2e3 on MPS), or if another process of the group refused
            its inputs.

    Example:
        >>> logits = torch.tensor([2.0, 0.5, -1.0, 1.2], requires_grad=True)
        >>> output = alrp_loss(logits, torch.tensor([1, 1, 0, 0]), torch.tensor([0.2, 0.6]))
        >>> (output.cls + output.loc).backward()
    """
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be a finite number >= 0, but is {eps}; the default is 1e-5.")
    logits = checked_logits(logits, targets, delta, loc_errors=loc_errors)
    meaning = "an error is 0 for a perfect box, and else positive"
    per_positive = ValuePerPositive("loc_errors", loc_errors, meaning)
    ranking = rank_positives(logits, targets, delta, per_positive, group)
    if ranking is None:
        # An empty sum is 0 even if an ignored logit is Inf, and keeps the inputs in the graph.
        cls = logits[:0].sum()
        loc = loc_errors.sum().to(result_dtype(loc_errors))
        return ALRPLossOutput(cls, loc, loc_errors.detach().to(cls.dtype))

    own = ranking.shared.own_of
    with torch.no_grad():
        found = backend(logits.device).alrp_values(
            *(ranking.rows, ranking.values, ranking.order, eps),
            *(logits.dtype, result_dtype(loc_errors)),
        )
        weights = ranking.shared.scaled_up(own(found.loc_weights))
    cls = ErrorDriven.apply(logits, found.cls, ranking, found.pushes)
    loc = _Weighted.apply(loc_errors, found.loc, weights)
    return ALRPLossOutput(cls, loc, own(found.rank))


class _Weighted(torch.autograd.Function):
    """Gives a value the gradient of the weighted sum of this process's localisation errors."""

    @staticmethod
    def forward(ctx, loc_errors: Tensor, value: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(weights)
        ctx.dtype = loc_errors.dtype
        return value.detach()

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        (weights,) = ctx.saved_tensors
        return (weights * grad_output).to(ctx.dtype), None, None


class ALRPLoss(nn.Module):
    """:func:`alrp_loss` with fixed options."""

    def __init__(
        self,
        delta: float = 1.0,
        eps: float = 1e-5,
        *,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.delta = delta
        self.eps = eps
        self.group = group

    def forward(self, logits: Tensor, targets: Tensor, loc_errors: Tensor) -> ALRPLossOutput:
        return alrp_loss(
            logits, targets, loc_errors, delta=self.delta, eps=self.eps, group=self.group
        )

    def extra_repr(self) -> str:
        return f"delta={self.delta}, eps={self.eps}"
