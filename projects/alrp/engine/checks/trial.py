"""Builds what a run is made of, without memory for its weights, to see whether it can be built."""

from __future__ import annotations

import logging
import numpy as np
import os
import random
import tempfile
import warnings
from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Iterable, Iterator, NamedTuple
import torch
from PIL import Image
from torch import Tensor, nn

from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.solver import build_lr_scheduler
from detectron2.structures import BoxMode

from ...data.dataset_mapper import build_mapper
from ...modeling.micro_batches import set_micro_batch_size
from ...modeling.test_time_augmentation import with_test_time_augmentation
from ..trainer import Trainer
from .keys import Reads, RecordingNode, with_value

_SIDE = 64  # pixels of the image that the trial reads
_LARGEST_SIDE = 256  # pixels that it is enlarged to


class TrialFailure(NamedTuple):
    """What ended a trial.

    Attributes:
        name: of the step, such as "building the model".
        step: its number.
        error: what was raised.
    """

    name: str
    step: int
    error: Exception

    @property
    def is_of_trial(self) -> bool:
        """Whether only a trial fails so: a model may read values, and meta tensors have none."""
        return isinstance(self.error, RuntimeError) and "meta" in str(self.error).lower()


class Trial(NamedTuple):
    """What building from a config showed.

    Attributes:
        failure: None if all went well.
        reads: dotted keys that were read, in order.
    """

    failure: TrialFailure | None
    reads: Reads


Parts = dict  # what a trial has built so far, by name
Step = tuple[str, Callable[[CfgNode, Parts], None]]


def try_config(cfg: CfgNode, *, for_training: bool) -> Trial:
    """Build model, mappers and, for training, optimizer, schedule and loader of a config.

    The model is on PyTorch's meta device. One small picture is mapped and passed through backbone
    and dense head. No dataset is read, nothing stays on disk, and the random generators are left
    as they were.

    Args:
        cfg: full config.
        for_training: whether the run trains, or only evaluates.

    Returns:
        Trial: which keys were read, and what failed.
    """
    node, parts = RecordingNode(_with_small_images(cfg)), {}
    steps = _EVALUATION + (_TRAINING if for_training else ())
    failure = first_failure([(name, partial(step, node, parts)) for name, step in steps])
    return Trial(failure, node._reads)


def first_failure(steps: Iterable[tuple[str, Callable[[], None]]]) -> TrialFailure | None:
    """Take steps until one fails, without log records, and with the random generators as before."""
    with undisturbed():
        for number, (name, step) in enumerate(steps):
            try:
                step()
            except Exception as error:  # whatever Detectron2 and PyTorch raise
                return TrialFailure(name, number, error)
    return None


def _with_small_images(cfg: CfgNode) -> CfgNode:
    """Copy on the meta device that enlarges the picture of the trial to little memory."""
    cfg = with_value(cfg, "MODEL.DEVICE", "meta")
    for name in ("MIN_SIZE_TRAIN", "MAX_SIZE_TRAIN", "MIN_SIZE_TEST", "MAX_SIZE_TEST"):
        cfg.INPUT[name] = _capped(cfg.INPUT[name])
    cfg.INPUT.SQUARE_SIZE_TRAIN = _capped(cfg.INPUT.SQUARE_SIZE_TRAIN)
    return cfg


def _capped(side: Any) -> Any:
    if isinstance(side, (list, tuple)):
        return type(side)(map(_capped, side))
    return min(side, _LARGEST_SIDE)


def _build_model(cfg: CfgNode, parts: Parts) -> None:
    with torch.device("meta"):
        parts["model"] = build_model(cfg)


def _map_test_image(cfg: CfgNode, parts: Parts) -> None:
    parts["image"] = map_picture(build_mapper(cfg, is_train=False))


def _pass_image(cfg: CfgNode, parts: Parts) -> None:
    pass_image(parts["model"], parts["image"])


def _build_tta(cfg: CfgNode, parts: Parts) -> None:
    if cfg.TEST.AUG.ENABLED:
        with_test_time_augmentation(cfg, parts["model"])


def _set_micro_batch_size(cfg: CfgNode, parts: Parts) -> None:
    size = cfg.SOLVER.MICRO_BATCH_SIZE
    set_micro_batch_size(parts["model"], size, "SOLVER.MICRO_BATCH_SIZE")


def _map_training_image(cfg: CfgNode, parts: Parts) -> None:
    parts["mapper"] = build_mapper(cfg, is_train=True)
    map_picture(parts["mapper"])


def _build_optimizer(cfg: CfgNode, parts: Parts) -> None:
    parts["optimizer"] = Trainer.build_optimizer(cfg, stand_in())


def _build_schedule(cfg: CfgNode, parts: Parts) -> None:
    parts["schedule"] = build_lr_scheduler(cfg, parts["optimizer"])


def _build_loader(cfg: CfgNode, parts: Parts) -> None:
    build_detection_train_loader(cfg, mapper=parts["mapper"], dataset=[record("")])


_EVALUATION: tuple[Step, ...] = (
    ("building the model", _build_model),
    ("preparing an image for the test", _map_test_image),
    ("passing an image through the model", _pass_image),
    ("building the test-time augmentation", _build_tta),
)
_TRAINING: tuple[Step, ...] = (
    ("setting the size of micro-batches", _set_micro_batch_size),
    ("preparing an image for the training", _map_training_image),
    ("building the optimizer", _build_optimizer),
    ("building the learning rate schedule", _build_schedule),
    ("building the data loader", _build_loader),
)


def stand_in() -> nn.Module:
    """A model with each kind of parameter; optimizers may refuse those of the meta device."""
    return nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))


def pass_image(model: nn.Module, image: Tensor) -> None:
    """Pass one image (C, H, W) through preprocessing, backbone and dense head of a meta model."""
    if not isinstance(model, (DenseDetector, GeneralizedRCNN)):
        return  # nothing is known of its parts
    with torch.no_grad():
        images = model.preprocess_image([{"image": image.to("meta")}])
        features = model.backbone(images.tensor)
        if isinstance(model, DenseDetector):
            model.head([features[name] for name in model.head_in_features])


def map_picture(mapper: Callable[[dict], dict]) -> Tensor:
    """What a mapper makes of a small grey picture with one box: its image (C, H, W)."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "picture.png")
        Image.new("RGB", (_SIDE, _SIDE), (128, 128, 128)).save(path)
        return mapper(record(path))["image"]


def record(path: str) -> dict:
    """A dataset dict in Detectron2's format, of one picture with one box and its polygon."""
    box = {"bbox": [8.0, 8.0, 40.0, 40.0], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    polygon = [8.0, 8.0, 40.0, 8.0, 40.0, 40.0, 8.0, 40.0]
    size = {"height": _SIDE, "width": _SIDE}
    annotation = {**box, "segmentation": [polygon], "iscrowd": 0}
    return {"file_name": path, "image_id": 0, **size, "annotations": [annotation]}


@contextmanager
def undisturbed() -> Iterator[None]:
    """Without log records and warnings, and with the random generators as before at the end."""
    disabled, numpy_state, python_state = (
        logging.root.manager.disable,
        np.random.get_state(),
        random.getstate(),
    )
    logging.disable(logging.CRITICAL)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
