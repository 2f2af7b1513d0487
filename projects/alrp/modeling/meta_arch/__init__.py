"""Meta-architectures."""

from .alrp_retinanet import ALRPRetinaNet

__all__ = ["ALRPRetinaNet"]
