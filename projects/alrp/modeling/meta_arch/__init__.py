"""Meta-architectures."""

from .alrp_retinanet import ALRPRetinaNet
from .foveabox import FoveaBox
from .shown_rcnn import ShownRCNN

__all__ = ["ALRPRetinaNet", "FoveaBox", "ShownRCNN"]
