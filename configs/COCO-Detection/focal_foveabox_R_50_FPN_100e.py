"""Published row: FoveaBox with focal loss and smooth L1, ResNet-50, 500 pixels."""

from detectron2.config import LazyCall as L

from alrp.modeling import FocalHeadLosses

from ..common.data.coco_500 import dataloader
from ..common.models.foveabox import model
from ..common.schedules.coco_100e import lr_multiplier, optimizer, train

model.head_losses = L(FocalHeadLosses)(
    num_classes="${..num_classes}", alpha=0.4, gamma=1.5, smooth_l1_beta=0.11
)
optimizer.lr = 0.02
