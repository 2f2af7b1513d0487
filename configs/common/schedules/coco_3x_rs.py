"""The published 36 epochs of RS Loss, in batches of 16 (4 GPUs with 4 images each)."""

from .coco_1x_rs import lr_multiplier, optimizer, train

train.max_iter = 36 * 7330
lr_multiplier.scheduler.milestones = [27, 33, 36]
lr_multiplier.warmup_length = 500 / train.max_iter
