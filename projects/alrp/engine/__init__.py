"""Training, evaluation and the checks before them, on Detectron2's engine."""

from .checkpointer import CheckedCheckpointer
from .command import run_command, setup_config
from .trainer import Trainer

__all__ = ["CheckedCheckpointer", "Trainer", "run_command", "setup_config"]
