"""A detector traced by PyTorch, and its files."""

from __future__ import annotations

import io
import json
import numpy as np
import os
import warnings
from typing import Any, Callable
import torch
from torch import Tensor, nn

from detectron2.export import TracingAdapter

from ..errors import UserError
from ..files import replacing

# (3, H, W) image to boxes, scores, classes and perhaps masks, see TracedDetector.
Detector = Callable[[Tensor], tuple[Tensor, ...]]

OUTPUT_NAMES = ("boxes", "scores", "classes", "masks")
_METADATA = "alrp.json"  # file inside a TorchScript archive, and key in an ONNX file
# The first one with all operators that roi_align and the heads need.
_OPSET = 17


class TracedDetector:
    """What a detector does with one image, as tensors in and tensors out.

    The input is ``image``, (3, H, W) float32 of any size, as the model's test mapper makes it: in
    the channel order of ``INPUT.FORMAT``, 0 to 255, not normalised, resized. The outputs are

    - boxes: (D, 4) float32 XYXY in pixels of ``image``,
    - scores: (D,) float32, descending; calibrated ones in the order of those before,
    - classes: (D,) int64 class indices,
    - masks: (D, 1, M, M) float32 probabilities inside of each box, if the model has a mask head.

    Args:
        model: any meta-architecture whose ``forward`` takes Detectron2's list of dicts; put into
            eval mode.
        image: to trace with; the model should find objects in it.
        metadata: to store in the files, as JSON.
    """

    def __init__(
        self, model: nn.Module, image: Tensor, metadata: dict[str, Any] | None = None
    ) -> None:
        self._image = image.float()
        self._metadata = metadata or {}
        # In eval mode as a whole: exporters put a model back into the mode of its wrapper.
        self._adapter = TracingAdapter(model, [{"image": self._image}], _detect).eval()
        self.output_names = OUTPUT_NAMES[: len(self(self._image))]

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the model itself, not traced."""
        return self._adapter(image.float())

    def write_torchscript(self, path: str | os.PathLike) -> None:
        """Trace, and write a TorchScript archive; needs torchvision to run.

        Raises:
            UserError: if the file cannot be written.
        """
        with _quiet_tracing():
            traced = torch.jit.trace(self._adapter, (self._image,), check_trace=False)
        metadata = {_METADATA: json.dumps(self._metadata)}
        with replacing(path) as file:
            torch.jit.save(traced, file, _extra_files=metadata)

    def write_onnx(self, path: str | os.PathLike) -> None:
        """Trace, and write an ONNX file of opset 17.

        Raises:
            UserError: if the package onnx is missing, ONNX lacks an operator of the model, or the
                file cannot be written.
        """
        try:
            import onnx
        except ModuleNotFoundError as error:
            raise UserError("ONNX files need two packages: pip install onnx onnxruntime") from error
        model = onnx.load_from_string(self._onnx_bytes())
        entry = model.metadata_props.add()
        entry.key, entry.value = _METADATA, json.dumps(self._metadata)
        with replacing(path) as file:
            file.write(model.SerializeToString())

    def _onnx_bytes(self) -> bytes:
        buffer = io.BytesIO()
        axes = {name: {0: "detections"} for name in self.output_names}
        # Before PyTorch 2.5 there was no other exporter; the new one does not take this code.
        options = {"dynamo": False} if torch.__version__ >= (2, 5) else {}
        try:
            with _quiet_tracing():
                torch.onnx.export(
                    self._adapter,
                    (self._image,),
                    buffer,
                    input_names=["image"],
                    output_names=list(self.output_names),
                    dynamic_axes={"image": {1: "height", 2: "width"}, **axes},
                    opset_version=_OPSET,
                    **options,
                )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"the model cannot be written as ONNX: {reason} Export it as TorchScript."
            ) from error
        return buffer.getvalue()


def load_torchscript(path: str | os.PathLike) -> Detector:
    """What an archive of :meth:`TracedDetector.write_torchscript` does with an image."""
    model = torch.jit.load(os.fspath(path), map_location="cpu")

    def detect(image: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return model(image.float())

    return detect


def load_onnx(path: str | os.PathLike) -> Detector:
    """What a file of :meth:`TracedDetector.write_onnx` does with an image, by onnxruntime.

    Raises:
        UserError: if the package onnxruntime is missing.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise UserError(
            "an ONNX file is checked by running it, which needs a package: pip install onnxruntime"
        ) from error
    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])

    def detect(image: Tensor) -> tuple[Tensor, ...]:
        outputs = session.run(None, {"image": image.float().numpy()})
        return tuple(torch.from_numpy(np.asarray(output)) for output in outputs)

    return detect


def _detect(model: nn.Module, inputs: list[dict[str, Tensor]]) -> tuple[Tensor, ...]:
    if getattr(getattr(model, "roi_heads", None), "mask_on", False):
        # Pasted into the image, masks have no form in ONNX.
        instances = model.inference(inputs, do_postprocess=False)[0]
        masks = (instances.pred_masks,)
    else:
        instances, masks = model(inputs)[0]["instances"], ()
    return instances.pred_boxes.tensor, instances.scores, instances.pred_classes, *masks


class _quiet_tracing(warnings.catch_warnings):
    """Without the tracer's warnings of every size that Detectron2 turns into a Python number."""

    def __enter__(self):
        super().__enter__()
        for category in (torch.jit.TracerWarning, DeprecationWarning, UserWarning):
            warnings.simplefilter("ignore", category)
