"""Self-balancing weight of the localisation part."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .alrp_loss import ALRPLossOutput


class SelfBalance(nn.Module):
    """Weight that gives both parts of aLRP equal gradients (arXiv:2009.13592, Sec. 5, Eq. 13).

    Over each period of ``period`` training steps the parts are summed; then the weight becomes
    ``(sum_cls + sum_loc) / sum_loc`` and already applies in the step that completes the period.
    Steps in which no process has a positive do not count.

    The state is made of buffers, so it is saved and resumed. It is summed over all processes in
    every step, so it is the same on all of them and whole in the checkpoint of any one of them;
    nothing is read back to the host.

    Every process of the default group must call the module in every training step, also without
    positives. One module belongs to one head.

    Args:
        period: training steps between updates, usually one epoch; may be set later as an attribute,
            but before the first training step.
        init_weight: weight until the first update; 50 as published.

    Raises:
        ValueError: if ``period`` is not positive.
    """

    _STATE = ("weight", "sum_cls", "sum_loc", "count")

    def __init__(self, period: int | None = None, init_weight: float = 50.0) -> None:
        super().__init__()
        if period is not None and period < 1:
            raise ValueError(
                f"SelfBalance: period must be at least 1 step, but is {period}; "
                "use the number of training steps of one epoch."
            )
        self.period = period
        self.register_buffer("weight", torch.tensor(float(init_weight)))
        self.register_buffer("sum_cls", torch.tensor(0.0))
        self.register_buffer("sum_loc", torch.tensor(0.0))
        self.register_buffer("count", torch.tensor(0, dtype=torch.int64))

    @torch.no_grad()
    def forward(self, output: ALRPLossOutput) -> Tensor:
        """Count a training step (nothing in eval mode) and return the weight to use in it.

        Args:
            output: of :func:`alrp.losses.alrp_loss`.

        Returns:
            Tensor: scalar float32 without gradient; multiply ``output.loc`` by it.

        Raises:
            RuntimeError: in training mode, if no period was set.
        """
        if self.training:
            self._count(output)
        return self.weight.clone()

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

        # Decided on the device: a host branch would stall it in every step.
        due = self.count >= self.period
        # A perfect localisation leaves nothing to balance; the old weight stays.
        renewed = torch.where(
            self.sum_loc > 0, (self.sum_cls + self.sum_loc) / self.sum_loc, self.weight
        )
        self.weight.copy_(torch.where(due, renewed, self.weight))
        for total in (self.sum_cls, self.sum_loc, self.count):
            total.masked_fill_(due, 0)

    def _apply(self, fn, recurse=True):
        # Sums of thousands of steps do not fit a half precision model's dtype.
        super()._apply(fn, recurse)
        for name in ("weight", "sum_cls", "sum_loc"):
            setattr(self, name, getattr(self, name).float())
        return self

    @torch.no_grad()
    def reset(self) -> None:
        """Forget an unfinished period, as when a training starts from the weights of another.

        The weight stays: it belongs to the localisation errors that the loaded model makes.
        """
        for total in (self.sum_cls, self.sum_loc, self.count):
            total.zero_()

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        # Published checkpoints have no such state: the module then stays at its start values.
        if not any(prefix + name in state_dict for name in self._STATE):
            state_dict.update({prefix + name: getattr(self, name) for name in self._STATE})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"period={self.period}"
