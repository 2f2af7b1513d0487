"""Ours, not published: Detectron2's 1x schedule and multi-scale images.

To compare with its model zoo. Anchors are those of the published 800-pixel rows.
"""

from ..common.data.coco_multi_scale import dataloader
from ..common.models.alrp_retinanet_800 import model
from ..common.schedules.coco_100e_800 import lr_multiplier, optimizer, train

# 90,000 iterations * 16 images / 117,266 images = 12.3 epochs.
train.max_iter = 90000
train.eval_period = train.checkpointer.period = 5000
lr_multiplier.scheduler.milestones = [60000, 80000, 90000]
lr_multiplier.warmup_length = 500 / train.max_iter
