"""The smoothed ranking shared by all ranking losses: exact sums over pairs without forming pairs.

Shape shorthand: S entries of this process, P positives, of all processes that are ranked together;
P_own of them are among the S. Whatever is said of all P stands in the ascending order of their
logits; of equal ones the later stands before the earlier. float64 is float32 on MPS, which has no
float64.
"""

from __future__ import annotations

import dataclasses
from typing import Optional
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .device import accumulation_dtype, backend
from .inputs import checked_positives
from .pool import Pool
from .step_matrix import StepMatrix


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The positives of a mini-batch ranked among its positives and negatives.

    It does not hold on to the logits. They are kept by autograd, for as long as it needs them.

    Attributes:
        positives: (P_own,) int64, indices of the positives among the S, ascending.
        pool: where they stand among those of all processes.
        order: (P,) int64, index in the pool of each.
        false_positives: (P,) float64, smoothed number of negatives ranked above each positive.
        rank: (P,) float64, smoothed rank of each positive, >= 1.
        matrix: the smoothed step with the positives as queries.
        cells: (S,) where the negatives lie in the matrix; None where autograd keeps them.
    """

    positives: Tensor
    pool: Pool
    order: Tensor
    false_positives: Tensor
    rank: Tensor
    matrix: StepMatrix
    cells: Optional[Tensor]

    def gather_sorted(self, own_values: Tensor) -> Tensor:
        """(P,) float64 values of all positives, from (P_own,) of this process in targets order.

        All processes of the pool must call it.
        """
        pooled = self.pool.gather(own_values).index_select(0, self.order)
        return pooled.to(self.rank.dtype)

    def own(self, values: Tensor) -> Tensor:
        """(P_own,) values of this process's positives in targets order, of (P,) for all."""
        return torch.empty_like(values).index_copy_(0, self.order, values)[self.pool.own]

    def sum_above(self, values: Tensor) -> Tensor:
        """``sum_{k != i} values[k] * H(s_k - s_i)`` over the other positives, (P,) float64."""
        return self.matrix.among_queries(values) - 0.5 * values

    def gradient(self, errors: Tensor, cells: Tensor, logits: Tensor, scale: Tensor) -> Tensor:
        """The error-driven update of the logits (arXiv:2009.13592, Eqs. 4 to 6 and Alg. 1).

        Each positive i is pushed up by ``errors[i] / P``; the negatives that outrank it are pushed
        down by the same total, shared in proportion to ``H(s_j - s_i)``.

        Args:
            errors: (P,) float64 >= 0; 0 wherever ``false_positives`` is 0.
            cells: (S,) where the negatives lie in the matrix.
            logits: (S,) those that were ranked.
            scale: scalar, the gradient of what is differentiated with respect to the loss.

        Returns:
            Tensor: (S,) in the dtype of ``logits``; sums to zero over all processes.
        """
        scale = scale.to(errors.dtype) * self.pool.num_processes
        scaled = errors * (scale / errors.numel())
        shares = torch.where(errors > 0, scaled / self.false_positives, 0.0)
        gradient = self.matrix.rmatvec(shares, cells, logits)
        own = -self.own(scaled).to(gradient.dtype)
        return gradient.index_copy_(0, self.positives, own)


@torch.no_grad()
def rank_positives(
    logits: Tensor,
    targets: Tensor,
    delta: float,
    loc_errors: Optional[Tensor] = None,
    group: Optional[dist.ProcessGroup] = None,
) -> Optional[Ranking]:
    """Rank the positives of a mini-batch, and check the values of its inputs on the way.

    The device is read once, for the number of positives together with the checks on values; with a
    group once more, for the numbers of positives of its processes.

    Args:
        logits: (S,) of :func:`checked_logits`.
        targets: (S,) 1 positive, 0 negative, anything else ignored.
        delta: half width of the step.
        loc_errors: (P_own,) checked to match the positives, if given.
        group: processes whose mini-batches are ranked together; None for this one's alone.

    Returns:
        Ranking: or None if no process has a positive.

    Raises:
        ValueError: if there is not one localisation error per positive.
        FloatingPointError: if a logit that is not ignored, or a localisation error, is not finite,
            or a positive's logit so large that ``delta`` vanishes beside it.
    """
    logits, targets = logits.contiguous(), targets.contiguous()
    try:
        positives = checked_positives(logits, targets, loc_errors, delta)
    except (ValueError, FloatingPointError):
        Pool.stop(logits.device, group)
        raise
    pool = Pool(positives.numel(), logits.device, group)
    if len(pool) == 0:
        return None
    pos_logits = logits.index_select(0, positives).to(accumulation_dtype(logits.device))
    pos_logits = pool.gather(pos_logits)
    matrix_type = backend(logits.device).Matrix
    # Flipped, not sorted upwards: of equal positives the first is to rank highest.
    order = matrix_type.descending_order(pos_logits).flip(0)
    matrix = matrix_type(pos_logits.index_select(0, order), delta)
    negatives = matrix.locate(logits, targets)
    # H(0) = 1/2 of each positive against itself is not part of its rank.
    num_above = matrix.among_queries() - 0.5
    false_positives = pool.sum(matrix.matvec(negatives))
    rank = (1.0 + num_above + false_positives).clamp(min=1.0)  # it is, but for rounding
    return Ranking(positives, pool, order, false_positives, rank, matrix, negatives.cells)


class ErrorDriven(torch.autograd.Function):
    """A value whose gradient is given, not derived (arXiv:2009.13592, Sec. 3).

    The gradient is formed in backward, already scaled; until then only the logits and their cells
    are kept.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, value: Tensor, ranking: Ranking, errors: Tensor):
        ctx.save_for_backward(logits, errors, ranking.cells)
        ctx.ranking = dataclasses.replace(ranking, cells=None)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor):
        logits, errors, cells = ctx.saved_tensors
        return ctx.ranking.gradient(errors, cells, logits, grad_output), None, None, None
