"""COCO in the published pipelines: squares of 800 pixels in training, 800/1333 in test."""

from .coco_500 import dataloader

dataloader.train.total_batch_size = 16
dataloader.train.mapper.augmentations[3].size = 800
dataloader.test.mapper.augmentations[0].max_short = 800
dataloader.test.mapper.augmentations[0].max_long = 1333
