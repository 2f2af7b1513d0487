"""Published row: aLRP Loss in the RPN and the box head, ResNet-50, 500 pixels."""

from ..common.data.coco_500 import dataloader
from ..common.models.alrp_faster_rcnn import model
from ..common.schedules.coco_100e import lr_multiplier, optimizer, train

optimizer.lr = 0.012
