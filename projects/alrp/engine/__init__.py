"""Training, evaluation and the checks before them, on Detectron2's engine."""

from ..checkpoint import CheckedCheckpointer
from .command import argument_parser, run_command, setup_config
from .dry_run import dry_run
from .trained_model import load_trained_model
from .trainer import Trainer

__all__ = [
    "CheckedCheckpointer",
    "Trainer",
    "argument_parser",
    "dry_run",
    "load_trained_model",
    "run_command",
    "setup_config",
]
