"""The losses of a large batch in the memory of a small one.

A ranking loss reads the whole batch, so gradients of smaller batches do not add up to its own. But
it reads only what the network predicts, which is small beside what the network keeps for its
backward pass. So every micro-batch passes through the network twice::

    forward     images 1-4 ---> network, nothing kept ---> predictions --.
                images 5-8 ---> network, nothing kept ---> predictions --+--> one loss of 1-8
                                                                                   |
    backward    images 5-8 ---> network, kept <--- their gradients <-----.         |
                images 1-4 ---> network, kept <--- their gradients <-----+---------'
"""

from __future__ import annotations

from typing import Any, Callable, Sequence
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import ImageList

from ..errors import UserError
from ..losses.inputs import NonFiniteError

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def in_micro_batches(network: Callable, inputs: Sequence, size: int) -> Any:
    """Output of ``network(*inputs)`` for all images, of which ``size`` at a time pass through it.

    Nothing of the passes is kept for the backward pass, which repeats each of them, with the same
    random numbers of PyTorch and the same mixed precision.

    Args:
        network: its output is made of tensors in lists, tuples and dicts, whose first dimension is
            the images, or rows of one image after another. What it computes of an image must not
            depend on the others.
        inputs: tensors (N, ...) and lists of length N, of the images of the whole batch.
        size: images of a micro-batch, at least 1; the last may have fewer.

    Returns:
        Any: as ``network`` returns it, but lists instead of tuples.
    """
    parts = []
    for first in range(0, len(inputs[0]), size):
        micro_batch = [x[first : first + size] for x in inputs]
        # Else all would share one half precision copy of each weight, and their gradients would be
        # added up in half precision.
        torch.clear_autocast_cache()
        parts.append(checkpoint(network, *micro_batch, use_reentrant=False))
    return _concatenated(parts)


def _concatenated(parts: list) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, dict):
        return {key: _concatenated([part[key] for part in parts]) for key in first}
    return [_concatenated(list(members)) for members in zip(*parts)]


class MicroBatched:
    """Mixin of a detector, or of a part of one, that takes micro-batches.

    Attributes:
        micro_batch_size: images that pass through at a time in training; 0: all.
    """

    micro_batch_size = 0

    def splits(self, num_images: int) -> bool:
        """Whether so many images pass through in several micro-batches."""
        return self.training and 0 < self.micro_batch_size < num_images


class MicroBatchedDetector(MicroBatched):
    """Mixin of a Detectron2 ``DenseDetector``, whose losses read no features but their sizes."""

    def forward(self, batched_inputs: list[dict]):
        """As the parent.

        Raises:
            FloatingPointError: in training, if predictions are NaN or infinite; names the images.
            ValueError: in training, if an input has no "instances".
        """
        if not self.training:
            return super().forward(batched_inputs)
        if not all("instances" in x for x in batched_inputs):
            raise ValueError(
                'the model is in training mode, and an input has no "instances" to learn from; '
                "call model.eval() to detect, or take the loader of a training set."
            )
        if self.splits(len(batched_inputs)):
            images, features, predictions = self._predict_in_micro_batches(batched_inputs)
        else:
            images = self.preprocess_image(batched_inputs)
            features, predictions = self._predict(images.tensor)
        return self._losses_of(images, features, predictions, batched_inputs)

    def _losses_of(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: list[list[Tensor]],
        batched_inputs: list[dict],
    ) -> dict[str, Tensor]:
        """Losses of what was predicted; an error of values names the images."""
        gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
        # Not in forward, which torch.compile could not cut into graphs around this block.
        try:
            return self.forward_training(images, features, predictions, gt_instances)
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}{_at_fault(predictions, batched_inputs)}") from error

    def _predict(self, images: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Features that the head reads, and what it predicts."""
        features = self.backbone(images)
        features = [features[name] for name in self.head_in_features]
        return features, self.head(features)

    def _predict_in_micro_batches(
        self, batched_inputs: list[dict]
    ) -> tuple[ImageList, list[Tensor], list[list[Tensor]]]:
        """Images and features without values, for their sizes, and what the head predicts."""
        inputs = [{**x, "image": self._move_to_current_device(x["image"])} for x in batched_inputs]
        images = ImageList.from_tensors(
            [x["image"].to("meta") for x in inputs],
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )
        height, width = images.tensor.shape[-2:]

        def network(micro_batch: list[dict]) -> list[list[Tensor]]:
            # As float32 the images of the whole batch would take four times the memory.
            pixels = self.preprocess_image(micro_batch).tensor
            padding = (0, width - pixels.shape[-1], 0, height - pixels.shape[-2])
            return self._predict(F.pad(pixels, padding))[1]

        predictions = in_micro_batches(network, [inputs], self.micro_batch_size)
        # Their sizes are those of the features.
        return images, [level.to("meta") for level in predictions[0]], predictions


def set_micro_batch_size(model: nn.Module, size: int, key: str = "micro_batch_size") -> None:
    """Let ``size`` images at a time pass through the network in training; 0: the whole batch.

    The model is set to training mode.

    Args:
        model: a detector.
        size: at least 0; any size from that of the batch on is the whole batch.
        key: what a user calls the size, for the messages.

    Raises:
        UserError: if the size is negative, or the step would not be that of the whole batch.
    """
    if size < 0:
        raise UserError(f"{key}: expected a number of images, or 0 for all, but got {size}.")
    model.train()  # some backbones then keep their batch norm in eval mode
    if size and not _takes_micro_batches(model):
        raise UserError(
            f"{key}: {type(model).__name__} takes no micro-batches, but {size} was asked for; set "
            "it to 0. To need less memory, train with more processes, and rank their images "
            "together with MODEL.ALRP.GLOBAL_RANKING, or lower the batch and, in proportion, the "
            "learning rate."
        )
    if size:
        _refuse_batch_norm(model, size, key)
    for module in model.modules():
        if isinstance(module, MicroBatched):
            module.micro_batch_size = size


def _takes_micro_batches(model: nn.Module) -> bool:
    """Whether the larger part of the network takes them; the rest may see the whole batch."""
    network = model.backbone if isinstance(model, GeneralizedRCNN) else model
    return isinstance(network, MicroBatched)


def _refuse_batch_norm(model: nn.Module, size: int, key: str) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BATCH_NORMS) and module.training:
            raise UserError(
                f"{key}: {size} was asked for, but {name} is batch norm in training mode, which "
                "would take its statistics from each micro-batch instead of the batch, and count "
                'it twice; set the norm to "FrozenBN" or "GN", MODEL.BACKBONE.NORM_EVAL to True '
                f"(in a LazyConfig model.backbone.norm_eval), or {key} to 0."
            )


def _at_fault(predictions: list[list[Tensor]], batched_inputs: list[dict]) -> str:
    """The images whose predictions are not finite, as the end of a message."""
    finite = [level.isfinite().flatten(1).all(1) for levels in predictions for level in levels]
    is_finite = torch.stack(finite).all(0).tolist()
    names = [
        str(x.get("file_name", f"image {i} of the batch"))
        for i, (x, good) in enumerate(zip(batched_inputs, is_finite))
        if not good
    ]
    if not names:
        return ""
    return f" Predictions for {len(names)} of {len(is_finite)} images are NaN or Inf: " + (
        ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") + "."
    )
