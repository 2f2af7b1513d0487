"""Self-balancing weight of the localisation part."""

from __future__ import annotations

import contextlib
import math
from typing import Iterator
import torch
import torch.distributed as dist
from torch import Tensor, nn

from .alrp_loss import ALRPLossOutput
from .uncompiled import uncompiled


class SelfBalance(nn.Module):
    """Weight that gives both parts of aLRP equal gradients (arXiv:2009.13592, Sec. 5, Eq. 13).

    Over each period of ``period`` training steps the parts are summed; then the weight becomes
    ``(sum_cls + sum_loc) / sum_loc`` and already applies in the step that completes the period.
    Steps in which no process has a positive do not count.

    A call is a training step if the module is in training mode and the losses have gradients. So a
    validation loss under ``torch.no_grad()`` neither counts nor communicates. For one that keeps
    gradients there is :meth:`paused`.

    The state is made of buffers, so it is saved and resumed. It is summed over all processes in
    every training step, so it is the same on all of them, and any process can save it. Nothing is
    read back to the host.

    Every process of the default group must call the module in every training step, also without
    positives. Each head needs a module of its own.

    Args:
        period: training steps between updates, usually one epoch; may be set later as an attribute,
            but before the first training step.
        init_weight: weight until the first update, > 0; 50 as published.

    Raises:
        ValueError: if ``period`` is below 1, or ``init_weight`` not a positive number.
    """

    _STATE = ("weight", "sum_cls", "sum_loc", "count")
    _is_paused = False
    weight: Tensor
    sum_cls: Tensor
    sum_loc: Tensor
    count: Tensor

    def __init__(self, period: int | None = None, init_weight: float = 50.0) -> None:
        super().__init__()
        if period is not None and not period >= 1:  # NaN fails too
            raise ValueError(
                f"SelfBalance: period must be at least 1 step, but is {period}; "
                "use the number of training steps of one epoch."
            )
        if not 0 < init_weight < math.inf:
            raise ValueError(
                f"SelfBalance: init_weight must be a finite number above 0, but is {init_weight}; "
                "the published value is 50."
            )
        self.period = period
        self.register_buffer("weight", torch.tensor(float(init_weight)))
        self.register_buffer("sum_cls", torch.tensor(0.0))
        self.register_buffer("sum_loc", torch.tensor(0.0))
        self.register_buffer("count", torch.tensor(0, dtype=torch.int64))

    def forward(self, output: ALRPLossOutput) -> Tensor:
        """Count the step, if it is a training step, and return the weight to use in it.

        Args:
            output: of :func:`alrp.losses.alrp_loss`.

        Returns:
            Tensor: scalar float32 without gradient; multiply ``output.loc`` by it.

        Raises:
            RuntimeError: in a training step, if no period was set.
        """
        has_gradients = output.cls.requires_grad or output.loc.requires_grad
        if self.training and has_gradients and torch.is_grad_enabled() and not self._is_paused:
            self._count(output)
        return self.weight.clone()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Count no calls inside a ``with`` block, as those of a validation loss with gradients.

        All processes must pause for the same training steps.

        Example:
            >>> model = nn.Sequential(SelfBalance(period=500))  # any model
            >>> with contextlib.ExitStack() as stack:
            ...     for module in model.modules():
            ...         if isinstance(module, SelfBalance):
            ...             _ = stack.enter_context(module.paused())
            ...     # compute losses here
        """
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    @uncompiled
    @torch.no_grad()
    def _count(self, output: ALRPLossOutput) -> None:
        if self.period is None:
            raise RuntimeError(
                "SelfBalance: no period is set; pass the number of training steps of one epoch as "
                "SelfBalance(period=...), which a config sets by SELF_BALANCE.PERIOD."
            )
        has_positives = float(output.rank.numel() > 0)
        step = torch.stack([output.cls.float(), output.loc.float()])
        step = torch.cat([step, step.new_full((1,), has_positives)])
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(step)
        self.sum_cls += step[0]
        self.sum_loc += step[1]
        self.count += (step[2] > 0).long()

        # Decided on the device: a branch on the host would wait for it in every step.
        due = self.count >= self.period
        # Without localisation errors there is nothing to balance; the old weight stays.
        renewed = torch.where(
            self.sum_loc > 0, (self.sum_cls + self.sum_loc) / self.sum_loc, self.weight
        )
        self.weight.copy_(torch.where(due, renewed, self.weight))
        for total in (self.sum_cls, self.sum_loc, self.count):
            total.masked_fill_(due, 0)

    def _apply(self, fn, recurse=True):
        # Stays float32 in a half precision model: sums of thousands of steps need the digits.
        super()._apply(fn, recurse)
        for name in ("weight", "sum_cls", "sum_loc"):
            setattr(self, name, getattr(self, name).float())
        return self

    @torch.no_grad()
    def reset(self) -> None:
        """Forget the unfinished period, for a training that starts from the weights of another.

        The weight stays, because it fits the localisation errors of the loaded model.
        """
        for total in (self.sum_cls, self.sum_loc, self.count):
            total.zero_()

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        # Published checkpoints have no such state: the module then keeps its start values.
        if not any(prefix + name in state_dict for name in self._STATE):
            state_dict.update({prefix + name: getattr(self, name) for name in self._STATE})
        for name in self._STATE:
            value = state_dict.get(prefix + name)
            if value is not None and not value.is_meta:
                self._refuse_impossible(name, prefix, value)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @staticmethod
    def _refuse_impossible(name: str, prefix: str, value: Tensor) -> None:
        is_possible = value > 0 if name == "weight" else value >= 0
        if not (is_possible & (value < math.inf)).all():
            raise ValueError(
                f"{prefix}{name} is {value.tolist()}, but the weight of a self-balance must be "
                "above 0, its sums and its count at least 0, and all of them finite: a negative "
                "weight trains the boxes away from the objects. Use another checkpoint, or remove "
                f"the four tensors {prefix}* from this one."
            )

    def extra_repr(self) -> str:
        return f"period={self.period}"
