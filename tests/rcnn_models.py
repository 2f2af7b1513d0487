"""Small Faster R-CNNs and batches for them; spawned processes import it."""

from __future__ import annotations

from pathlib import Path
import torch
from detectors import image, train_step
from gloo_worker import gloo_group

from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks

from alrp.config import add_alrp_config
from alrp.engine.trainer import distribute

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
NAMES = {
    "ce": "COCO-Detection/ce_faster_rcnn_R_50_FPN_100e",
    "ce_giou": "COCO-Detection/ce_giou_faster_rcnn_R_50_FPN_100e",
    "alrp": "COCO-Detection/alrp_faster_rcnn_R_50_FPN_100e",
    "mask": "COCO-InstanceSegmentation/alrp_mask_rcnn_R_50_FPN_100e",
}


def small_rcnn(name, num_classes=3, **overrides):
    """A published configuration with narrow layers and few proposals."""
    cfg = get_cfg()
    add_alrp_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{NAMES[name]}.yaml"))
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


FULL = masked_image(64, 96, [[5, 5, 40, 50], [30, 10, 90, 60]], [0, 2])
EMPTY = masked_image(64, 96)


def train_with_an_empty_rank(rank: int, world_size: int, folder: str) -> None:
    """Step with ground truth on one rank, on none, and on the other; write what came out."""
    states = {}
    with gloo_group(rank, world_size, folder):
        for name in NAMES:
            model = distribute(small_rcnn(name))
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            for batch in ((FULL, EMPTY), (EMPTY, EMPTY), (EMPTY, FULL)):
                optimizer.zero_grad()
                train_step(model, [batch[rank]])  # refuses parameters the last step did not reach
                optimizer.step()
            states[name] = model.module.state_dict()
    torch.save(states, Path(folder) / f"rank{rank}.pth")
