"""Detectors of this project under trainers of others."""

from __future__ import annotations

import logging
import pytest
import torch
from helpers.plain_training import SELF_BALANCE, tiny_config, train_beside_another
from helpers.processes import run_two

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.utils.file_io import PathManager

from alrp import prepare_config
from alrp.engine.checks.keys import default_config, has_key, leaves, value_of
from alrp.errors import UserError


@pytest.fixture(scope="module")
def states(shapes, tmp_path_factory):
    """For each of two processes, the state of the model without and with a validation hook."""
    return run_two(train_beside_another, tmp_path_factory.mktemp("plain"), str(shapes))


@pytest.mark.parametrize("hook", ["validate_without_gradients", "validate_paused"])
def test_a_validation_hook_changes_neither_weights_nor_self_balance(states, hook):
    for rank in states:
        torch.testing.assert_close(rank[hook], rank["without"], rtol=0, atol=0)


def test_self_balance_has_counted_the_steps_of_an_epoch(states):
    for rank in states:  # 12 images in batches of 4: the fourth step begins the second epoch
        state = {name: rank["without"][f"{SELF_BALANCE}.{name}"] for name in ("weight", "count")}
        assert state["count"] == 1 and state["weight"] not in (1, 50)
    assert torch.equal(*(rank["without"][f"{SELF_BALANCE}.weight"] for rank in states))


def test_a_prepared_config_has_datasets_addresses_and_the_period_of_an_epoch(shapes):
    cfg = tiny_config(str(shapes), "train", 5)
    prepared = prepare_config(cfg)
    assert prepared.MODEL.ALRP.SELF_BALANCE.PERIOD == 3  # 12 images in batches of 5
    assert cfg.MODEL.ALRP.SELF_BALANCE.PERIOD == 0 and not prepared.is_frozen()
    assert len(DatasetCatalog.get(prepared.DATASETS.TRAIN[0])) == 12
    with pytest.raises(UserError, match="expected one of the models"):
        PathManager.get_local_path("torchvision://none")


def test_a_period_of_ones_own_and_a_frozen_config_stay(shapes):
    cfg = tiny_config(str(shapes), "train", 4)
    cfg.MODEL.ALRP.SELF_BALANCE.PERIOD = 7
    cfg.freeze()
    assert prepare_config(cfg).MODEL.ALRP.SELF_BALANCE.PERIOD == 7
    assert prepare_config(cfg).is_frozen()


# Read by prepare_config() itself, or with another key that is warned of.
HEEDED_KEYS = {"DATASETS.CLASSES", "DATASETS.COCO_FORMAT", "INPUT.SQUARE_SIZE_TRAIN"}


@pytest.mark.parametrize(("kind", "warned"), [("full_model", True), ("norm", False)])
def test_clipping_of_the_whole_model_is_warned_of(shapes, caplog, kind, warned):
    cfg = tiny_config(str(shapes), "train", 4)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = True, kind
    with caplog.at_level(logging.WARNING, "alrp"):
        prepare_config(cfg)
    assert ("CLIP_TYPE is 'full_model'" in caplog.text) == warned


def test_another_number_of_classes_is_warned_of(shapes, caplog):
    cfg = tiny_config(str(shapes), "train", 4)
    cfg.MODEL.RETINANET.NUM_CLASSES = 80
    with caplog.at_level(logging.WARNING, "alrp"):
        prepare_config(cfg)
    assert "the model has 80 classes, but dataset" in caplog.text
    assert "set MODEL.RETINANET.NUM_CLASSES 3" in caplog.text


def test_a_config_without_our_keys_is_told_so():
    with pytest.raises(UserError, match=r"call alrp.add_alrp_config\(cfg\)"):
        prepare_config(get_cfg())


def own_trainer_keys():
    """Keys of this project that no model reads."""
    plain = get_cfg()
    keys = [key for key, _ in leaves(default_config()) if not has_key(plain, key)]
    return [key for key in keys if not key.startswith("MODEL.") and key not in HEEDED_KEYS]


def test_the_published_settings_are_not_warned_of(shapes, caplog):
    with caplog.at_level(logging.WARNING, "alrp"):
        prepare_config(tiny_config(str(shapes), "train", 4))
    assert caplog.text == ""


@pytest.mark.parametrize("key", own_trainer_keys())
def test_every_key_that_only_our_trainer_reads_is_warned_of(shapes, caplog, key):
    cfg = tiny_config(str(shapes), "train", 4)
    others = {str: "bfloat16", bool: True, int: 3}
    cfg.merge_from_list([key, others[type(value_of(cfg, key))]])
    with caplog.at_level(logging.WARNING, "alrp"):
        prepare_config(cfg)
    assert f"{key} is {value_of(cfg, key)!r}, but only alrp.engine.Trainer" in caplog.text
