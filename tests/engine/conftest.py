"""A tiny dataset and a config that trains on it within seconds."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger

from alrp.data.datasets.shapes import make_shapes_dataset

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "Shapes" / "alrp_retinanet_R_18_FPN_ATSS_demo.yaml")


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """Root of a shapes dataset of 12 and 4 images of 64 pixels."""
    root = tmp_path_factory.mktemp("shapes")
    make_shapes_dataset(root, num_train=12, num_val=4, image_size=64)
    return root


@pytest.fixture(scope="session")
def command_line_to(shapes):
    """``command_line_to(folder, ...)``: as ``command_line``, with another output folder."""

    def build(output, *options, **overrides):
        datasets = [
            [f"{shapes.name}_{split}", f"{shapes}/annotations/{split}.json", f"{shapes}/{split}"]
            for split in ("train", "val")
        ]
        keys = {
            "DATASETS.COCO_FORMAT": datasets,
            "DATASETS.TRAIN": (datasets[0][0],),
            "DATASETS.TEST": (datasets[1][0],),
            "MODEL.FPN.OUT_CHANNELS": 32,
            "MODEL.ALRP.SELF_BALANCE.PERIOD": 0,
            "MODEL.RETINANET.SCORE_THRESH_TEST": 0.001,
            "INPUT.MIN_SIZE_TRAIN": (64,),
            "INPUT.MAX_SIZE_TRAIN": 64,
            "INPUT.MIN_SIZE_TEST": 64,
            "INPUT.MAX_SIZE_TEST": 64,
            "DATALOADER.NUM_WORKERS": 0,
            "SOLVER.IMS_PER_BATCH": 4,
            "SOLVER.MAX_ITER": 4,
            "SOLVER.STEPS": (),
            "SEED": 1,
            "OUTPUT_DIR": output,
        }
        keys.update({key.replace("__", "."): value for key, value in overrides.items()})
        pairs = [str(x) for pair in keys.items() for x in pair]
        return ["--config-file", CONFIG, *options, *pairs]

    return build


@pytest.fixture
def command_line(command_line_to, tmp_path):
    """``command_line(*options, KEY=VALUE...)``: arguments of train_net.py for a run of seconds."""
    return partial(command_line_to, tmp_path / "output")


@pytest.fixture(scope="module")
def train_net(load_script):
    """The module ``train_net`` of the repository root."""
    return load_script("train_net.py")


@pytest.fixture(autouse=True)
def _forget_log_handlers():
    """Detectron2 keeps handlers for the life of a process; their streams end with the test."""
    yield
    for name in ("detectron2", "fvcore", "alrp"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
    setup_logger.cache_clear()


@pytest.fixture(autouse=True)
def _forget_registered_names():
    """Datasets are registered for the life of a process; their files end with the test."""
    before = set(DatasetCatalog.keys())
    yield
    for name in set(DatasetCatalog.keys()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
