"""Published row: RS Loss and Dice loss on masks, ResNet-50, 800 pixels, 12 epochs."""

from ..common.data.coco_rs import dataloader
from ..common.models.rs_mask_rcnn import model
from ..common.schedules.coco_1x_rs import lr_multiplier, optimizer, train

dataloader.train.mapper.use_instance_mask = True
optimizer.lr = 0.012
