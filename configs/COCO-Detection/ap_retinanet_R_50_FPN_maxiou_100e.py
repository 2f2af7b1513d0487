"""Published row: AP Loss (smooth L1), ResNet-50, 500 pixels."""

from detectron2.config import LazyCall as L

from alrp.modeling import APHeadLosses

from ..common.data.coco_500 import dataloader
from ..common.models.alrp_retinanet_maxiou import model
from ..common.schedules.coco_100e import lr_multiplier, optimizer, train

model.head_losses = L(APHeadLosses)(num_classes="${..num_classes}", delta=1.0, smooth_l1_beta=1.0)
optimizer.lr = 0.002
lr_multiplier.scheduler.milestones = [60, 80, 100]
