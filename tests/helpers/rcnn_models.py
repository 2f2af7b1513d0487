"""Small Faster R-CNNs and batches for them; spawned processes import it."""

from __future__ import annotations

import torch
from helpers.detectors import CONFIGS, USUAL, image

from detectron2.modeling import build_model
from detectron2.structures import BitMasks

from alrp.config import load_config

NAMES = {
    "ce": "COCO-Detection/ce_faster_rcnn_R_50_FPN_100e",
    "ce_giou": "COCO-Detection/ce_giou_faster_rcnn_R_50_FPN_100e",
    "alrp": "COCO-Detection/alrp_faster_rcnn_R_50_FPN_100e",
    "mask": "COCO-InstanceSegmentation/alrp_mask_rcnn_R_50_FPN_100e",
    "rs": "COCO-Detection/rs_faster_rcnn_R_50_FPN_1x",
    "rs_cascade": "COCO-Detection/rs_cascade_rcnn_R_50_FPN_1x",
    "rs_mask": "COCO-InstanceSegmentation/rs_mask_rcnn_R_50_FPN_1x",
}


def small_rcnn(name, num_classes=3, **overrides):
    """A published configuration with narrow layers and few proposals."""
    cfg = load_config(str(CONFIGS / f"{NAMES[name]}.yaml"))
    keys = {
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.FPN.OUT_CHANNELS": 8,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
        "MODEL.ROI_HEADS.NUM_CLASSES": num_classes,
        # Unlike as published with aLRP: of the proposals of an untrained RPN none need reach an IoU
        # of 0.5, and the box head would have no positive; a ground truth among them is always one.
        "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": True,
        # The published 0 of RS Cascade R-CNN leaves coarse levels nothing to learn: their anchors
        # are larger than the images of the tests.
        "MODEL.RPN.BOUNDARY_THRESH": -1,
        "MODEL.ALRP.SELF_BALANCE.PERIOD": 2,
        **overrides,
    }
    cfg.merge_from_list([x for pair in keys.items() for x in pair])
    torch.manual_seed(0)
    return build_model(cfg)


def masked_image(height, width, boxes=(), classes=()):
    """As ``image``, each object filling its box."""
    result = image(height, width, boxes, classes)
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        mask[max(y1, 0) : y2, max(x1, 0) : x2] = True
    result["instances"].gt_masks = BitMasks(masks)
    return result


FULL = masked_image(64, 96, USUAL, [0, 2])
EMPTY = masked_image(64, 96)
