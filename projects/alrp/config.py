"""Configuration keys of the ranking-loss detectors."""

from detectron2.config import CfgNode as CN

from . import data, modeling  # noqa: F401  registration only


def add_alrp_config(cfg: CN) -> None:
    """Add the keys of this project to a Detectron2 config; defaults reproduce the paper."""
    cfg.MODEL.ALRP = CN()
    # "alrp": aLRP with GIoU; "ap": AP Loss with smooth L1.
    cfg.MODEL.ALRP.LOSS_TYPE = "alrp"
    # Half width of the linear part of the smoothed step H, in logit units (paper: delta).
    cfg.MODEL.ALRP.DELTA = 1.0
    # IoU from which a detection is a true positive; scales the localisation error (paper: tau).
    cfg.MODEL.ALRP.TAU = 0.5
    # Transition from squared to absolute error in deltas; LOSS_TYPE "ap" only.
    cfg.MODEL.ALRP.SMOOTH_L1_BETA = 1.0
    # "ATSS", or "max_iou" with MODEL.RETINANET.IOU_THRESHOLDS = [negative below, positive from].
    cfg.MODEL.ALRP.MATCHER = "ATSS"
    # Least IoU at which a ground truth claims the anchors it overlaps best; "max_iou" only.
    cfg.MODEL.ALRP.MIN_POS_IOU = 0.0
    # Keep batch norm of the backbone in eval mode while its scale and shift are trained.
    cfg.MODEL.ALRP.NORM_EVAL = False

    # Weight of the localisation loss (paper: Sec. 5, self-balancing).
    cfg.MODEL.ALRP.SELF_BALANCE = CN()
    cfg.MODEL.ALRP.SELF_BALANCE.ENABLED = True
    # Weight until the end of the first period.
    cfg.MODEL.ALRP.SELF_BALANCE.INIT_WEIGHT = 50.0
    # Iterations between updates; 0: one epoch of DATASETS.TRAIN.
    cfg.MODEL.ALRP.SELF_BALANCE.PERIOD = 0

    cfg.MODEL.ATSS = CN()
    # Candidate anchors per level and ground truth.
    cfg.MODEL.ATSS.TOPK = 9

    # "SGD" (as published) or "AdamW" (converges from random weights within a short schedule).
    cfg.SOLVER.OPTIMIZER = "SGD"

    # "published": colour, expansion, min-IoU crop, resize to a square, and INPUT.RANDOM_FLIP; in
    # test OpenCV's bilinear resize. "detectron2": its own mapper, with INPUT.MIN_SIZE_TRAIN etc.
    cfg.INPUT.AUGMENTATION = "detectron2"
    # Side of the training images in pixels (paper: 512 or 800); "published" only.
    cfg.INPUT.SQUARE_SIZE_TRAIN = 512

    # COCO-format datasets of one's own, as [name, annotation file, image folder]. Paths may
    # contain "~" and environment variables.
    cfg.DATASETS.COCO_FORMAT = []
