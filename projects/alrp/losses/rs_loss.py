"""Rank & Sort (RS) loss."""

from __future__ import annotations

from typing import NamedTuple
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .backends.choice import backend
from .backends.interface import HARD_STEP, RSValues
from .inputs import checked_logits
from .ranking import Ranking, ValuePerPositive, gradient_of_logits, rank_positives
from .uncompiled import uncompiled


class RSLossOutput(NamedTuple):
    """What :func:`rs_loss` returns; the loss is the sum of both.

    Attributes:
        ranking: scalar in [0, 1), ``mean_i FP_i / rank_i``.
        sorting: scalar in [0, 1), mean over the positives of current minus target sorting error.
    """

    ranking: Tensor
    sorting: Tensor


@uncompiled
def rs_loss(
    logits: Tensor,
    targets: Tensor,
    ious: Tensor,
    *,
    delta: float = 0.5,
    group: dist.ProcessGroup | None = None,
) -> RSLossOutput:
    """Rank & Sort loss over all positives of a mini-batch (Oksuz et al., ICCV 2021).

    It ranks the positives above the negatives, and sorts the positives by the IoUs of their boxes.
    Each part has the paper's error-driven update as its gradient, not the derivative of its value.
    The published code gives the gradient of the sum, and gives it to the ranking loss alone: its
    two losses must have one weight. Here each part sends its own gradient; with equal weights the
    result is the published one.

    The rank of a positive among the positives counts itself by H(0), 0.5 if ``delta`` is above 0,
    where aLRP and AP Loss count 1. A positive with IoU 0 stays a positive; the published code takes
    it for a negative. The sorting part jumps where two IoUs become equal, so compute them in at
    least float32.

    Time is O((S + P) log P), memory O(S + P), as for :func:`alrp.losses.alrp_loss`; on a GPU with
    Triton, up to 65,536 positives are compared pair by pair. Rounding errors grow like
    ``1e-16 * P * max(abs(logits)) / delta``.

    Args:
        logits: (S,) raw scores, float16, bfloat16, float32 or float64.
        targets: (S,) integers; 1 positive, 0 negative, anything else (-1) ignored. An ignored
            entry may hold any value and gets exactly zero gradient.
        ious: (P,) floating point in [0, 1], the IoU of each positive's predicted box with its
            ground truth, in the order of ``targets.eq(1).nonzero()``; gets no gradient.
        delta: half width of the linear part of the step, in logit units; 1e-30 to 1e30, or 0 for
            the hard step, which is 1 at 0. 0.5 as published.
        group: processes whose batches are ranked as one, see :func:`alrp.losses.alrp_loss`.

    Returns:
        RSLossOutput: two scalars, float32 for half precision logits, else their dtype. Without
        positives both are 0, with zero gradients.

    Raises:
        TypeError: if an input is no tensor.
        ValueError: on a wrong shape, dtype, device or length, a ``delta`` outside its range, or
            IoUs outside [0, 1].
        FloatingPointError: if a valid logit or an IoU is NaN or Inf, if a positive's logit exceeds
            1e12 ``delta`` (2e3 on MPS), or if another process of the group refused its inputs.

    Example:
        >>> logits = torch.tensor([2.0, 0.5, -1.0, 1.2], requires_grad=True)
        >>> output = rs_loss(logits, torch.tensor([1, 1, 0, 0]), torch.tensor([0.5, 0.9]))
        >>> (output.ranking + output.sorting).backward()
    """
    logits = checked_logits(logits, targets, delta or HARD_STEP.delta, ious=ious)
    per_positive = ValuePerPositive("ious", ious, "pass the IoU of each positive's box", most=1.0)
    ranking = rank_positives(logits, targets, delta, per_positive, group)
    if ranking is None:
        # An empty sum is 0 even if an ignored logit is Inf, and keeps the logits in the graph.
        return RSLossOutput(logits[:0].sum(), logits[:0].sum())

    with torch.no_grad():
        chosen, rows = backend(logits.device), ranking.rows
        sorting = chosen.sorting_errors(rows.matrix.queries, ranking.values, ranking.step)
        found = chosen.rs_values(rows, sorting, logits.dtype)
    return RSLossOutput(*_RankAndSort.apply(logits, ranking, found, sorting.gradient))


class _RankAndSort(torch.autograd.Function):
    """Gives each of the two values its part of the gradient, in one array."""

    @staticmethod
    def forward(
        ctx,
        logits: Tensor,
        ranking: Ranking,
        found: RSValues,
        among_positives: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(logits, ranking.rows.keys.cells, among_positives)
        ctx.matrix, ctx.update = ranking.rows.matrix, ranking.update(found.pushes)
        return found.ranking, found.sorting

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_ranking: Tensor, grad_sorting: Tensor):
        logits, cells, among_positives = ctx.saved_tensors
        among = among_positives, grad_sorting
        # After the hard step the logits do not matter: all that they find is constant in a cell.
        gradient = gradient_of_logits(ctx, logits, cells, grad_ranking, among)
        return gradient, None, None, None


class RSLoss(nn.Module):
    """:func:`rs_loss` with fixed options."""

    def __init__(self, delta: float = 0.5, *, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.delta = delta
        self.group = group

    def forward(self, logits: Tensor, targets: Tensor, ious: Tensor) -> RSLossOutput:
        return rs_loss(logits, targets, ious, delta=self.delta, group=self.group)

    def extra_repr(self) -> str:
        return f"delta={self.delta}"
