"""COCO in the published pipelines: squares of 512 pixels in training, 500/833 in test."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators

from alrp.data.augmentation import (
    Expand,
    MinIoURandomCrop,
    PhotometricDistortion,
    ResizeToFit,
    ResizeToSquare,
)
from alrp.data.dataset_mapper import ALRPDatasetMapper
from alrp.evaluation import LRPEvaluator

constants = model_zoo.get_config("common/data/constants.py").constants
dataloader = model_zoo.get_config("common/data/coco.py").dataloader

dataloader.train.total_batch_size = 32
dataloader.train.mapper = L(ALRPDatasetMapper)(
    is_train=True,
    augmentations=[
        L(PhotometricDistortion)(image_format="RGB"),
        L(Expand)(fill=constants.imagenet_rgb256_mean),
        L(MinIoURandomCrop)(),
        L(ResizeToSquare)(size=512),
        L(T.RandomFlip)(horizontal=True),
    ],
    image_format="RGB",
)
dataloader.test.mapper = L(ALRPDatasetMapper)(
    is_train=False,
    augmentations=[L(ResizeToFit)(max_short=500, max_long=833)],
    image_format="RGB",
)
dataloader.evaluator = L(DatasetEvaluators)(
    evaluators=[
        L(evaluator)(
            dataset_name="${....test.dataset.names}", output_dir="${train.output_dir}/inference"
        )
        for evaluator in (COCOEvaluator, LRPEvaluator)
    ]
)
