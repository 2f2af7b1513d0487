"""COCO in the published pipelines: squares in training, OpenCV's resize in test, AP and LRP."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from detectron2.evaluation import DatasetEvaluators

from alrp.data.augmentation import (
    Expand,
    MinIoURandomCrop,
    PhotometricDistortion,
    ResizeToFit,
    ResizeToSquare,
)
from alrp.data.dataset_mapper import ALRPDatasetMapper
from alrp.evaluation import APEvaluator, LRPEvaluator


def coco_published(*, batch, train_size, test_short, test_long):
    """The ``dataloader`` of a config.

    Args:
        batch: images per iteration of all processes.
        train_size: side of the training images in pixels.
        test_short: greatest shorter side of a test image in pixels.
        test_long: greatest longer side of a test image in pixels.
    """
    constants = model_zoo.get_config("common/data/constants.py").constants
    dataloader = model_zoo.get_config("common/data/coco.py").dataloader
    dataloader.train.total_batch_size = batch
    dataloader.train.mapper = L(ALRPDatasetMapper)(
        is_train=True,
        augmentations=[
            L(PhotometricDistortion)(image_format="RGB"),
            L(Expand)(fill=constants.imagenet_rgb256_mean),
            L(MinIoURandomCrop)(),
            L(ResizeToSquare)(size=train_size),
            L(T.RandomFlip)(horizontal=True),
        ],
        image_format="RGB",
    )
    dataloader.test.mapper = L(ALRPDatasetMapper)(
        is_train=False,
        augmentations=[L(ResizeToFit)(max_short=test_short, max_long=test_long)],
        image_format="RGB",
    )
    dataloader.evaluator = L(DatasetEvaluators)(
        evaluators=[
            L(evaluator)(
                dataset_name="${....test.dataset.names}",
                output_dir="${train.output_dir}/inference",
            )
            for evaluator in (APEvaluator, LRPEvaluator)
        ]
    )
    return dataloader
