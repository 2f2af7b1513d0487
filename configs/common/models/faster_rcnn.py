"""Faster R-CNN with Detectron2's own heads and cross entropy on ResNet-50, as published.

What Detectron2's heads cannot express is in configs/Base-RCNN-FPN.yaml.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from alrp.modeling import ThresholdedRCNN, XavierConvFCHead

from .alrp_retinanet import model as retinanet

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model._target_ = ThresholdedRCNN
for name in ("input_format", "pixel_mean", "pixel_std"):
    model[name] = retinanet[name]

model.backbone = retinanet.backbone
model.backbone.bottom_up.out_features = ["res2", "res3", "res4", "res5"]
model.backbone.in_features = ["res2", "res3", "res4", "res5"]
model.backbone.top_block = L(LastLevelMaxPool)()

model.roi_heads.box_head._target_ = XavierConvFCHead
for name in ("mask_in_features", "mask_pooler", "mask_head"):
    del model.roi_heads[name]
