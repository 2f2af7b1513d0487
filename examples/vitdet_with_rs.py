"""RS Loss in ViTDet: a LazyConfig of Detectron2's model zoo with this project's heads.

    python lazyconfig_train_net.py --num-gpus 4 --config-file examples/vitdet_with_rs.py

The backbone and the layers of the heads are Detectron2's; matching and losses are those of RS
Faster R-CNN. Without masks. Detectron2's ViT needs the package timm.
"""

from detectron2 import model_zoo

from alrp import model_zoo as alrp_model_zoo

# A name with an underscore is no part of the config.
_rs = alrp_model_zoo.get_config("COCO-Detection/rs_faster_rcnn_R_50_FPN_1x.py")
model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
_rs.model.proposal_generator.head = model.proposal_generator.head
_rs.model.roi_heads.box_head = model.roi_heads.box_head
model.proposal_generator = _rs.model.proposal_generator
model.roi_heads = _rs.model.roi_heads
model._target_ = _rs.model._target_

# The loader makes images of at most 1,333 pixels, which are filled up to this square.
model.backbone.square_pad = model.backbone.net.img_size = 1344

dataloader, lr_multiplier, train = _rs.dataloader, _rs.lr_multiplier, _rs.train
train.init_checkpoint = (
    "detectron2://ImageNetPretrained/MAE/mae_pretrain_vit_base.pth?matching_heuristics=True"
)
optimizer = model_zoo.get_config("common/optim.py").AdamW
