"""The keys of this project and their defaults."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

from .. import data, modeling  # noqa: F401  registration only


def add_alrp_config(cfg: CN) -> None:
    """Add the keys of this project to a Detectron2 config; defaults reproduce the paper.

    Keys that are there already keep their values, as those of another project, or of an earlier
    call.
    """
    _add_absent(cfg, _defaults())
    if not cfg.key_is_renamed("MODEL.ALRP.NORM_EVAL"):
        cfg.register_renamed_key("MODEL.ALRP.NORM_EVAL", "MODEL.BACKBONE.NORM_EVAL")


def _add_absent(cfg: CN, defaults: CN) -> None:
    for name, value in defaults.items():
        if name not in cfg:
            cfg[name] = value
        elif isinstance(value, CN) and isinstance(cfg[name], CN):
            _add_absent(cfg[name], value)


def _defaults() -> CN:
    """The keys of this project, without those of Detectron2."""
    cfg = CN({"MODEL": {"BACKBONE": {}}, "SOLVER": {"AMP": {}}})
    cfg.INPUT, cfg.DATASETS, cfg.TEST = CN(), CN(), CN()
    cfg.MODEL.ALRP = CN()
    # Classification loss: "alrp", "ap", "rs" (Rank & Sort), or for FoveaBox also "focal".
    cfg.MODEL.ALRP.LOSS_TYPE = "alrp"
    # Box loss: "ranked" (the localisation part of aLRP), "weighted_giou" (mean of 1 - GIoU weighted
    # by score), "giou" (mean of 1 - GIoU) or "smooth_l1" (between deltas). "" is what the
    # LOSS_TYPE is published with: "ranked" with aLRP, "weighted_giou" with RS, "smooth_l1" with AP
    # and focal loss.
    cfg.MODEL.ALRP.BOX_LOSS = ""
    # Half width of the linear part of the smoothed step H, in logit units (paper: delta). 0 is what
    # the LOSS_TYPE is published with: 0.5 with RS, 1 with aLRP and AP. The hard step of RS Loss is
    # for the Python interface only.
    cfg.MODEL.ALRP.DELTA = 0.0
    # IoU from which a detection is a true positive; scales the localisation error (paper: tau).
    cfg.MODEL.ALRP.TAU = 0.5
    # Transition from squared to absolute error in deltas; BOX_LOSS "smooth_l1" only. FoveaBox is
    # published with 0.11.
    cfg.MODEL.ALRP.SMOOTH_L1_BETA = 1.0
    # "ATSS", or "max_iou" with MODEL.RETINANET.IOU_THRESHOLDS = [negative below, positive from];
    # ALRPRetinaNet only: the RPN has the latter, with MODEL.RPN.IOU_THRESHOLDS.
    cfg.MODEL.ALRP.MATCHER = "ATSS"
    # Least IoU at which a ground truth claims the anchors it overlaps best; "max_iou" of
    # ALRPRetinaNet only.
    cfg.MODEL.ALRP.MIN_POS_IOU = 0.0
    # Rank the mini-batches of all processes as one, as if one process held the whole batch; as
    # published, each process ranks its own.
    cfg.MODEL.ALRP.GLOBAL_RANKING = False
    # Positive proposals of an image that the mask head trains on at most, drawn at random; 0: all.
    # ALRPROIHeads and ALRPCascadeROIHeads only.
    cfg.MODEL.ALRP.MASKS_PER_IMAGE = 0
    # Least score of a detection outside of evaluations, which always get all: for a
    # DefaultPredictor, the demo and exported models. -1: the LRP-optimal score of each class, if
    # the checkpoint has them; 0: no least score. Read by the meta-architectures of this project.
    cfg.MODEL.ALRP.SCORE_THRESH_PREDICT = -1.0
    # Whether these detections have scores that say which share of such detections is right, by the
    # calibration in the checkpoint.
    cfg.MODEL.ALRP.CALIBRATED_SCORES = False
    # Node of MODEL with the NUM_CLASSES and IN_FEATURES of the head, such as "RETINANET". Needed
    # only for a meta-architecture that is no subclass of RetinaNet, FoveaBox or GeneralizedRCNN.
    cfg.MODEL.ALRP.HEAD_NODE = ""

    # Weight of the box loss (aLRP paper: Sec. 5, self-balancing); not ENABLED: 1.
    cfg.MODEL.ALRP.SELF_BALANCE = CN()
    cfg.MODEL.ALRP.SELF_BALANCE.ENABLED = True
    # "period": renewed once a period from its sums, for BOX_LOSS "ranked"; "iteration": the box
    # loss gets the value of the classification loss in every iteration, for the others;
    # "constant": WEIGHT. "" is what the box loss is published with: "period" for "ranked",
    # "iteration" for GIoU, "constant" for "smooth_l1".
    cfg.MODEL.ALRP.SELF_BALANCE.MODE = ""
    # Weight until the end of the first period; "period" only.
    cfg.MODEL.ALRP.SELF_BALANCE.INIT_WEIGHT = 50.0
    # Iterations between updates; 0: one epoch of DATASETS.TRAIN. "period" only.
    cfg.MODEL.ALRP.SELF_BALANCE.PERIOD = 0
    # Greatest weight; "iteration" only.
    cfg.MODEL.ALRP.SELF_BALANCE.MAX_WEIGHT = 50.0
    # The weight; "constant" only.
    cfg.MODEL.ALRP.SELF_BALANCE.WEIGHT = 1.0

    # Keep batch norm of the backbone in eval mode while its scale and shift are trained; read by
    # the backbones of this project.
    cfg.MODEL.BACKBONE.NORM_EVAL = False

    # build_timm_fpn_backbone only. Name of a timm model; its feature of stride 2^k is called
    # "res<k>" in MODEL.FPN.IN_FEATURES.
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.MODEL_NAME = "tf_efficientnet_lite0"
    # Start from the weights that timm downloads, if MODEL.WEIGHTS is "".
    cfg.MODEL.TIMM.PRETRAINED = False
    # "BN", or "FrozenBN": batch norm of all stages is a constant scale and shift.
    cfg.MODEL.TIMM.NORM = "BN"

    cfg.MODEL.ATSS = CN()
    # Candidate anchors per level and ground truth.
    cfg.MODEL.ATSS.TOPK = 9
    # The head of ATSS, without its centerness: a learnt factor for the box output of each level,
    # and no bias before a norm; ALRPRetinaNet only.
    cfg.MODEL.ATSS.HEAD = False

    _add_foveabox_config(cfg)

    # "SGD" (as published) or "AdamW" (converges from random weights within a short schedule).
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Of SOLVER.AMP: "float16" or "bfloat16" (on a CPU the latter only).
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Images per process that pass through the network at a time in training, so that a large batch
    # needs little memory; all are ranked together. 0: all of them.
    cfg.SOLVER.MICRO_BATCH_SIZE = 0

    # "published": colour, expansion, min-IoU crop, resize to a square, and INPUT.RANDOM_FLIP; in
    # test OpenCV's bilinear resize. "detectron2": its own mapper, with INPUT.MIN_SIZE_TRAIN etc.
    cfg.INPUT.AUGMENTATION = "detectron2"
    # Side of the training images in pixels (paper: 512 or 800); "published" only.
    cfg.INPUT.SQUARE_SIZE_TRAIN = 512

    # With each evaluation of a training: a metric of metrics.json, such as "bbox/AP" or "lrp/oLRP"
    # (then lower is better), by which the weights of the best one are kept in model_best.pth.
    cfg.TEST.BEST_METRIC = ""
    # Evaluations in a row without a better BEST_METRIC, after which the training ends; 0: never.
    cfg.TEST.PATIENCE = 0
    # Whether the losses on DATASETS.TEST are computed, as validation/total_loss etc.
    cfg.TEST.VALIDATION_LOSS = False
    # Images of DATASETS.TEST that TensorBoard shows with their detections.
    cfg.TEST.NUM_PICTURES = 0

    # COCO-format datasets of one's own, as [name, annotation file, image folder]. Paths may
    # contain "~" and environment variables.
    cfg.DATASETS.COCO_FORMAT = []
    # Names of the classes to train and evaluate; () for all. Objects of other classes count as
    # background. Class indices follow the ids in the annotation file, not this list.
    cfg.DATASETS.CLASSES = ()
    return cfg


def _add_foveabox_config(cfg: CN) -> None:
    cfg.MODEL.FOVEABOX = CN()
    # Foreground classes.
    cfg.MODEL.FOVEABOX.NUM_CLASSES = 80
    # Features of the backbone that the head reads, from high to low resolution.
    cfg.MODEL.FOVEABOX.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Unit of the predicted distances on each level, in pixels (paper: z).
    cfg.MODEL.FOVEABOX.BASE_EDGES = [16.0, 32.0, 64.0, 128.0, 256.0]
    # Least and greatest square root of an object's area on each level, in pixels, both included.
    cfg.MODEL.FOVEABOX.SCALE_RANGES = [
        [1.0, 64.0],
        [32.0, 128.0],
        [64.0, 256.0],
        [128.0, 512.0],
        [256.0, 2048.0],
    ]
    # Sides of the positive area in sides of the object (paper: sigma).
    cfg.MODEL.FOVEABOX.SIGMA = 0.4
    # 3x3 convolutions of each tower, their norm ("" or "GN"), and the score at the start.
    cfg.MODEL.FOVEABOX.NUM_CONVS = 4
    cfg.MODEL.FOVEABOX.NORM = ""
    cfg.MODEL.FOVEABOX.PRIOR_PROB = 0.01
    # Weight of a positive and exponent; LOSS_TYPE "focal" only.
    cfg.MODEL.FOVEABOX.FOCAL_LOSS_ALPHA = 0.4
    cfg.MODEL.FOVEABOX.FOCAL_LOSS_GAMMA = 1.5
    # Least score of a detection, cells per level that NMS sees, and the IoU at which it suppresses.
    cfg.MODEL.FOVEABOX.SCORE_THRESH_TEST = 0.05
    cfg.MODEL.FOVEABOX.TOPK_CANDIDATES_TEST = 1000
    cfg.MODEL.FOVEABOX.NMS_THRESH_TEST = 0.5
