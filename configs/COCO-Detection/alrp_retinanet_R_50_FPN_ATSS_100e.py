"""Published row: aLRP Loss (GIoU + ATSS), ResNet-50, 500 pixels."""

from ..common.data.coco_500 import dataloader
from ..common.models.alrp_retinanet import model
from ..common.schedules.coco_100e import lr_multiplier, optimizer, train
