"""COCO in the published pipelines: squares of 512 pixels in training, 500/833 in test."""

from .coco_published import coco_published

dataloader = coco_published(batch=32, train_size=512, test_short=500, test_long=833)
