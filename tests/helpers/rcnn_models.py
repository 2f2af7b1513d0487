"""Small Faster R-CNNs and batches for them; spawned processes import it."""

from __future__ import annotations

from pathlib import Path
import torch
from helpers.detectors import NARROW_RESNET, USUAL, image, train_on_edge_batches
from helpers.gloo_worker import gloo_group

from detectron2.modeling import build_model
from detectron2.structures import BitMasks

from alrp.config import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
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


# Name and number of classes of the models that two processes train.
IN_TWO_PROCESSES = [*((name, 3) for name in NAMES if name != "rs"), ("alrp", 1)]


def train_beside_another_rank(rank: int, world_size: int, folder: str) -> None:
    """Train each model on this rank's half of the edge batches; write what came out."""
    with gloo_group(rank, world_size, folder):
        results = {
            (name, num_classes): train_on_edge_batches(
                small_rcnn(name, num_classes, **NARROW_RESNET), rank, num_classes, masked_image
            )
            for name, num_classes in IN_TWO_PROCESSES
        }
    torch.save(results, Path(folder) / f"rank{rank}.pth")
