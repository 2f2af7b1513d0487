"""A training iteration in mixed precision, on a GPU or a CPU, in float16 or bfloat16."""

from __future__ import annotations

import time
import torch

from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer

# The first gradients in the box heads of R-CNNs overflow float16 at higher loss scales: on the
# generated scenes from 2^12 on with RS Cascade R-CNN, from 2^14 with cross entropy, from 2^15 with
# aLRP. PyTorch starts at 2^16 and would skip the first updates; the scale grows by itself where
# there is room.
_FIRST_LOSS_SCALE = 2.0**11


def iteration_trainer(cfg: CfgNode, model, data_loader, optimizer) -> SimpleTrainer:
    """What runs an iteration: in mixed precision with ``SOLVER.AMP.ENABLED``."""
    if cfg.SOLVER.AMP.ENABLED:
        return MixedPrecisionTrainer(model, data_loader, optimizer, cfg.SOLVER.AMP.DTYPE)
    return SimpleTrainer(model, data_loader, optimizer)


class MixedPrecisionTrainer(AMPTrainer):
    """``AMPTrainer`` for any device.

    bfloat16 has the range of float32, so that its losses are not scaled.

    Args:
        model: under ``DistributedDataParallel`` if there are several processes.
        data_loader: iterable of batches.
        optimizer: of the model.
        dtype: of convolutions and matrix products, "float16" or "bfloat16".
    """

    def __init__(self, model, data_loader, optimizer, dtype: str) -> None:
        self.device_type = next(model.parameters()).device.type
        scaler = torch.amp.GradScaler(
            self.device_type, init_scale=_FIRST_LOSS_SCALE, enabled=dtype == "float16"
        )
        super().__init__(
            model, data_loader, optimizer, grad_scaler=scaler, precision=getattr(torch, dtype)
        )

    def run_step(self) -> None:
        """One iteration; the parent's asks for CUDA by name.

        The optimizer gets gradients without the scale, whatever it is: a fused one would undo the
        scale inside, after a clipping that is part of its step.
        """
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(self.device_type, self.precision):
            losses = self.model(data)
        if isinstance(losses, torch.Tensor):
            losses = {"total_loss": losses}
        self.optimizer.zero_grad()
        self.grad_scaler.scale(sum(losses.values())).backward()
        self.after_backward()
        self._write_metrics(losses, data_time)
        self._unscale()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _unscale(self) -> None:
        try:
            self.grad_scaler.unscale_(self.optimizer)
        except RuntimeError as error:
            # A hook may have done so in ``after_backward`` to clip gradients, as PyTorch advises.
            if "already been called" not in str(error):
                raise
