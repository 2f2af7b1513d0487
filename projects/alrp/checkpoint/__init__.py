"""Checkpoints: loaded with checks, converted from those of others, found by name."""

from .checkpointer import CheckedCheckpointer, fetch_checkpoint, last_checkpoint
from .file_conversion import convert_file
from .torchvision_path import TorchvisionPathHandler

__all__ = [
    "CheckedCheckpointer",
    "TorchvisionPathHandler",
    "convert_file",
    "fetch_checkpoint",
    "last_checkpoint",
]
