"""Checkpoints of others: where they lie, and their names in Detectron2."""

from .conversion import Conversion, is_torchvision_resnet, torchvision_to_detectron2
from .torchvision_weights import TorchvisionPathHandler

__all__ = [
    "Conversion",
    "TorchvisionPathHandler",
    "is_torchvision_resnet",
    "torchvision_to_detectron2",
]
