"""RetinaNet with aLRP Loss and ATSS, as published at 800 pixels: three octaves of anchors."""

from .alrp_retinanet import model

model.anchor_generator.sizes = [
    [z, z * 2 ** (1 / 3), z * 2 ** (2 / 3)] for z in (32, 64, 128, 256, 512)
]
model.head.num_anchors = 3
