"""Meta-architectures."""

from .alrp_retinanet import ALRPRetinaNet
from .foveabox import FoveaBox

__all__ = ["ALRPRetinaNet", "FoveaBox"]
