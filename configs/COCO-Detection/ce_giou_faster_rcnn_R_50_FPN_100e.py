"""Published row: cross entropy and GIoU (L1 in the RPN), ResNet-50, 500 pixels."""

from ..common.data.coco_500 import dataloader
from ..common.models.faster_rcnn import model
from ..common.schedules.coco_100e import lr_multiplier, optimizer, train

model.roi_heads.box_predictor.box_reg_loss_type = "giou"
model.roi_heads.box_predictor.loss_weight = {"loss_box_reg": 10.0}
optimizer.lr = 0.04
