"""From dataset dicts to what the models take, by the published pipelines for training and test."""

from __future__ import annotations

import logging
import numpy as np
from typing import NamedTuple, Sequence
import torch

from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances

from ..errors import UserError
from .augmentation import (
    Expand,
    MinIoURandomCrop,
    PhotometricDistortion,
    ResizeToFit,
    ResizeToSquare,
)
from .images import check_depth, naming, read_image

_LOGGER = logging.getLogger(__name__)

_CHOICES = ("detectron2", "published")


def build_mapper(cfg: CfgNode, is_train: bool) -> DatasetMapper | ALRPDatasetMapper:
    """Mapper of ``INPUT.AUGMENTATION``: "published", or Detectron2's own.

    Raises:
        UserError: if there is no such choice, or another key does not go with it.
    """
    if cfg.INPUT.AUGMENTATION not in _CHOICES:
        raise UserError(
            f"INPUT.AUGMENTATION: expected one of {list(_CHOICES)}, but got "
            f"{cfg.INPUT.AUGMENTATION!r}; set it to one of them."
        )
    mapper = ALRPDatasetMapper if cfg.INPUT.AUGMENTATION == "published" else NamingDatasetMapper
    return mapper(cfg, is_train)


class NamingDatasetMapper(DatasetMapper):
    """Detectron2's mapper, which names the image that it cannot read or that it would misread."""

    def __call__(self, dataset_dict: dict) -> dict:
        """As the parent; UserError instead of an error of the image library."""
        path = dataset_dict["file_name"]
        with naming(path):
            check_depth(path)  # the parent reads the file itself, so that its header is read twice
            return super().__call__(dataset_dict)


class ALRPDatasetMapper:
    """Reads one image, augments it together with its boxes, and makes the model's input.

    Unlike Detectron2's mapper it hands the boxes, crowds included, to the augmentations and lets
    them drop some: a box that comes back empty is gone. Images that lose all boxes are kept.
    Detection only: masks and keypoints are not read.

    In training ``image`` is a float32 square that may leave 0..255. In test it is uint8, resized
    as OpenCV does (no antialiasing).
    """

    @configurable
    def __init__(
        self, is_train: bool, *, augmentations: Sequence[T.Augmentation], image_format: str
    ) -> None:
        """Take the parts; ``ALRPDatasetMapper(cfg, is_train)`` makes them from a config.

        Args:
            is_train: whether to read annotations and make ``instances``.
            augmentations: applied in this order.
            image_format: "RGB" or "BGR", the channel order of ``image``.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        mode = "training" if is_train else "inference"
        _LOGGER.info(f"Augmentations in {mode}: {self.augmentations}")

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        """The published augmentations; UserError for options that they cannot honour."""
        _check_config(cfg)
        if is_train:
            augmentations = [
                PhotometricDistortion(cfg.INPUT.FORMAT),
                Expand(cfg.MODEL.PIXEL_MEAN),
                MinIoURandomCrop(),
                ResizeToSquare(cfg.INPUT.SQUARE_SIZE_TRAIN),
            ]
            flip = cfg.INPUT.RANDOM_FLIP
            if flip != "none":
                augmentations.append(
                    T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")
                )
        else:
            augmentations = [ResizeToFit(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)]
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Map one record of Detectron2's dataset format, which is left as it is.

        Returns:
            dict: the record without annotations, with ``image`` (3, H, W) and, in training,
            ``instances`` with ``gt_boxes`` (M, 4) float32 XYXY in pixels of ``image`` and
            ``gt_classes`` (M,) int64; M may be 0.
        Raises:
            UserError: if the image cannot be read or an annotation makes no sense.
        """
        dropped = ("annotations", "sem_seg_file_name")
        record = {key: value for key, value in dataset_dict.items() if key not in dropped}
        image = self._read_image(record)
        if not self.is_train:
            record["image"] = _to_tensor(self._augment(image, None).image)
            return record
        annotations = _usable_annotations(dataset_dict, *image.shape[:2])
        augmented = self._augment(image.astype(np.float32), annotations.boxes)
        record["image"] = _to_tensor(augmented.image)
        record["instances"] = _to_instances(annotations, augmented)
        return record

    def _augment(self, image: np.ndarray, boxes: np.ndarray | None) -> T.AugInput:
        augmented = T.AugInput(image, boxes=boxes)
        self.augmentations(augmented)
        return augmented

    def _read_image(self, record: dict) -> np.ndarray:
        """Image (H, W, 3) uint8; checks ``width`` and ``height`` of the record, or adds them."""
        image = read_image(record["file_name"], self.image_format)
        with naming(record["file_name"]):
            detection_utils.check_image_size(record, image)
        return image


class _Annotations(NamedTuple):
    """Annotations of one image that the published training keeps.

    Attributes:
        boxes: (M, 4) float64 XYXY in absolute pixels; they may stick out of the image.
        classes: (M,) int64.
        is_crowd: (M,) bool.
    """

    boxes: np.ndarray
    classes: np.ndarray
    is_crowd: np.ndarray


def _usable_annotations(dataset_dict: dict, height: int, width: int) -> _Annotations:
    """Leave out boxes below one pixel, without area, outside of the image, or marked "ignore"."""
    where = dataset_dict["file_name"]
    if "annotations" not in dataset_dict:
        raise UserError(
            f"{where}: expected 'annotations' in the record of a training image, but it has none; "
            "name a dataset with annotations in DATASETS.TRAIN (an empty list is allowed)."
        )
    annotations = [a for a in dataset_dict["annotations"] if not a.get("ignore", 0)]
    # Sides as annotated: x + w - x may differ from w in the last bit, and 1 is the limit.
    boxes = np.array([_box_xywh(a, where) for a in annotations], dtype=np.float64).reshape(-1, 4)
    areas = np.array([a.get("area", np.inf) for a in annotations], dtype=np.float64)
    sides = boxes[:, 2:].copy()
    boxes[:, 2:] += boxes[:, :2]
    overlap = np.minimum(boxes[:, 2:], [width, height]) - np.maximum(boxes[:, :2], 0.0)
    usable = (sides >= 1.0).all(axis=1) & (overlap > 0.0).all(axis=1) & (areas > 0.0)
    return _Annotations(
        boxes[usable],
        np.array([a["category_id"] for a in annotations], dtype=np.int64)[usable],
        np.array([a.get("iscrowd", 0) for a in annotations], dtype=bool)[usable],
    )


def _box_xywh(annotation: dict, where: str) -> np.ndarray:
    """Corner, width and height (4,) float64 of an annotation's box."""
    box = np.asarray(annotation["bbox"], dtype=np.float64)
    if box.shape != (4,) or not np.isfinite(box).all():
        raise UserError(
            f"{where}: expected a 'bbox' of four finite numbers, but got {annotation['bbox']}; "
            "correct or delete this annotation."
        )
    return BoxMode.convert(box[None], annotation["bbox_mode"], BoxMode.XYWH_ABS)[0]


def _to_instances(annotations: _Annotations, augmented: T.AugInput) -> Instances:
    """Boxes of the augmented image, clipped to it, without crowds and empty ones."""
    instances = Instances(augmented.image.shape[:2])
    instances.gt_boxes = Boxes(torch.as_tensor(augmented.boxes, dtype=torch.float32))
    instances.gt_classes = torch.from_numpy(annotations.classes)
    instances.gt_boxes.clip(instances.image_size)
    kept = instances.gt_boxes.nonempty() & ~torch.from_numpy(annotations.is_crowd)
    return instances[kept]


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    """(3, H, W), contiguous; crops and flips are views with odd strides until here."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _check_config(cfg: CfgNode) -> None:
    """Nothing is asked for that the published augmentation would silently leave out."""
    conflicts = {
        "MODEL.MASK_ON": cfg.MODEL.MASK_ON,
        "MODEL.KEYPOINT_ON": cfg.MODEL.KEYPOINT_ON,
        "MODEL.LOAD_PROPOSALS": cfg.MODEL.LOAD_PROPOSALS,
        "INPUT.CROP.ENABLED": cfg.INPUT.CROP.ENABLED,
    }
    wrong = [key for key, is_on in conflicts.items() if is_on]
    if wrong:
        raise UserError(
            f"{' and '.join(wrong)}: expected False with INPUT.AUGMENTATION 'published', which "
            "has boxes only and a crop of its own, but got True; set it to False or "
            "INPUT.AUGMENTATION to 'detectron2'."
        )
    if cfg.INPUT.SQUARE_SIZE_TRAIN < 1:
        raise UserError(
            "INPUT.SQUARE_SIZE_TRAIN: expected a positive number of pixels, but got "
            f"{cfg.INPUT.SQUARE_SIZE_TRAIN}; the published sizes are 512 and 800."
        )
