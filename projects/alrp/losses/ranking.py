"""The smoothed ranking shared by all ranking losses: exact sums over pairs without forming pairs.

Shape shorthand: S entries of this process, P positives, of all processes that are ranked together;
P_own of them are among the S.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional, Union
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .negatives import GridNegatives, SearchedNegatives
from .pool import Pool
from .step_matrix import StepMatrix, accumulation_dtype, nonzero_indices

# Least number of float steps in half the width of the smoothed step.
_RESOLUTION = 2.0**12


@dataclass(frozen=True)
class Ranking:
    """The positives of a mini-batch ranked among its positives and negatives.

    It does not hold on to the logits: autograd keeps them, for as long as it needs them.

    Attributes:
        positives: (P_own,) int64, indices of the positives among the S, ascending.
        pool: where they stand among the P.
        false_positives: (P,) float64, smoothed number of negatives ranked above each positive.
        rank: (P,) float64, smoothed rank of each positive, >= 1.
        matrix: the smoothed step with the positives as queries.
        negatives: its product with the negatives as keys.
    """

    positives: Tensor
    pool: Pool
    false_positives: Tensor
    rank: Tensor
    matrix: StepMatrix
    negatives: Union[GridNegatives, SearchedNegatives]

    def sum_above(self, values: Tensor) -> Tensor:
        """``sum_{k != i} values[k] * R_ik`` over the other positives, (P,) float64."""
        return self.matrix.among_queries(values) - 0.5 * values.to(self.rank.dtype)

    def gradient(self, errors: Tensor, logits: Tensor, targets: Tensor, scale: Tensor) -> Tensor:
        """The error-driven update of the logits (arXiv:2009.13592, Eqs. 4 to 6 and Alg. 1).

        Each positive i is pushed up by ``errors[i] / P``; the negatives that outrank it are pushed
        down by the same total, shared in proportion to ``H(s_j - s_i)``.

        Args:
            errors: (P,) float64 >= 0; 0 wherever ``false_positives`` is 0.
            logits: (S,) those that were ranked.
            targets: (S,) likewise.
            scale: scalar, the gradient of what is differentiated with respect to the loss.

        Returns:
            Tensor: (S,) in the dtype of ``logits``; sums to zero over all processes.
        """
        scale = scale.to(errors.dtype) * self.pool.num_processes
        scaled = errors * (scale / errors.numel())
        shares = torch.where(errors > 0, scaled / self.false_positives, 0.0)
        gradient = self.negatives.rmatvec(shares, logits, targets)
        return gradient.index_copy_(0, self.positives, -scaled[self.pool.own].to(gradient.dtype))


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
    try:
        positives = _checked_positives(logits, targets, loc_errors, delta)
    except (ValueError, FloatingPointError):
        Pool.stop(logits.device, group)
        raise
    pool = Pool(positives.numel(), logits.device, group)
    if len(pool) == 0:
        return None
    pos_logits = logits.index_select(0, positives).to(accumulation_dtype(logits.device))
    matrix = StepMatrix(pool.gather(pos_logits), delta)
    on_cpu = logits.device.type == "cpu"
    negatives = (GridNegatives if on_cpu else SearchedNegatives)(matrix, logits, targets)
    # H(0) = 1/2 of each positive against itself is not part of its rank.
    num_above = matrix.among_queries() - 0.5
    false_positives = pool.sum(negatives.matvec())
    return Ranking(
        positives,
        pool,
        false_positives,
        (1.0 + num_above + false_positives).clamp(min=1.0),  # it is, but for rounding
        matrix,
        negatives,
    )


def checked_logits(logits: Tensor, targets: Tensor, delta: float) -> Tensor:
    """The logits in at least float32, once shapes, dtypes and delta are known to be right.

    The cast stands outside :class:`ErrorDriven`, because the gradient of half precision logits may
    fit their dtype only with the scale of mixed precision, which it is multiplied with there.

    Raises:
        ValueError: on a wrong shape, dtype or delta.
    """
    if logits.dim() != 1 or targets.shape != logits.shape:
        raise ValueError(
            "logits and targets must be 1-D and of one length, but have shapes "
            f"{tuple(logits.shape)} and {tuple(targets.shape)}; flatten both in the same order."
        )
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating point, but are {logits.dtype}; pass raw scores.")
    if targets.is_floating_point() or targets.is_complex():
        raise ValueError(
            f"targets must be integers in {{1, 0, -1}}, but are {targets.dtype}; "
            "convert them with .to(torch.int8)."
        )
    if not 0 < delta < float("inf"):
        raise ValueError(
            f"delta must be > 0 and finite, but is {delta}; the published value is 1.0, and a tiny "
            "one such as 1e-3 comes close to hard ranking."
        )
    return logits.to(result_dtype(logits))


def _checked_positives(
    logits: Tensor, targets: Tensor, loc_errors: Optional[Tensor], delta: float
) -> Tensor:
    """Indices of the positives; their number and all checks on values are read at once."""
    # Into its own dtype: comparisons into bool are many times slower on the CPU.
    is_positive = torch.eq(targets, 1, out=torch.empty_like(targets))
    # Numbers of entries are exact in float64, and in float32 up to 2^24.
    dtype = accumulation_dtype(logits.device)
    facts = [is_positive.count_nonzero().to(dtype), _largest(logits).to(dtype)]
    if loc_errors is not None:
        facts.append(_largest(loc_errors).to(dtype))
    num_positives, *largest = torch.stack(facts).tolist()
    num_positives = int(num_positives)
    if loc_errors is not None and loc_errors.numel() != num_positives:
        raise ValueError(
            f"loc_errors has {loc_errors.numel()} elements but targets has {num_positives} "
            "positives; pass one error per positive, in targets order."
        )
    if not math.isfinite(largest[0]):
        _refuse_non_finite("logits", logits, (targets == 1) | (targets == 0))
    if loc_errors is not None and not math.isfinite(largest[1]):
        _refuse_non_finite("loc_errors", loc_errors, torch.ones_like(loc_errors, dtype=torch.bool))
    positives = _indices_of_few(is_positive, num_positives)
    if not largest[0] * torch.finfo(dtype).eps * _RESOLUTION <= delta:
        _refuse_out_of_scale(logits.index_select(0, positives), delta, dtype)
    return positives


def _largest(tensor: Tensor) -> Tensor:
    """Greatest absolute value, a scalar; NaN with NaN among the values, 0 without values."""
    if tensor.numel() == 0:
        return tensor.new_zeros(())
    return torch.stack(torch.aminmax(tensor)).abs().max()


def _refuse_out_of_scale(pos_logits: Tensor, delta: float, dtype: torch.dtype) -> None:
    """Raise if ``logit - delta`` and ``logit + delta`` are hardly told apart."""
    largest = _largest(pos_logits).item()
    if largest * torch.finfo(dtype).eps * _RESOLUTION > delta:
        raise FloatingPointError(
            f"logits: positives reach {largest:.3g}, beside which delta {delta:g} vanishes; look "
            "for a learning rate that is too high or broken weights, or take a larger delta."
        )


def _refuse_non_finite(name: str, tensor: Tensor, matters: Tensor) -> None:
    """Raise if one of the values that matter is not finite."""
    num_bad = int((matters & ~torch.isfinite(tensor)).count_nonzero())
    if num_bad:
        raise FloatingPointError(
            f"{name}: {num_bad} of {tensor.numel()} values that enter the ranking are NaN or Inf; "
            "look for a learning rate that is too high, degenerate boxes, or broken weights."
        )


def _indices_of_few(marks: Tensor, num_marked: int) -> Tensor:
    """Indices of the nonzero entries, without asking a GPU for their number."""
    if marks.device.type == "cpu":
        return nonzero_indices(marks)
    try:
        return torch.nonzero_static(marks, size=num_marked).squeeze(1)
    except (AttributeError, NotImplementedError):  # older PyTorch, or its CUDA build
        return marks.nonzero().squeeze(1)


class ErrorDriven(torch.autograd.Function):
    """A value whose gradient is given, not derived (arXiv:2009.13592, Sec. 3).

    The gradient is formed in backward, from the ranking and the errors of its positives: so it
    needs no memory before, and no pass to scale it.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, value: Tensor, ranking: Ranking, errors):
        ctx.save_for_backward(logits, targets, errors)
        ctx.ranking = ranking
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor):
        logits, targets, errors = ctx.saved_tensors
        return ctx.ranking.gradient(errors, logits, targets, grad_output), None, None, None, None


def result_dtype(tensor: Tensor) -> torch.dtype:
    """Losses of half precision inputs are float32, those of float32 and float64 keep the dtype."""
    return torch.promote_types(tensor.dtype, torch.float32)
