"""COCO in the published pipelines: squares of 800 pixels in training, 800/1333 in test."""

from .coco_published import coco_published

dataloader = coco_published(batch=16, train_size=800, test_short=800, test_long=1333)
