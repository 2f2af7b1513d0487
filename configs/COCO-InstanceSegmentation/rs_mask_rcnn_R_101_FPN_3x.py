"""Published row: RS Loss and Dice loss on masks, ResNet-101, 640 to 800 pixels, 36 epochs."""

from ..common.data.coco_rs import dataloader
from ..common.models.rs_mask_rcnn import model
from ..common.schedules.coco_3x_rs import lr_multiplier, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.init_checkpoint = "torchvision://resnet101"
resize = dataloader.train.mapper.augmentations[0]
resize.short_edge_length, resize.sample_style = [640, 800], "range"
dataloader.train.mapper.use_instance_mask = True
optimizer.lr = 0.012
