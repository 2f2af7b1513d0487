"""Training, evaluation and the checks before them, on Detectron2's engine."""

from ..checkpoint import CheckedCheckpointer
from .command import argument_parser, run_command, setup_config
from .dry_run import dry_run
from .trainer import Trainer

__all__ = [
    "CheckedCheckpointer",
    "Trainer",
    "argument_parser",
    "dry_run",
    "run_command",
    "setup_config",
]
