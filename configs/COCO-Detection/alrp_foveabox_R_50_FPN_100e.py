"""Published row: FoveaBox with aLRP Loss (GIoU), ResNet-50, 500 pixels."""

from ..common.data.coco_500 import dataloader
from ..common.models.foveabox import model
from ..common.schedules.coco_100e import lr_multiplier, optimizer, train
