"""Detectron2's default trainer, completed for ranking losses and for training without a GPU."""

from __future__ import annotations

import logging
import os
import weakref
from typing import NamedTuple
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from detectron2.config import CfgNode
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.common import MapDataset
from detectron2.engine import (
    DefaultTrainer,
    TrainerBase,
    create_ddp_model,
    hooks,
)
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..checkpoint import CheckedCheckpointer
from ..data.dataset_mapper import build_mapper
from ..data.datasets.coco_format import class_names
from ..data.stream import with_places
from ..errors import UserError
from ..evaluation import APEvaluator, LRPEvaluator, with_completed_annotations
from ..modeling.micro_batches import set_micro_batch_size
from ..modeling.test_time_augmentation import with_test_time_augmentation
from .endings import CarefulFailures, StopsEarly
from .evaluation_hooks import before_writers, evaluation_hooks
from .mixed_precision import iteration_trainer
from .resuming import ContinuedMetrics, SeededIterations

_LOGGER = logging.getLogger(__name__)


class TrainingParts(NamedTuple):
    """What a training run is made of.

    Attributes:
        cfg: config, with the self-balance period filled in.
        model: in training mode on its device, with random weights, not distributed yet.
        optimizer: of ``model``.
        data_loader: of this process's share of each batch.
        num_images: length of the training set; None if the trainer has a loader of its own, and the
            config names no set.
        seeding: hook that gives each iteration its images and random numbers.
    """

    cfg: CfgNode
    model: nn.Module
    optimizer: torch.optim.Optimizer
    data_loader: DataLoader
    num_images: int | None
    seeding: SeededIterations


class Trainer(CarefulFailures, DefaultTrainer, StopsEarly):
    """``DefaultTrainer`` that knows the length of an epoch, evaluates LRP, and runs on CPU ranks.

    The self-balance period of the model is one epoch of ``DATASETS.TRAIN`` unless the config sets
    it. Several processes work without a GPU as well (Gloo). A resumed run sees the images and draws
    the random numbers that an uninterrupted one does. All methods that ``DefaultTrainer`` lets
    subclasses override are called with its signatures.
    """

    def __init__(self, cfg) -> None:
        # DefaultTrainer.__init__ offers no hook between its parts: it gives CPU models device ids,
        # builds the model before the data, and fixes the checkpointer's class.
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()  # the caller did not, see DefaultTrainer
        parts = self.build_parts(self.auto_scale_workers(cfg, comm.get_world_size()))
        cfg, optimizer = parts.cfg, parts.optimizer
        model = distribute(parts.model)
        self._trainer = iteration_trainer(cfg, model, parts.data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = CheckedCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            complete=False,
            class_names=class_names(cfg.DATASETS.TRAIN),
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        # Not in build_hooks(), which a subclass may replace.
        more = evaluation_hooks(cfg, self.checkpointer, lambda: self._build_test_mapper(cfg))
        self.register_hooks([parts.seeding, ContinuedMetrics(cfg.OUTPUT_DIR)])
        self.register_hooks(before_writers(self.build_hooks(), more))

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """As the parent, with one and the same model on all processes.

        Annotation files may leave out ``area`` and ``iscrowd``, whichever evaluators there are.
        """
        synchronize_buffers(model)
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        elif isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        results = super().test(cfg, model, list(map(with_completed_annotations, evaluators)))
        if comm.is_main_process():
            _check_expected(cfg, results, of_versions=False)
        return results

    @classmethod
    def test_with_TTA(cls, cfg, model) -> dict:
        """Results on the versions of ``TEST.AUG``; evaluators write to the folder ``TTA``.

        The names of tasks, or of several test sets those of the sets, end with "_TTA".
        """
        of_versions = cfg.clone()
        of_versions.defrost()
        of_versions.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "TTA")
        of_versions.freeze()
        results = cls.test(of_versions, with_test_time_augmentation(cfg, model))
        results = {f"{name}_TTA": values for name, values in results.items()}
        if comm.is_main_process():
            _check_expected(cfg, results, of_versions=True)
        return results

    def add_test_with_TTA(self) -> None:
        """Let :meth:`train` end with :meth:`test_with_TTA`; its results join those of the end.

        Raises:
            ValueError: if the model cannot be evaluated so.
        """
        with_test_time_augmentation(self.cfg, self.model)  # not only after the training

        def evaluate() -> dict:
            results = self.test_with_TTA(self.cfg, self.model)
            self._last_eval_results = {**getattr(self, "_last_eval_results", {}), **results}
            return results

        self.register_hooks([hooks.EvalHook(0, evaluate)])
        *others, hook = self._hooks
        self._hooks = before_writers(others, [hook])

    @classmethod
    def build_parts(cls, cfg) -> TrainingParts:
        """Data first, as the model needs the length of an epoch; nothing is written."""
        seeding = SeededIterations(
            cfg.SEED, lambda: cls.build_train_loader(cfg), cfg.DATASETS.TRAIN
        )
        loader = seeding.build_train_loader()
        num_images = seeding.num_images
        if num_images is None and cfg.DATASETS.TRAIN:
            num_images = len(
                get_detection_dataset_dicts(
                    cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
                )
            )
        if num_images is not None:
            cfg = set_self_balance_period(cfg, num_images)
        model = cls.build_model(cfg)
        set_micro_batch_size(model, cfg.SOLVER.MICRO_BATCH_SIZE, "SOLVER.MICRO_BATCH_SIZE")
        optimizer = cls.build_optimizer(cfg, model)
        return TrainingParts(cfg, model, optimizer, loader, num_images, seeding)

    @classmethod
    def build_optimizer(cls, cfg, model):
        """As the parent, or AdamW if ``SOLVER.OPTIMIZER`` says so.

        ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` may also be "full_model": one norm over the gradients of
        all parameters. "value" and "norm" limit each parameter on its own.

        Raises:
            UserError: for another optimizer.
        """
        clipping = cfg.SOLVER.CLIP_GRADIENTS
        clips_model = clipping.ENABLED and clipping.CLIP_TYPE == "full_model"
        if clips_model:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
        if cfg.SOLVER.OPTIMIZER == "SGD":
            optimizer = super().build_optimizer(cfg, model)
        elif cfg.SOLVER.OPTIMIZER == "AdamW":
            optimizer = _build_adamw(cfg, model, clips=clipping.ENABLED)
        else:
            raise UserError(
                f'SOLVER.OPTIMIZER must be "SGD" or "AdamW", but is "{cfg.SOLVER.OPTIMIZER}".'
            )
        if clips_model:
            _clip_whole_model(optimizer, clipping.CLIP_VALUE, clipping.NORM_TYPE)
        return optimizer

    @classmethod
    def build_train_loader(cls, cfg, dataset: list[dict] | None = None):
        """As the parent, by ``INPUT.AUGMENTATION``; of the records that a subclass may give."""
        mapper = build_mapper(cfg, is_train=True)
        return with_places(build_detection_train_loader(cfg, mapper=mapper, dataset=dataset))

    @classmethod
    def build_test_loader(cls, cfg, dataset_name: str):
        """As the parent, with the resize of ``INPUT.AUGMENTATION``."""
        mapper = build_mapper(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def _build_test_mapper(cls, cfg):
        """That of the test loader; that of the config, if the loader is not Detectron2's."""
        loader = cls.build_test_loader(cfg, cfg.DATASETS.TEST[0])
        dataset = getattr(loader, "dataset", None)
        if isinstance(dataset, MapDataset):
            return dataset._map_func._obj  # out of a PicklableWrapper
        return build_mapper(cfg, is_train=False)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name: str, output_folder: str | None = None):
        """COCO's AP beside LRP of boxes; of several test sets, each writes to its own folder.

        Up to ``TEST.DETECTIONS_PER_IMAGE`` detections per image and class count, and at least 100.
        """
        tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
        options = {
            "output_dir": output_folder or results_folder(cfg, dataset_name),
            # COCO counts 100; a model that is asked for more is not to lose them in silence.
            "max_dets_per_image": max(100, cfg.TEST.DETECTIONS_PER_IMAGE),
        }
        return DatasetEvaluators(
            [
                APEvaluator(dataset_name, tasks, **options),
                LRPEvaluator(dataset_name, **options),
            ]
        )


def results_folder(cfg, dataset_name: str) -> str:
    """Where the results on a test set are written, of several in a folder for each."""
    several = len(cfg.DATASETS.TEST) > 1
    return os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name if several else "")


def _check_expected(cfg, results: dict, *, of_versions: bool) -> None:
    """An evaluation gives the results expected of it; their values are looked at later.

    Args:
        cfg: with ``TEST.EXPECTED_RESULTS``.
        results: of the evaluation.
        of_versions: whether it is that of test-time augmentation.
    """
    for task, metric, *_ in cfg.TEST.EXPECTED_RESULTS:
        is_of_versions = cfg.TEST.AUG.ENABLED and task.endswith("_TTA")
        if is_of_versions == of_versions and metric not in results.get(task, {}):
            given = {name: sorted(m for m in of if "-" not in m) for name, of in results.items()}
            raise UserError(
                f"TEST.EXPECTED_RESULTS: there is no result {metric!r} of {task!r}; the evaluation "
                f"gives {given}."
            )


def _build_adamw(cfg, model: nn.Module, *, clips: bool) -> torch.optim.Optimizer:
    optimizer_class = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    # A fused step undoes the scale of mixed precision inside, after the clipping, which must see
    # the true gradients. Before PyTorch 2.4 there is no fused step on the CPU.
    fused = torch.__version__ >= (2, 4) and not (clips and cfg.SOLVER.AMP.ENABLED)
    return optimizer_class(
        get_default_optimizer_params(model, weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM),
        lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        fused=fused,
    )


def _clip_whole_model(optimizer: torch.optim.Optimizer, most: float, norm_type: float) -> None:
    """Scale all gradients together before each step, so that their norm is at most ``most``."""

    def clip(optimizer, args, kwargs) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, most, norm_type)

    optimizer.register_step_pre_hook(clip)


def synchronize_buffers(model: nn.Module) -> None:
    """Give every process the buffers of the main one, whose model is what is saved.

    Batch norm statistics are of each process's own images; evaluated so, the ranks would be
    different models, and no checkpoint would repeat the result.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def distribute(model: nn.Module, **options) -> nn.Module:
    """``model`` under DistributedDataParallel if there are several processes, on CPU as well."""
    device_ids = [comm.get_local_rank()] if next(model.parameters()).is_cuda else None
    options = {"broadcast_buffers": False, **options}
    return create_ddp_model(model, device_ids=device_ids, **options)


def epoch_length(num_images: int, images_per_batch: int) -> int:
    """Iterations in which every image is seen once; the last may begin the next epoch."""
    return max(1, -(-num_images // images_per_batch))


def set_self_balance_period(cfg, num_images: int):
    """Config with ``MODEL.ALRP.SELF_BALANCE.PERIOD`` set to one epoch, unless it is set already."""
    if cfg.MODEL.ALRP.SELF_BALANCE.PERIOD > 0:
        return cfg
    period = epoch_length(num_images, cfg.SOLVER.IMS_PER_BATCH)
    _LOGGER.info(f"Self-balance period: {period} iterations, one epoch of {num_images} images")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ALRP.SELF_BALANCE.PERIOD = period
    cfg.freeze()
    return cfg
