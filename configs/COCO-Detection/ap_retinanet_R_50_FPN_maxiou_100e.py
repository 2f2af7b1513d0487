"""Published row: AP Loss (smooth L1), ResNet-50, 500 pixels."""

from ..common.data.coco_500 import dataloader
from ..common.models.alrp_retinanet_maxiou import model
from ..common.schedules.coco_100e import lr_multiplier, optimizer, train

model.ranking_losses.loss_type = "ap"
model.ranking_losses.self_balance = None
optimizer.lr = 0.002
lr_multiplier.scheduler.milestones = [60, 80, 100]
