"""Published row: aLRP Loss (GIoU + ATSS), ResNet-101, 500 pixels."""

from ..common.data.coco_500 import dataloader
from ..common.models.alrp_retinanet import model
from ..common.schedules.coco_100e import lr_multiplier, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.init_checkpoint = "torchvision://resnet101"
