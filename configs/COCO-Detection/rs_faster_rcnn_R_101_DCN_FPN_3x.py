"""Published row: RS Loss in RPN and box head, ResNet-101-DCN, 480 to 960 pixels, 36 epochs."""

from detectron2.config import LazyCall as L

from alrp.modeling import make_deformable

from ..common.data.coco_rs import dataloader
from ..common.models.rs_faster_rcnn import model
from ..common.schedules.coco_3x_rs import lr_multiplier, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.init_checkpoint = "torchvision://resnet101"
# Modulated deformable convolution in res3 to res5, as in the aLRP row with DCN.
model.backbone.bottom_up = L(make_deformable)(
    resnet=model.backbone.bottom_up,
    on_per_stage=[False, True, True, True],
    modulated=True,
    num_groups=1,
)
resize = dataloader.train.mapper.augmentations[0]
resize.short_edge_length, resize.sample_style = [480, 960], "range"
optimizer.lr = 0.012
