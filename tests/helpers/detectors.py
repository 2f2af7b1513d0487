"""Small detectors, their inputs and their steps; spawned processes import it."""

from __future__ import annotations

import copy
from pathlib import Path
import torch
from torch.testing import assert_close

from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone import Backbone
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from alrp.config import load_config
from alrp.engine.trainer import distribute
from alrp.head_nodes import head_node

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RETINANET, FOVEABOX = "Base-ALRP-RetinaNet.yaml", "Base-FoveaBox.yaml"
# Base configuration of the dense detectors -> node of MODEL.
HEADS = {RETINANET: "RETINANET", FOVEABOX: "FOVEABOX"}

# A ResNet-50 with a hundredth of the weights, for what is trained by several processes and stored.
NARROW_RESNET = {
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
}

USUAL = [[5, 5, 40, 50], [30, 10, 90, 60]]
# Ground truth of two images of 96 x 64 pixels, one per process where there are two.
EDGE_BATCHES = {
    "one_image_empty": (USUAL, []),
    "no_ground_truth": ([], []),
    "other_image_empty": ([], USUAL),
    # The first is around the centre of a cell of 8 pixels, so that FoveaBox does not lose it.
    "smaller_than_a_cell_and_larger_than_the_image": ([[18, 18, 21, 21]], [[-40, -30, 150, 120]]),
}


def small_config(base, num_classes=3, **overrides):
    """A base config made small, with random weights, on the CPU.

    Args:
        base: file in the folder of configs.
        num_classes: K.
        overrides: values by config key.
    """
    cfg = load_config(str(CONFIGS / base))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    head = cfg.MODEL[head_node(cfg)]
    head.NUM_CLASSES = num_classes
    if "NUM_CONVS" in head:  # a dense detector
        head.NUM_CONVS = 1
    cfg.MODEL.ALRP.SELF_BALANCE.PERIOD = 2
    cfg.merge_from_list([x for pair in overrides.items() for x in pair])
    return cfg


def small_model(base, num_classes=3, **overrides):
    """The detector of :func:`small_config`, with the same weights in every process."""
    torch.manual_seed(0)
    return build_model(small_config(base, num_classes, **overrides))


def image(height, width, boxes=(), classes=()):
    """One element of a batch: noise with ground truth in XYXY pixels."""
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    pixels = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(1))
    return {"image": pixels.float(), "instances": instances, "height": height, "width": width}


def train_step(model, batch, start_iter=0):
    """Losses and events of one step, with gradients left in the model."""
    model.train()
    with EventStorage(start_iter) as storage:
        losses = model(copy.deepcopy(batch))
        sum(losses.values()).backward()
    return losses, storage


def edge_batch(name, num_classes, make_image=image):
    """The images of an entry of EDGE_BATCHES, with the first and the last class."""
    classes = [0, num_classes - 1]
    return [make_image(64, 96, boxes, classes[: len(boxes)]) for boxes in EDGE_BATCHES[name]]


def assert_all_gradients_finite(model):
    """Every parameter that trains was reached, and by no inf or NaN."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def train_on_edge_batches(rank, build, models, make_image=image):
    """In one process of a group: train each model on this rank's half of the edge batches.

    Args:
        build: makes a model from its name, its number of classes and overrides.
        models: name and number of classes of each.

    Returns:
        Per model: losses and gradients of the first step, and the state after all steps.
    """
    return {
        (name, num_classes): _train_on_edge_batches(
            build(name, num_classes, **NARROW_RESNET), rank, num_classes, make_image
        )
        for name, num_classes in models
    }


def _train_on_edge_batches(model, rank, num_classes, make_image):
    model = distribute(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    first = ()
    for name in EDGE_BATCHES:
        optimizer.zero_grad()
        # It also refuses parameters that the step before did not reach.
        losses, _ = train_step(model, [edge_batch(name, num_classes, make_image)[rank]])
        assert all(loss.isfinite() for loss in losses.values()), (name, losses)
        assert_all_gradients_finite(model)
        first = first or (
            {key: loss.item() for key, loss in losses.items()},
            {n: p.grad.clone() for n, p in model.module.named_parameters() if p.requires_grad},
        )
        optimizer.step()
    return *first, model.module.state_dict()


def assert_trained_alike(ranks, initial):
    """Every process ends with one and the same model, in which all that trains has moved.

    Args:
        ranks: per process, what ``train_on_edge_batches`` returned for this model.
        initial: the model before the first step.
    """
    (_, gradients, state), *others = ranks
    for _, _, other in others:
        assert_close(other, state, rtol=0, atol=0)
    before = initial.state_dict()
    unmoved = {name for name in gradients if torch.equal(state[name], before[name])}
    # To a ranking loss of one class, a number added to all logits makes no difference.
    unmoved -= {"head.cls_score.bias", "roi_heads.box_predictor.cls_score.bias"}
    # On the coarse levels of small images lie no positives, whose boxes a factor could scale.
    unmoved -= {"head.scales.3.scale", "head.scales.4.scale"}
    assert gradients and not unmoved, unmoved


class NoBackbone(Backbone):
    """Carries the strides only; the golden cases store what a head would predict."""

    def forward(self, images):
        raise AssertionError("the golden cases start from predictions")

    def output_shape(self):
        return {f"p{i}": ShapeSpec(channels=1, stride=2**i) for i in range(3, 8)}

    @property
    def size_divisibility(self):
        return 32


def golden_instances(case):
    """The ground truth of a golden case, per image."""
    result = []
    for i, (height, width) in enumerate(case["image_shapes"].tolist()):
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.from_numpy(case[f"gt_boxes_image{i}"]))
        instances.gt_classes = torch.from_numpy(case[f"gt_labels_image{i}"])
        result.append(instances)
    return result


def golden_anchors(case):
    """The anchors of a golden case, per level."""
    anchors = torch.from_numpy(case["anchors"])
    return [Boxes(x) for x in anchors.split(case["num_anchors_per_level"].tolist())]


def golden_predictions(case):
    """Logits and encoded boxes of a golden case, per level, as leaves."""
    return [
        [torch.from_numpy(case[f"{key}{i}"]).requires_grad_() for i in range(5)]
        for key in ("cls_score_level", "bbox_pred_level")
    ]


def golden_gradient_errors(case, predictions):
    """Relative error in norm of the gradients of all logits and of all encoded boxes."""
    errors = []
    for key, leaves in zip(("grad_cls_score_level", "grad_bbox_pred_level"), predictions):
        actual = torch.cat([x.grad.flatten() for x in leaves]).double()
        expected = torch.cat([torch.from_numpy(case[f"{key}{i}"]).flatten() for i in range(5)])
        errors.append(((actual - expected).norm() / expected.double().norm()).item())
    return errors


def detect_at_twice_the_size(model):
    """Detections of a model in eval mode on 96 x 64 pixels, in coordinates of 192 x 128."""
    inputs = image(64, 96)
    inputs["height"], inputs["width"] = 128, 192
    with torch.no_grad():
        instances = model([inputs])[0]["instances"]
    assert 0 < len(instances) <= 100
    assert (instances.pred_boxes.tensor >= 0).all()
    assert (instances.scores.diff() <= 0).all()
    return instances
