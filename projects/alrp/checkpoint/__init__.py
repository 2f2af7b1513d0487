"""Checkpoints of others: where they lie, and their names in Detectron2."""

from .architecture import CLASS_COUNT_KEYS, PUBLISHED_ROWS, Architecture, rows_of
from .conversion import (
    STARTS_AT_ZERO,
    Conversion,
    is_torchvision_resnet,
    torchvision_to_detectron2,
)
from .files import explain_unreadable, read_checkpoint, split_checkpoint, write_checkpoint
from .published import (
    BACKBONE_PREFIX,
    PublishedConversion,
    conversion_report,
    detectron2_to_published,
    has_published_names,
    imagenet_to_detectron2,
    published_to_detectron2,
    shape_differences,
)
from .torchvision_weights import TorchvisionPathHandler

__all__ = [
    "Architecture",
    "BACKBONE_PREFIX",
    "CLASS_COUNT_KEYS",
    "Conversion",
    "PUBLISHED_ROWS",
    "PublishedConversion",
    "STARTS_AT_ZERO",
    "TorchvisionPathHandler",
    "conversion_report",
    "detectron2_to_published",
    "explain_unreadable",
    "has_published_names",
    "imagenet_to_detectron2",
    "is_torchvision_resnet",
    "published_to_detectron2",
    "read_checkpoint",
    "rows_of",
    "shape_differences",
    "split_checkpoint",
    "torchvision_to_detectron2",
    "write_checkpoint",
]
