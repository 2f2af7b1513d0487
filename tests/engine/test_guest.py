"""Detectors of this project under trainers of others."""

from __future__ import annotations

import logging
import pytest
import torch
from helpers.plain_training import SELF_BALANCE, tiny_config, train_beside_another

from detectron2.data import DatasetCatalog
from detectron2.utils.file_io import PathManager

from alrp import prepare_config
from alrp.errors import UserError


@pytest.fixture(scope="module")
def states(shapes, tmp_path_factory):
    """For each of two processes, the state of the model without and with a validation hook."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this PyTorch has no Gloo")
    folder = tmp_path_factory.mktemp("plain")
    torch.multiprocessing.spawn(train_beside_another, (2, str(folder), str(shapes)), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pth") for rank in range(2)]


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


@pytest.mark.parametrize("key, value", [("SOLVER", "OPTIMIZER"), ("INPUT", "AUGMENTATION")])
def test_keys_that_only_our_trainer_reads_are_warned_of(shapes, caplog, key, value):
    cfg = tiny_config(str(shapes), "train", 4)
    with caplog.at_level(logging.WARNING, "alrp"):
        prepare_config(cfg)
        assert caplog.text == ""
        cfg[key][value] = "AdamW" if key == "SOLVER" else "published"
        prepare_config(cfg)
    assert f"{key}.{value} is '{cfg[key][value]}', but only alrp.engine.Trainer" in caplog.text
