"""What a trainer that is not this project's needs of a config."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts

from .. import checkpoint  # noqa: F401  teaches Detectron2 torchvision:// addresses
from ..data.datasets.coco_format import register_coco_format
from ..errors import UserError
from .checks.datasets import check_class_count
from .checks.keys import changed_keys, value_of
from .trainer import set_self_balance_period

_LOGGER = logging.getLogger(__name__)

# What Detectron2's own trainer does, whatever the value of the key.
_READ_BY_OUR_TRAINER = {
    "INPUT.AUGMENTATION": "DefaultTrainer maps images by INPUT.MIN_SIZE_TRAIN etc.",
    "SOLVER.AMP.DTYPE": "DefaultTrainer knows float16 only",
    "SOLVER.MICRO_BATCH_SIZE": "DefaultTrainer lets all images pass at once",
    "SOLVER.OPTIMIZER": "DefaultTrainer trains with SGD",
    "TEST.BEST_METRIC": "DefaultTrainer keeps no best weights",
    "TEST.NUM_PICTURES": "DefaultTrainer draws none",
    "TEST.PATIENCE": "DefaultTrainer trains to the end",
    "TEST.VALIDATION_LOSS": "DefaultTrainer computes none",
}


def prepare_config(cfg: CfgNode) -> CfgNode:
    """A config as a trainer that is not :class:`alrp.engine.Trainer` needs it.

    The datasets of ``DATASETS.COCO_FORMAT`` and addresses like ``torchvision://resnet50`` are
    registered. A self-balance period of 0 becomes the iterations of one epoch of
    ``DATASETS.TRAIN``, which is read for this. Keys that only this project's trainer goes by are
    warned of.

    Args:
        cfg: with the keys of :func:`alrp.add_alrp_config`; it stays as it is.

    Returns:
        CfgNode: frozen if ``cfg`` is.

    Raises:
        UserError: if an entry of ``DATASETS.COCO_FORMAT`` or its file is wrong, or the config has
            not the keys.
    """
    if "ALRP" not in cfg.MODEL:
        raise UserError(
            "prepare_config: the config has no MODEL.ALRP; call alrp.add_alrp_config(cfg) when it "
            "is new, before any file is merged."
        )
    register_coco_format(cfg)
    for key in changed_keys(cfg):
        if key in _READ_BY_OUR_TRAINER:
            _LOGGER.warning(
                f"{key} is {value_of(cfg, key)!r}, but only alrp.engine.Trainer reads it, unless "
                f"yours does: {_READ_BY_OUR_TRAINER[key]}."
            )
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    if clipping.ENABLED and clipping.CLIP_TYPE == "full_model":
        _LOGGER.warning(
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE is 'full_model', which Detectron2's DefaultTrainer "
            "does not know; unless your trainer does, set 'norm', the norm of each parameter."
        )
    if cfg.MODEL.ALRP.SELF_BALANCE.PERIOD > 0 or not cfg.DATASETS.TRAIN:
        _warn_of_class_count(cfg)
        return cfg
    filters = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=filters)
    _warn_of_class_count(cfg)
    prepared = set_self_balance_period(cfg, len(records))
    if not cfg.is_frozen():
        prepared.defrost()
    return prepared


def _warn_of_class_count(cfg: CfgNode) -> None:
    """Of the training sets whose classes are known; a set that is not read yet may have others."""
    for name in filter(DatasetCatalog.__contains__, cfg.DATASETS.TRAIN):
        classes = MetadataCatalog.get(name).get("thing_classes")
        for finding in check_class_count(cfg, f"dataset {name!r}", classes) if classes else ():
            _LOGGER.warning(f"{finding.where}: {finding.what}. To fix: {finding.fix}.")
