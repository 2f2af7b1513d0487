"""The smoothed ranking of positives and negatives, shared by all ranking losses.

Shape shorthand: S entries of this process; P positives of all processes that are ranked together,
P_own of them this process's. All (P,) tensors are in ascending order of the positives' logits;
among equal logits, the later entry comes first. "float64" means float32 on MPS, which lacks it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backends.choice import Backend, backend
from .backends.interface import HARD_STEP, Rows, Step, Survey, Update
from .inputs import NonFiniteError
from .processes import SharedPositives
from .reductions import accumulation_dtype
from .uncompiled import uncompiled

# delta must be at least so many float steps at the largest logit of a positive.
_RESOLUTION = 2.0**12


class ValuePerPositive(NamedTuple):
    """What a loss is given for each positive, to be checked together with the logits.

    Attributes:
        name: of the argument, for messages.
        values: (P_own,) floating point, in ``targets`` order.
        meaning: of a value, for messages.
        most: greatest value; the least is 0.
    """

    name: str
    values: Tensor
    meaning: str
    most: float = math.inf


class Ranking(NamedTuple):
    """The positives of a mini-batch ranked among its positives and negatives.

    Attributes:
        rows: of the smoothed step's matrix, with the positives as queries.
        values: (P,) float64 of all positives, or (0,) if the loss was given none.
        order: (P,) int64; ``order[i]`` is the index in ``shared`` of the i-th positive.
        positives: (P_own,) int64, ascending indices of this process's positives among the S.
        shared: the positives of all processes, process by process.
        step: between the queries.
    """

    rows: Rows
    values: Tensor
    order: Tensor
    positives: Tensor
    shared: SharedPositives
    step: Step

    def update(self, pushes: Any) -> Update:
        """The update of the logits, from ``pushes`` of a loss's values."""
        shared = self.shared
        return Update(pushes, self.order, self.positives, shared.num_before, shared.num_processes)


@torch.no_grad()
def rank_positives(
    logits: Tensor,
    targets: Tensor,
    delta: float,
    per_positive: ValuePerPositive | None = None,
    group: dist.ProcessGroup | None = None,
) -> Ranking | None:
    """Rank the positives of a mini-batch, once the values of its inputs have been checked.

    The host waits for the device once: for the number of positives and the results of the checks;
    on a GPU twice where AP Loss has more than 65,536 positives. With a group it waits once more:
    for every process's number of positives.

    Args:
        logits: (S,) of :func:`checked_logits`.
        targets: (S,) 1 positive, 0 negative, anything else ignored.
        delta: half width of the step; 0 for the hard step, which is 1 at 0.
        per_positive: checked to match the positives, if given.
        group: processes whose mini-batches are ranked together; None for this one's alone.

    Returns:
        Ranking: None if no process has a positive.

    Raises:
        ValueError: if there is not one value per positive, or if one is outside of its range.
        FloatingPointError: if a logit that is not ignored, or a value, is not finite, or if a
            positive's logit is so large that ``delta`` vanishes beside it.
    """
    delta = float(delta)  # a tensor's value could change until backward
    logits, targets, chosen = logits.contiguous(), targets.contiguous(), backend(logits.device)
    try:
        found = _surveyed(chosen, logits, targets, delta, per_positive)
    except (ValueError, FloatingPointError):
        SharedPositives.stop(logits.device, group)
        raise
    shared = SharedPositives(found.positives.numel(), logits.device, group)
    if len(shared) == 0:
        return None
    values = shared.gather(per_positive.values) if per_positive else logits[:0]
    if group is None:
        order, queries, values, positives = chosen.sort(found.logits, values, found.positives)
    else:  # the positives of all processes come together in targets order, as the values do
        positives, own_logits = found.in_targets_order()[:2]
        places = torch.arange(len(shared), device=logits.device)
        order, queries, values, _ = chosen.sort(shared.gather(own_logits), values, places)
    step = Step(delta) if delta else HARD_STEP
    if not delta:
        queries, logits = _as_ordinals(queries, logits)
    matrix = chosen.matrix(queries, step.delta)
    rows = Rows(matrix, matrix.locate(logits, targets), shared.sum if group is not None else None)
    return Ranking(rows, values, order, positives, shared, step)


def _as_ordinals(queries: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers between which ``HARD_STEP`` is the hard step between the logits.

    Returns:
        tuple[Tensor, Tensor]: (P,) and (S,), for each query and each entry how many queries are not
        above it, and 0.5 more for entries. So no entry is within 0.25 of a query.
    """

    def num_up_to(values: Tensor) -> Tensor:
        return torch.searchsorted(queries, values, right=True).to(logits.dtype)

    return num_up_to(queries), num_up_to(logits).add_(0.5)


def _surveyed(
    chosen: Backend,
    logits: Tensor,
    targets: Tensor,
    delta: float,
    per_positive: ValuePerPositive | None,
) -> Survey:
    """Check the values of all inputs, and find the positives.

    Args:
        chosen: backend for the device.
        logits: (S,) of :func:`checked_logits`.
        targets: (S,) 1 positive, 0 negative, anything else ignored.
        delta: half width of the step; 0 for the hard step.
        per_positive: if the loss has such values.

    Returns:
        Survey: with positives and their logits.

    Raises:
        ValueError: if there is not one value per positive, or if one is outside of its range.
        FloatingPointError: if a logit that is not ignored, or a value, is not finite, or if a
            positive's logit is so large that ``delta`` vanishes beside it.
    """
    name, values, meaning, most = per_positive or ValuePerPositive("", logits[:0], "")
    found = chosen.survey(logits, targets, values, most)
    num_values, num_positives = values.numel(), found.positives.numel()
    if per_positive and num_values != num_positives:
        raise ValueError(
            f"{name} has {num_values} elements but targets has {num_positives} positives; "
            "pass one value per positive, in targets order."
        )
    _refuse_non_finite("logits", found.num_bad_logits, logits)
    _refuse_non_finite(name, found.num_bad_values, values)
    if found.num_outside:
        raise ValueError(
            f"{name}: {found.num_outside} of {num_values} values lie outside [0, {most:g}]; "
            f"{meaning}."
        )
    resolution = torch.finfo(accumulation_dtype(logits.device)).eps * _RESOLUTION
    if found.largest * resolution > delta > 0:
        raise NonFiniteError(
            f"logits: positives reach {found.largest:.3g}, beside which delta {delta:g} vanishes; "
            "look for a learning rate that is too high or broken weights, or take a larger delta."
        )
    return found


def _refuse_non_finite(name: str, num_bad: int, tensor: Tensor) -> None:
    if num_bad:
        raise NonFiniteError(
            f"{name}: {num_bad} of {tensor.numel()} values that enter the ranking are NaN or Inf; "
            "look for a learning rate that is too high, broken weights, or boxes with x2 < x1 or "
            "y2 < y1, as when centre and size are taken for corners."
        )


class ErrorDriven(torch.autograd.Function):
    """Gives a value the error-driven gradient instead of its derivative (arXiv:2009.13592, Sec. 3).

    The gradient is computed in backward. Until then the logits and their cells are saved, not a
    second array of S floats; besides them O(P) numbers, the matrix and the update.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, value: Tensor, ranking: Ranking, pushes: Any) -> Tensor:
        ctx.save_for_backward(logits, ranking.rows.keys.cells)
        ctx.matrix, ctx.update = ranking.rows.matrix, ranking.update(pushes)
        return value.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor):
        logits, cells = ctx.saved_tensors
        return gradient_of_logits(ctx, logits, cells, grad_output), None, None, None


@uncompiled
def gradient_of_logits(
    ctx, logits: Tensor, cells: Tensor, scale: Tensor, among: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """(S,) gradient, see :meth:`StepMatrix.gradient`. Compiled autograd runs it as it is."""
    return ctx.matrix.gradient(ctx.update, cells, logits, scale, among)
