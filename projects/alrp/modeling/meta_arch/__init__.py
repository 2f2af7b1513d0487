"""Meta-architectures."""

from .alrp_retinanet import ALRPRetinaNet
from .foveabox import FoveaBox
from .thresholded_rcnn import ThresholdedRCNN

__all__ = ["ALRPRetinaNet", "FoveaBox", "ThresholdedRCNN"]
