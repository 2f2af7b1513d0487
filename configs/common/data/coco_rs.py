"""COCO in the published images of RS Loss: 800 pixels, at most 1,333, and flips."""

from .coco_multi_scale import dataloader

dataloader.train.mapper.augmentations[0].short_edge_length = [800]
