"""How a training ends: by a failure, or before its last iteration."""

from __future__ import annotations

import contextlib
from typing import Any, Iterator
import torch

from detectron2.config import CfgNode
from detectron2.engine import HookBase, TrainerBase, hooks
from detectron2.utils import comm

from ..errors import UserError


@contextlib.contextmanager
def memory_advice(cfg: CfgNode) -> Iterator[None]:
    """A training step in which too little memory of a GPU becomes a message with a remedy.

    Args:
        cfg: with ``SOLVER.IMS_PER_BATCH`` and ``SOLVER.MICRO_BATCH_SIZE``.

    Raises:
        UserError: if the memory of a GPU is exhausted.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        num_images = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        at_a_time = min(cfg.SOLVER.MICRO_BATCH_SIZE or num_images, num_images)
        remedy = f"set SOLVER.MICRO_BATCH_SIZE {at_a_time // 2}, which changes nothing but time"
        if at_a_time == 1:
            remedy = "take smaller images, a smaller model, or mixed precision"
        raise UserError(
            f"the GPU has too little memory for a training step of {num_images} image(s), of which "
            f"{at_a_time} at a time pass through the network; {remedy}. PyTorch says: {error}"
        ) from error


class CarefulFailures:
    """Mixin of trainers: nothing is evaluated after a failure, and one of memory has a remedy.

    Detectron2's hooks take a failure in the last iteration for the end of the training; their
    evaluation hides the error, and its results look like those of a finished run.

    Attributes:
        cfg: see :func:`memory_advice`.
    """

    cfg: CfgNode

    def run_step(self) -> None:
        """As the parent, with :func:`memory_advice`."""
        with memory_advice(self.cfg):
            super().run_step()

    def after_train(self) -> None:
        """As the parent; after a failure without the hooks that evaluate."""
        if self.iter < self.max_iter:
            evaluating = (hooks.EvalHook, hooks.BestCheckpointer)
            self._hooks = [hook for hook in self._hooks if not isinstance(hook, evaluating)]
        super().after_train()


class _Stopped(BaseException):
    """Leaves the loop of Detectron2's trainers, which take an ``Exception`` for a failure."""


class StopsEarly(TrainerBase):
    """Trainer that can be ended before its last iteration.

    It ends as a training of so many iterations does, and the hooks that have evaluated the model of
    the last one do not do so again.
    """

    _stops = False

    def stop(self) -> None:
        """End the training when all hooks are through with this iteration, or with the start."""
        self._stops = True

    def before_train(self) -> None:
        """As the parent; leaves out the loop after :meth:`stop`."""
        super().before_train()
        if self._stops:
            self.max_iter = self.iter
            raise _Stopped

    def after_step(self) -> None:
        """As the parent; leaves the loop after :meth:`stop`."""
        super().after_step()
        if self._stops:
            self.iter += 1
            self.max_iter = self.iter
            self._hooks = [hook for hook in self._hooks if not _has_evaluated(hook, self.iter)]
            raise _Stopped

    def train(self, *args: Any) -> None:
        """As the parent."""
        with contextlib.suppress(_Stopped):
            super().train(*args)


def _has_evaluated(hook: HookBase, num_iterations: int) -> bool:
    if not isinstance(hook, (hooks.EvalHook, hooks.BestCheckpointer)):
        return False
    return hook._period > 0 and num_iterations % hook._period == 0
