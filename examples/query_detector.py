"""RS Loss in a query-based detector: all queries and classes are ranked, boxes learn as in DETR.

python examples/query_detector.py --steps 400
"""

import argparse
import torch
from torch import nn
from torchvision.ops import box_iou, generalized_box_iou_loss
from torchvision_retinanet import CLASS_NAMES, scene  # the example beside this one

from alrp.losses import class_targets, rs_loss

K, WIDTH = len(CLASS_NAMES), 64


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 16, stride=16)  # 64 of an image of 128 pixels
        self.places, self.queries = (nn.Parameter(torch.randn(n, WIDTH)) for n in (64, 20))
        layer = nn.TransformerDecoderLayer(WIDTH, 4, dropout=0.0, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)
        self.outputs = nn.Linear(WIDTH, K + 4)

    def forward(self, images):  # logits (N, Q, K) and boxes (N, Q, 4), XYXY in pixels
        memory = self.patches(images).flatten(2).transpose(1, 2) + self.places
        outputs = self.outputs(self.decoder(self.queries.expand(len(images), -1, -1), memory))
        center, size = (128 * outputs[..., K:].sigmoid()).split(2, dim=-1)
        return outputs[..., :K], torch.cat([center - size / 2, center + size / 2], dim=-1)


def match(logits, boxes, target):  # (M,) a query of its own for each object
    cost = torch.cdist(boxes, target["boxes"], p=1) - logits.sigmoid()[:, target["labels"]]
    queries = torch.zeros_like(target["labels"])
    for _ in queries:  # the cheapest pair that is left; DETR finds the cheapest set of pairs
        query, i = divmod(int(cost.argmin()), len(queries))
        queries[i], cost[query], cost[:, i] = query, torch.inf, torch.inf
    return queries


parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=400)
model = Detector()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(parser.parse_args().steps):
    images, targets = zip(*(scene((step % 4, i)) for i in range(4)))  # 16 images in all
    logits, boxes = model(torch.stack(images))
    gt_classes, gt_boxes = torch.full(logits.shape[:2], K), torch.zeros_like(boxes)
    for i, target in enumerate(targets):
        rows = match(logits[i].detach(), boxes[i].detach(), target)
        gt_classes[i, rows], gt_boxes[i, rows] = target["labels"], target["boxes"]
    pairs = boxes[gt_classes < K], gt_boxes[gt_classes < K]  # (P, 4) each, in row order
    ious = box_iou(*pairs).diagonal().detach()
    ranked = rs_loss(logits.flatten(), class_targets(gt_classes.flatten(), K), ious)
    l1, giou = (pairs[0] - pairs[1]).abs().mean() / 128, generalized_box_iou_loss(*pairs).mean()
    optimizer.zero_grad()
    (ranked.ranking + ranked.sorting + 20 * l1 + 2 * giou).backward()
    optimizer.step()
    print(step, f"ranking {ranked.ranking:.3f} sorting {ranked.sorting:.3f} GIoU {giou:.3f}")
