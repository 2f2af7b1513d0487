"""A training that is interrupted."""

from __future__ import annotations

from detectron2.engine import HookBase


class Interruption(HookBase):
    """Ends the training before iteration ``iteration``, as Ctrl-C does."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_step(self):
        if self.trainer.iter == self.iteration:
            raise KeyboardInterrupt
