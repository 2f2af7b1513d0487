"""A training and a test set of four small images, and a config that has them."""

from __future__ import annotations

import pytest
from helpers.small_dataset import TRAIN, VAL, Dataset

from alrp.config import load_config
from alrp.data.datasets.coco_format import register_coco_format


@pytest.fixture
def train(tmp_path) -> Dataset:
    return Dataset(tmp_path / "train")


@pytest.fixture
def val(tmp_path) -> Dataset:
    return Dataset(tmp_path / "val")


@pytest.fixture
def cfg(train, val):
    """A config of ours with both datasets, in which there is nothing to find."""
    cfg = load_config("")
    cfg.MODEL.META_ARCHITECTURE = "ALRPRetinaNet"
    cfg.MODEL.RETINANET.NUM_CLASSES = 2
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (TRAIN,), (VAL,)
    cfg.DATASETS.COCO_FORMAT = [
        [TRAIN, str(train.json), str(train.folder)],
        [VAL, str(val.json), str(val.folder)],
    ]
    register_coco_format(cfg)
    return cfg
