"""Published row: RS Loss (ATSS), ResNet-50, 800 pixels, 12 epochs."""

from ..common.data.coco_rs import dataloader
from ..common.models.rs_retinanet import model
from ..common.schedules.coco_1x_rs import lr_multiplier, optimizer, train

optimizer.lr = 0.008
