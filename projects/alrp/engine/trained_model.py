"""A trained model as a config describes it."""

from __future__ import annotations

import os
from torch import nn

from detectron2.config import CfgNode
from detectron2.modeling import build_model

from ..checkpoint import CheckedCheckpointer
from ..data.datasets.coco_format import class_names
from ..errors import UserError
from .checks import check_class_count, check_config, check_device
from .preflight import report


def load_trained_model(cfg: CfgNode) -> tuple[nn.Module, list[str] | None]:
    """The model in eval mode with the weights of ``MODEL.WEIGHTS``, which must fit it.

    Args:
        cfg: of :func:`alrp.engine.setup_config`.

    Returns:
        tuple: the model, and the names of its classes: those of ``DATASETS``, or else of the
        checkpoint, None if neither tells them.

    Raises:
        UserError: if a key is wrong, or if weights, model and dataset do not fit together.
    """
    findings = check_config(cfg, for_training=False, errors_only=True)
    findings += check_device(cfg, for_training=False)
    names = class_names((*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN))
    if names:
        findings += check_class_count(cfg, "the dataset", names)
    report(findings)
    weights = cfg.MODEL.WEIGHTS
    if not weights or ("://" not in weights and not os.path.isfile(weights)):
        raise UserError(
            f"MODEL.WEIGHTS: expected the checkpoint of a trained model, but got {weights!r}; add "
            "--opts MODEL.WEIGHTS FILE at the end."
        )
    model = build_model(cfg).eval()
    loaded = CheckedCheckpointer(model, class_names=names).load(weights)
    return model, names or loaded.get("class_names")
