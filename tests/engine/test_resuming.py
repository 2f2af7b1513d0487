"""A resumed run is the continuation of the interrupted one: images, random numbers, weights."""

from __future__ import annotations

import json
import logging
from pathlib import Path
import pytest
import torch
from helpers.interruption import Interruption

from detectron2.data import build_detection_train_loader

from alrp.engine import Trainer, argument_parser, setup_config


class Recording:
    """A loader that is hidden in one of another kind, and notes the images that come."""

    def __init__(self, loader):
        self.loader_of_another_name = loader
        self.images = []

    def __iter__(self):
        for batch in self.loader_of_another_name:
            self.images.append([Path(x["file_name"]).name for x in batch])
            yield batch


class RecordingTrainer(Trainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return Recording(super().build_train_loader(cfg))


@pytest.fixture
def train(command_line, tmp_path):
    """``train(*options, stop=None, KEY=VALUE...)``: the images of each iteration of a run."""

    def run(*options, stop=None, trainer_class=RecordingTrainer, **overrides):
        overrides = {"SOLVER__MAX_ITER": 6, "SOLVER__CHECKPOINT_PERIOD": 1, **overrides}
        args = argument_parser().parse_args(command_line(*options, **overrides))
        cfg = setup_config(args)
        Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
        torch.manual_seed(0)  # the first weights
        trainer = trainer_class(cfg)
        trainer.resume_or_load(resume=args.resume)
        if stop is not None:
            trainer.register_hooks([Interruption(stop)])
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
        else:
            trainer.train()
        return getattr(trainer.data_loader, "images", None)

    return run


def final_state(folder):
    saved = torch.load(folder / "model_final.pth")
    return saved["model"], saved["trainer"]["_trainer"]["optimizer"]["state"]


@pytest.mark.parametrize("workers", [0, 2])
def test_weights_are_those_of_an_uninterrupted_run(train, tmp_path, workers):
    whole = train(OUTPUT_DIR=tmp_path / "whole", DATASETS__TEST=())
    options = {"DATASETS__TEST": (), "DATALOADER__NUM_WORKERS": workers}
    first = train(stop=2, **options)
    second = train("--resume", stop=5, **options)
    third = train("--resume", **options)
    assert [*first, *second, *third] == whole
    expected, found = (final_state(tmp_path / name) for name in ("whole", "output"))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_micro_batches_may_change_when_a_run_is_resumed(train, tmp_path):
    class InDoublePrecision(RecordingTrainer):
        @classmethod
        def build_model(cls, cfg):
            return super().build_model(cfg).double()

    sgd = {"SOLVER__OPTIMIZER": "SGD", "SOLVER__BASE_LR": 0.001, "SOLVER__WARMUP_ITERS": 0}
    overrides = {**sgd, "DATASETS__TEST": (), "SOLVER__MAX_ITER": 3}
    overrides |= {"MODEL__BACKBONE__NORM_EVAL": True, "trainer_class": InDoublePrecision}
    whole = train(OUTPUT_DIR=tmp_path / "whole", **overrides)
    first = train(stop=1, SOLVER__MICRO_BATCH_SIZE=1, **overrides)
    assert [*first, *train("--resume", SOLVER__MICRO_BATCH_SIZE=3, **overrides)] == whole
    expected, found = (final_state(tmp_path / name) for name in ("whole", "output"))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_a_run_without_seed_goes_on_with_the_one_that_it_drew(train):
    overrides = {"SEED": -1, "DATASETS__TEST": (), "SOLVER__MAX_ITER": 3}
    images = [*train(stop=1, **overrides), *train("--resume", **overrides)]
    assert len({name for batch in images for name in batch}) == 12  # each image once


def test_another_seed_does_not_change_the_order_of_a_resumed_run(train, tmp_path, caplog):
    overrides = {"DATASETS__TEST": (), "SOLVER__MAX_ITER": 3}
    whole = train(OUTPUT_DIR=tmp_path / "whole", **overrides)
    first = train(stop=1, **overrides)
    with caplog.at_level(logging.WARNING, "alrp"):
        assert [*first, *train("--resume", SEED=2, **overrides)] == whole
    assert "SEED is 2, but the resumed run goes on with its own, 1" in caplog.text


def test_another_batch_size_goes_on_behind_the_images_seen(train, caplog):
    overrides = {"DATASETS__TEST": (), "SOLVER__MAX_ITER": 3}
    first = train(stop=2, SOLVER__IMS_PER_BATCH=3, **overrides)
    with caplog.at_level(logging.WARNING, "alrp"):
        second = train("--resume", SOLVER__IMS_PER_BATCH=6, **overrides)
    assert "An iteration had 3 images and has 6 now" in caplog.text
    assert len({name for batch in first + second for name in batch}) == 12  # 3 + 3 + 6


def test_a_checkpoint_without_this_state_goes_on_at_its_iteration(train, tmp_path):
    overrides = {"DATASETS__TEST": ()}
    whole = train(OUTPUT_DIR=tmp_path / "whole", **overrides)
    train(stop=2, **overrides)
    path = tmp_path / "output" / "model_0000001.pth"
    saved = torch.load(path)
    del saved["trainer"]["hooks"]["SeededIterations"]
    torch.save(saved, path)
    assert train("--resume", **overrides) == whole[2:]


def test_a_loader_of_another_kind_is_said_to_start_anew(train, caplog):
    class Repeating(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            record = next(iter(build_detection_train_loader(cfg)))
            return [record] * 6

    overrides = {"DATASETS__TEST": (), "trainer_class": Repeating}
    train(stop=1, **overrides)
    with caplog.at_level(logging.WARNING, "alrp"):
        train("--resume", **overrides)
    assert "starts anew" in caplog.text


def test_nothing_left_to_train_is_said(train, caplog):
    overrides = {"DATASETS__TEST": (), "SOLVER__MAX_ITER": 2}
    train(**overrides)
    with caplog.at_level(logging.WARNING, "alrp"):
        train("--resume", **{**overrides, "SOLVER__MAX_ITER": 1})
    assert "has done 2 iterations of 1 (SOLVER.MAX_ITER): nothing is left" in caplog.text


def test_other_training_sets_of_a_resumed_run_are_named(train, shapes, caplog):
    overrides = {"DATASETS__TEST": (), "SOLVER__MAX_ITER": 2}
    train(stop=1, **overrides)
    others = {**overrides, "DATASETS__TRAIN": (f"{shapes.name}_val",)}
    with caplog.at_level(logging.WARNING, "alrp"):
        train("--resume", **others)
    assert f"on 12 images of ['{shapes.name}_train']" in caplog.text
    assert f"with 4 of ['{shapes.name}_val']" in caplog.text


def test_metrics_have_each_iteration_once(train, tmp_path):
    class Often(Trainer):
        def build_hooks(self):
            hooks = super().build_hooks()
            hooks[-1]._period = 1
            return hooks

    path = tmp_path / "output" / "metrics.json"
    overrides = {"SOLVER__CHECKPOINT_PERIOD": 2, "trainer_class": Often}
    train(stop=3, SOLVER__MAX_ITER=8, **overrides)
    with path.open("a") as file:
        file.write('{"iteration": 3, "total_lo')  # the process was killed here
    train("--resume", SOLVER__MAX_ITER=4, **overrides)
    train("--resume", SOLVER__MAX_ITER=5, **overrides)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["iteration"] for row in rows if "total_loss" in row] == [0, 1, 2, 3, 4]
    assert [row["iteration"] for row in rows if "bbox/AP" in row] == [4, 5]
