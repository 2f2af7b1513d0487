"""Subclasses override the trainer's methods as Detectron2's documentation and projects do."""

from __future__ import annotations

import itertools
from pathlib import Path
import pytest
import torch

from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.engine import hooks
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators, inference_on_dataset
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.solver.build import get_default_optimizer_params
from detectron2.utils.events import JSONWriter

from alrp.engine import Trainer, argument_parser, setup_config
from alrp.losses import SelfBalance


@pytest.fixture
def train(command_line):
    """``train(trainer_class, KEY=VALUE...)``: the trainer after a run of two iterations."""

    def run(trainer_class, resume=False, evaluate=False, **overrides):
        overrides = {"SOLVER__MAX_ITER": 2, **overrides}
        if not evaluate:
            overrides["DATASETS__TEST"] = ()
        cfg = setup_config(argument_parser().parse_args(command_line(**overrides)))
        Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
        trainer = trainer_class(cfg)
        trainer.resume_or_load(resume=resume)
        trainer.train()
        return trainer

    return run


def period(trainer):
    (balance,) = (m for m in trainer.model.modules() if isinstance(m, SelfBalance))
    return balance.period


class WithMapper(Trainer):  # Detectron2's documentation, PointRend, Panoptic-DeepLab
    @classmethod
    def build_train_loader(cls, cfg):
        mapper = DatasetMapper(cfg, is_train=True, augmentations=[T.Resize((64, 64))])
        return build_detection_train_loader(cfg, mapper=mapper)


class WithSampler(Trainer):
    @classmethod
    def build_train_loader(cls, cfg):
        dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN)
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dataset, 0.9)
        sampler = RepeatFactorTrainingSampler(factors)
        return build_detection_train_loader(cfg, dataset=dataset, sampler=sampler)


class WithGroupedImages(Trainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg, aspect_ratio_grouping=True)


class CombinedLoader:
    """As in DensePose: one batch of each loader, joined."""

    def __init__(self, loaders):
        self.loaders = loaders

    def __iter__(self):
        for batches in zip(*self.loaders):
            yield list(itertools.chain.from_iterable(batches))


class WithSeveralLoaders(Trainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return CombinedLoader([build_detection_train_loader(cfg) for _ in range(2)])


class WithWrappedParent(Trainer):
    @classmethod
    def build_train_loader(cls, cfg):
        inner = super().build_train_loader(cfg)
        return ([{**record, "extra": 1} for record in batch] for batch in inner)


@pytest.mark.parametrize(
    "trainer_class",
    [WithMapper, WithSampler, WithGroupedImages, WithSeveralLoaders, WithWrappedParent],
)
def test_a_loader_of_a_subclass_trains_with_the_period_of_an_epoch(train, trainer_class):
    trainer = train(trainer_class)
    assert trainer.iter == 2
    assert period(trainer) == 3  # 12 images in batches of 4


class WithOwnDataset(Trainer):
    @classmethod
    def build_train_loader(cls, cfg):
        dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN)[:7]
        return build_detection_train_loader(cfg, dataset=dataset)


class WithOwnRecords(Trainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return super().build_train_loader(cfg, get_detection_dataset_dicts(cfg.DATASETS.TRAIN)[:7])


@pytest.mark.parametrize("trainer_class", [WithOwnDataset, WithOwnRecords])
def test_an_epoch_is_that_of_the_dataset_that_the_loader_reads(train, trainer_class):
    assert period(train(trainer_class)) == 2  # 7 images in batches of 4


class WithoutDatasets(Trainer):  # the loader is all that there is
    @classmethod
    def build_train_loader(cls, cfg):
        records = get_detection_dataset_dicts(cfg.DATASETS.COCO_FORMAT[0][0])
        loader = build_detection_train_loader(cfg, dataset=records)
        return [next(iter(loader))] * 2


def test_a_loader_of_ones_own_needs_no_dataset(train):
    overrides = {"DATASETS__TRAIN": (), "MODEL__ALRP__SELF_BALANCE__PERIOD": 5}
    assert period(train(WithoutDatasets, **overrides)) == 5


class WithOwnParts(Trainer):  # optimizers as in Panoptic-DeepLab and DensePose
    @classmethod
    def build_model(cls, cfg):
        model = build_model(cfg)
        model.made_by_subclass = True
        return model

    @classmethod
    def build_optimizer(cls, cfg, model):
        overrides = {"bias": {"lr": cfg.SOLVER.BASE_LR / 2}}
        params = get_default_optimizer_params(model, cfg.SOLVER.BASE_LR, overrides=overrides)
        return torch.optim.SGD(params, cfg.SOLVER.BASE_LR)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        scheduler = build_lr_scheduler(cfg, optimizer)
        scheduler.made_by_subclass = True
        return scheduler

    @staticmethod
    def auto_scale_workers(cfg, num_workers):
        assert num_workers == 1
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.IMS_PER_BATCH = 2
        return cfg


def test_model_optimizer_scheduler_and_scaling_of_a_subclass_are_used(train):
    trainer = train(WithOwnParts)
    assert trainer.model.made_by_subclass and trainer.scheduler.made_by_subclass
    assert len({group["initial_lr"] for group in trainer.optimizer.param_groups}) == 2
    assert period(trainer) == 6  # 12 images in batches of 2


class WithOwnHooks(Trainer):
    def build_hooks(self):
        built = super().build_hooks()
        best = hooks.BestCheckpointer(1, self.checkpointer, "bbox/AP")
        built.insert(-1, best)
        return built

    def build_writers(self):
        return [JSONWriter(str(Path(self.cfg.OUTPUT_DIR) / "own.json"))]


def test_hooks_and_writers_of_a_subclass_are_used(train, tmp_path):
    train(WithOwnHooks, evaluate=True, TEST__EVAL_PERIOD=1)
    assert (tmp_path / "output" / "model_best.pth").exists()
    assert "bbox/AP" in (tmp_path / "output" / "own.json").read_text()
    assert not (tmp_path / "output" / "metrics.json").exists()


class WithFewHooks(Trainer):
    def build_hooks(self):
        return [hooks.LRScheduler(), hooks.PeriodicCheckpointer(self.checkpointer, 1)]


def test_a_run_goes_on_although_a_subclass_replaces_all_hooks(train, tmp_path):
    train(WithFewHooks, SOLVER__MAX_ITER=1)
    assert train(WithFewHooks, resume=True).start_iter == 1
    saved = torch.load(tmp_path / "output" / "model_final.pth")
    assert saved["trainer"]["hooks"]["SeededIterations"]["num_seen"] == 8


class WithOwnStep(Trainer):  # gradient accumulation and further state, as many projects have
    num_steps = 0

    def run_step(self):
        self._trainer.iter = self.iter
        self._trainer.run_step()
        self.num_steps += 1

    def state_dict(self):
        return {**super().state_dict(), "num_steps": self.num_steps}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.num_steps = state_dict["num_steps"]


def test_steps_and_state_of_a_subclass_are_used(train):
    assert train(WithOwnStep, SOLVER__MAX_ITER=1).num_steps == 1
    assert train(WithOwnStep, resume=True).num_steps == 2


class WithOwnTest(Trainer):  # DensePose, and evaluation with test-time augmentation
    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_detection_test_loader(cfg, dataset_name, mapper=DatasetMapper(cfg, False))

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None, embedder=None):
        folder = output_folder or str(Path(cfg.OUTPUT_DIR) / "own")
        return DatasetEvaluators([COCOEvaluator(dataset_name, output_dir=folder)])

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        (name,) = cfg.DATASETS.TEST
        evaluator = cls.build_evaluator(cfg, name, embedder=None)
        return inference_on_dataset(model, cls.build_test_loader(cfg, name), evaluator)


class WithOwnEvaluator(Trainer):  # TridentNet
    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        return COCOEvaluator(dataset_name, output_dir=str(Path(cfg.OUTPUT_DIR) / "own"))


@pytest.mark.parametrize("trainer_class", [WithOwnTest, WithOwnEvaluator])
def test_evaluation_of_a_subclass_is_used(train, tmp_path, trainer_class):
    train(trainer_class, evaluate=True)
    assert (tmp_path / "output" / "own" / "coco_instances_results.json").exists()
    assert not (tmp_path / "output" / "inference").exists()


def test_evaluators_may_be_passed_in_and_folders_named(train, tmp_path):
    trainer = train(Trainer, SOLVER__MAX_ITER=1, evaluate=True)
    name, folder = trainer.cfg.DATASETS.TEST[0], str(tmp_path / "tta")
    evaluator = Trainer.build_evaluator(trainer.cfg, name, output_folder=folder)
    assert set(Trainer.test(trainer.cfg, trainer.model, [evaluator])) == {"bbox", "lrp"}
    assert (tmp_path / "tta" / "lrp_results.json").exists()
