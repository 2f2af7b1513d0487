"""The published 12 epochs of RS Loss, in batches of 16 (4 GPUs with 4 images each)."""

from .coco_100e_800 import lr_multiplier, optimizer, train

# 117,266 images / 16 = 7,330 iterations per epoch.
train.max_iter = 12 * 7330
lr_multiplier.scheduler.milestones = [8, 11, 12]
lr_multiplier.warmup_length = 500 / train.max_iter
