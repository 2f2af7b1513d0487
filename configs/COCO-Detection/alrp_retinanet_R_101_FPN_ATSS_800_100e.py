"""Published row: aLRP Loss (GIoU + ATSS), ResNet-101, 800 pixels.

The published file has steps at epochs 60 and 80 instead: milestones [60, 80, 100].
"""

from ..common.data.coco_800 import dataloader
from ..common.models.alrp_retinanet_800 import model
from ..common.schedules.coco_100e_800 import lr_multiplier, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.init_checkpoint = "torchvision://resnet101"
