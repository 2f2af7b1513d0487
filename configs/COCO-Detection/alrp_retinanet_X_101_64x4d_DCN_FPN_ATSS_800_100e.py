"""Published row: aLRP Loss (GIoU + ATSS), ResNeXt-101-64x4d-DCN, 800 pixels.

The published file has steps at epochs 60 and 80 instead: milestones [60, 80, 100].
"""

from detectron2.config import LazyCall as L

from alrp.modeling import make_deformable

from ..common.data.coco_800 import dataloader
from ..common.models.alrp_retinanet_800 import model
from ..common.models.resnext_101_64x4d import stages
from ..common.schedules.coco_100e_800 import lr_multiplier, optimizer, train

model.backbone.bottom_up.stages = stages
# Published with open-mmlab's ImageNet weights of this network: to use them, set the path of the
# file, whose names are torchvision's. torchvision's own come from another training.
train.init_checkpoint = "torchvision://resnext101_64x4d"
# Modulated deformable convolution in res3 to res5.
model.backbone.bottom_up = L(make_deformable)(
    resnet=model.backbone.bottom_up,
    on_per_stage=[False, True, True, True],
    modulated=True,
    num_groups=1,
)
