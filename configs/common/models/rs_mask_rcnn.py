"""Mask R-CNN with RS Loss, and Dice loss on masks, on ResNet-50, as published."""

from detectron2 import model_zoo

from alrp.modeling import DiceMaskHead

from .rs_faster_rcnn import model

heads = model.roi_heads
plain = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model.roi_heads
for name in ("mask_in_features", "mask_pooler", "mask_head"):
    heads[name] = plain[name]
heads.mask_head._target_ = DiceMaskHead
heads.masks_per_image = 200
