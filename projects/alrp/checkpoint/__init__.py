"""Checkpoints of others: where they lie, and their names in Detectron2."""

from .architecture import (
    CLASS_COUNT_KEYS,
    FOVEABOX,
    PUBLISHED_ROWS,
    RETINANET,
    Architecture,
    rows_of,
)
from .conversion import (
    STARTS_AT_ZERO,
    Conversion,
    is_torchvision_resnet,
    torchvision_to_detectron2,
    without_prefix,
)
from .files import (
    explain_unreadable,
    non_finite_tensor,
    read_checkpoint,
    split_checkpoint,
    write_checkpoint,
)
from .imagenet import imagenet_to_detectron2
from .published import (
    BACKBONE_PREFIX,
    PublishedConversion,
    conversion_report,
    detectron2_to_published,
    has_published_names,
    published_to_detectron2,
    shape_differences,
)
from .torchvision_weights import TorchvisionPathHandler

__all__ = [
    "Architecture",
    "BACKBONE_PREFIX",
    "CLASS_COUNT_KEYS",
    "Conversion",
    "FOVEABOX",
    "PUBLISHED_ROWS",
    "PublishedConversion",
    "RETINANET",
    "STARTS_AT_ZERO",
    "TorchvisionPathHandler",
    "conversion_report",
    "detectron2_to_published",
    "explain_unreadable",
    "has_published_names",
    "imagenet_to_detectron2",
    "is_torchvision_resnet",
    "non_finite_tensor",
    "published_to_detectron2",
    "read_checkpoint",
    "rows_of",
    "shape_differences",
    "split_checkpoint",
    "torchvision_to_detectron2",
    "without_prefix",
    "write_checkpoint",
]
