"""RetinaNet with aLRP Loss and the published max-IoU matching, on 2 x 3 anchors."""

from detectron2.config import LazyCall as L

from alrp.modeling import MaxIoUMatcher

from .alrp_retinanet import model

model.anchor_generator.aspect_ratios = [0.5, 1.0, 2.0]
model.head.num_anchors = 6
model.anchor_matcher = L(MaxIoUMatcher)(pos_threshold=0.5, neg_threshold=0.4, min_pos_iou=0.0)
