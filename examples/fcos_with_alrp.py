"""aLRP Loss in Detectron2's own FCOS: what it takes to use the loss in another dense detector.

    python lazyconfig_train_net.py --num-gpus 4 --config-file examples/fcos_with_alrp.py

The detector gives its matched anchors and predictions to ``anchor_losses``. A detector with other
shapes calls the bridge itself: ``head_losses(logits, classes, predicted_boxes, gt_boxes)``.
"""

from torch import nn

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.modeling.meta_arch.fcos import FCOS

from alrp import model_zoo as alrp_model_zoo
from alrp.losses import SelfBalance
from alrp.modeling import ALRPHeadLosses, anchor_losses


class ALRPFCOS(FCOS):
    """FCOS that ranks all locations and classes of the mini-batch."""

    def __init__(self, *, head_losses, **kwargs):
        super().__init__(**kwargs)
        self.head_losses = head_losses
        # Detectron2 cuts negative distances to 0, where an empty box gets no gradient.
        nn.init.constant_(self.head.bbox_pred.bias, 1.0)

    def losses(self, anchors, pred_logits, gt_labels, pred_deltas, gt_boxes, pred_centerness):
        losses = anchor_losses(
            self.head_losses,
            anchors,
            pred_logits,
            gt_labels,
            pred_deltas,
            gt_boxes,
            box2box_transform=self.box2box_transform,
        )
        # Inference multiplies scores by centre-ness, so that one of Detectron2's losses stays.
        others = super().losses(
            anchors, pred_logits, gt_labels, pred_deltas, gt_boxes, pred_centerness
        )
        return {**losses, "loss_fcos_ctr": others["loss_fcos_ctr"]}


_row = alrp_model_zoo.get_config("COCO-Detection/alrp_retinanet_R_50_FPN_ATSS_100e.py")
dataloader, optimizer = _row.dataloader, _row.optimizer
lr_multiplier, train = _row.lr_multiplier, _row.train

model = model_zoo.get_config("common/models/fcos.py").model
model._target_ = ALRPFCOS
model.head_losses = L(ALRPHeadLosses)(
    num_classes="${..num_classes}", self_balance=L(SelfBalance)(period=None)
)
# The loss fixes the order of the scores, not their offset.
model.test_score_thresh = 0.05

# torchvision's weights, as in the configs of this project.
model.backbone.bottom_up.stages.stride_in_1x1 = False
model.pixel_mean, model.pixel_std = _row.model.pixel_mean, _row.model.pixel_std
