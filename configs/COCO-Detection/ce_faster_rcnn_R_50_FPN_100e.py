"""Published row: cross entropy and L1 (in the tables: smooth L1), ResNet-50, 500 pixels."""

from ..common.data.coco_500 import dataloader
from ..common.models.faster_rcnn import model
from ..common.schedules.coco_100e import lr_multiplier, optimizer, train

optimizer.lr = 0.04
