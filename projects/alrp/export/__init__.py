"""Trained detectors as files that run without this package: TorchScript and ONNX."""

from .agreement import Agreement, compare_detections
from .tracing import OUTPUT_NAMES, TracedDetector, load_onnx, load_torchscript

__all__ = [
    "Agreement",
    "OUTPUT_NAMES",
    "TracedDetector",
    "compare_detections",
    "load_onnx",
    "load_torchscript",
]
