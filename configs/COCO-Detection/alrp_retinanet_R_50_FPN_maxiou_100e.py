"""Published row: aLRP Loss (GIoU), ResNet-50, 500 pixels."""

from ..common.data.coco_500 import dataloader
from ..common.models.alrp_retinanet_maxiou import model
from ..common.schedules.coco_100e import lr_multiplier, optimizer, train

lr_multiplier.scheduler.milestones = [60, 80, 100]
