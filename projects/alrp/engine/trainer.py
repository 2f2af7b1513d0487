"""Detectron2's default trainer, completed for ranking losses and for training without a GPU."""

from __future__ import annotations

import logging
import os
import weakref
from typing import Optional
import torch

from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
)
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm

from ..evaluation import LRPEvaluator
from .checkpointer import CheckedCheckpointer


class Trainer(DefaultTrainer):
    """``DefaultTrainer`` that knows the length of an epoch, evaluates LRP, and runs on CPU ranks.

    The self-balance period of the model is one epoch of ``DATASETS.TRAIN`` unless the config sets
    it. Several processes work without a GPU as well (Gloo).
    """

    def __init__(self, cfg) -> None:
        # DefaultTrainer.__init__ offers no hook between its parts: it gives CPU models device ids,
        # builds the model before the data, and fixes the checkpointer's class.
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        dataset = self.load_train_dataset(cfg)
        cfg = set_self_balance_period(cfg, len(dataset))
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg, dataset)

        on_gpu = next(model.parameters()).is_cuda
        device_ids = [comm.get_local_rank()] if on_gpu else None
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids)
        trainer_class = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer_class(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = CheckedCheckpointer(
            model, cfg.OUTPUT_DIR, complete=False, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_optimizer(cls, cfg, model):
        """As the parent, or AdamW if ``SOLVER.OPTIMIZER`` says so.

        Raises:
            ValueError: for another optimizer.
        """
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return super().build_optimizer(cfg, model)
        if cfg.SOLVER.OPTIMIZER != "AdamW":
            raise ValueError(
                f'SOLVER.OPTIMIZER must be "SGD" or "AdamW", but is "{cfg.SOLVER.OPTIMIZER}".'
            )
        parameters = get_default_optimizer_params(
            model, weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM
        )
        optimizer_class = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
        return optimizer_class(
            parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
        )

    @staticmethod
    def load_train_dataset(cfg) -> list[dict]:
        """Dataset dicts of ``DATASETS.TRAIN``, without empty images if the config says so."""
        return get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )

    @classmethod
    def build_train_loader(cls, cfg, dataset: Optional[list[dict]] = None):
        """As the parent, from ``dataset`` if it has been loaded already."""
        if dataset is None:
            dataset = cls.load_train_dataset(cfg)
        return build_detection_train_loader(cfg, dataset=dataset)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name: str, output_folder: Optional[str] = None):
        """COCO's AP beside LRP."""
        if output_folder is None:
            output_folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        max_dets = cfg.TEST.DETECTIONS_PER_IMAGE
        return DatasetEvaluators(
            [
                COCOEvaluator(dataset_name, ("bbox",), output_dir=output_folder),
                LRPEvaluator(dataset_name, output_dir=output_folder, max_dets_per_image=max_dets),
            ]
        )


def set_self_balance_period(cfg, num_images: int):
    """Config with ``MODEL.ALRP.SELF_BALANCE.PERIOD`` set to one epoch, unless it is set already."""
    if cfg.MODEL.ALRP.SELF_BALANCE.PERIOD > 0:
        return cfg
    period = max(1, -(-num_images // cfg.SOLVER.IMS_PER_BATCH))
    logging.getLogger(__name__).info(
        f"Self-balance period: {period} iterations, one epoch of {num_images} images"
    )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ALRP.SELF_BALANCE.PERIOD = period
    cfg.freeze()
    return cfg
