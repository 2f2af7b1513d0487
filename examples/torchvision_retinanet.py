"""RS Loss in torchvision's RetinaNet: plain PyTorch, no Detectron2.

    python examples/torchvision_retinanet.py --steps 200

Only the loss of the head is replaced. Q candidates of all images are ranked, P of them positive.
"""

import argparse
import numpy as np
import torch
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou

from alrp.data.datasets.shapes import CLASS_NAMES, render, sample_scene
from alrp.losses import class_targets, localization_error, rs_loss


class RankingHead(RetinaNetHead):
    def compute_loss(self, targets, head_outputs, anchors, matched_idxs):
        logits = head_outputs["cls_logits"].flatten(0, 1)  # (Q, K)
        num_classes, matches = logits.shape[1], list(zip(targets, matched_idxs))
        # An index of -1 is background, and -2 is between the thresholds, which is ignored.
        others = torch.tensor([-1, num_classes], device=logits.device)
        gt_classes = torch.cat([torch.cat([t["labels"], others])[idxs] for t, idxs in matches])
        gt_boxes = torch.cat([t["boxes"][idxs[idxs >= 0]] for t, idxs in matches])  # (P, 4)
        rows = torch.cat(matched_idxs) >= 0
        deltas = head_outputs["bbox_regression"].flatten(0, 1)[rows]
        boxes = self.regression_head.box_coder.decode_single(deltas, torch.cat(anchors)[rows])

        ious = box_iou(boxes.detach(), gt_boxes).diagonal()
        output = rs_loss(logits.flatten(), class_targets(gt_classes, num_classes), ious)
        ranking = output.ranking + output.sorting
        box_loss = localization_error(boxes, gt_boxes).sum() / max(len(boxes), 1)  # 1 - GIoU
        weight = ranking.detach() / box_loss.detach().clamp(min=0.02)  # both parts weigh the same
        return {"classification": ranking, "bbox_regression": weight * box_loss}


def scene(seed):
    """A generated image (3, H, W) in [0, 1], and its target in torchvision's form."""
    drawn = sample_scene(np.random.default_rng(seed), 128)
    pixels, boxes, *_ = render(drawn)
    labels = torch.tensor([shape.category for shape in drawn.shapes])
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    return image, {"boxes": torch.from_numpy(boxes).float(), "labels": labels}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, min_size=128)
    model.head = RankingHead(256, num_anchors=9, num_classes=len(CLASS_NAMES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    for step in range(parser.parse_args().steps):
        losses = model(*zip(*(scene((step, i)) for i in range(4))))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        print(step, *(f"{name} {loss:.3f}" for name, loss in losses.items()))
