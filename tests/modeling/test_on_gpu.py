"""How often models wait for a GPU, and how many kernels matching launches; on an emulated GPU."""

from __future__ import annotations

import pytest
import torch
from helpers.detectors import image, small_model, train_step
from helpers.emulated_gpu import EmulatedGPU
from helpers.rcnn_models import small_rcnn

from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances

from alrp.losses.backends import choice
from alrp.modeling import ATSSMatcher, FoveaMatcher, MaxIoUMatcher, match_anchors, pairwise
from alrp.modeling.dense_inference import best_detections

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counts need the emulation")
STRIDES = (8, 16, 32, 64, 128)


def instances(num_boxes, size, generator):
    """One image's ground truth."""
    corners = torch.rand(num_boxes, 2, generator=generator) * size[0] / 2
    sides = torch.rand(num_boxes, 2, generator=generator) * size[0] / 2
    found = Instances(size)
    found.gt_boxes = Boxes(torch.cat([corners, corners + sides], dim=1))
    return found


def anchors_of(size, num_sides):
    """Squares of ``num_sides`` sizes per location on five levels."""
    levels = []
    for stride in STRIDES:
        places = stride * torch.arange(-(-size // stride))
        centers = torch.cartesian_prod(places, places).flip(1).repeat_interleave(num_sides, 0)
        half = torch.tensor([2.0 + side / 2 for side in range(num_sides)]) * stride
        half = half.repeat(len(centers) // num_sides)[:, None]
        levels.append(Boxes(torch.cat([centers - half, centers + half], dim=1)))
    return levels


MATCHERS = {"atss": (ATSSMatcher(), 1), "max_iou": (MaxIoUMatcher(), 9)}


@pytest.mark.parametrize("size", [(128, 128), (96, 160)], ids=["one_size", "two_sizes"])
@pytest.mark.parametrize("name", MATCHERS)
def test_images_matched_together_are_matched_as_each_alone(name, size, monkeypatch, generator):
    """With different numbers of boxes, none of them in one image; in several blocks."""
    matcher, num_sides = MATCHERS[name]
    anchors = anchors_of(160 if size[1] == 160 else 128, num_sides)
    images = [instances(count, (128, 128), generator) for count in (7, 0, 23)]
    images.append(instances(5, size, generator))
    expected = match_anchors(matcher, anchors, images, 32)
    monkeypatch.setattr(pairwise, "GPU_BLOCK", 20_000)
    with EmulatedGPU() as gpu:
        found = match_anchors(
            matcher, [level.to("cuda") for level in anchors], [x.to("cuda") for x in images], 32
        )
        assert not gpu.of_package(gpu.waits)
        idxs, labels = ([x.cpu() for x in rows] for rows in found)
    assert any(label.eq(1).any() for label in labels)
    for i in range(len(images)):
        positive = labels[i] == 1
        torch.testing.assert_close(labels[i], expected[1][i], rtol=0, atol=0)
        torch.testing.assert_close(idxs[i][positive], expected[0][i][positive], rtol=0, atol=0)


def test_fovea_matches_images_together_as_each_alone(generator):
    matcher = FoveaMatcher((8, 16), ((1, 64), (32, 256)))
    grids = [(16, 16), (8, 8)]
    boxes = [instances(n, (128, 128), generator).gt_boxes.tensor for n in (7, 0, 23)]
    together = matcher.match_batch(boxes, grids)
    for i, boxes_i in enumerate(boxes):
        alone = matcher(boxes_i, grids)
        assert alone[1].any() == bool(len(boxes_i))
        torch.testing.assert_close([x[i] for x in together], list(alone), rtol=0, atol=0)


@pytest.mark.parametrize("name", [*MATCHERS, "fovea"])
def test_matching_8_images_launches_at_most_120_kernels(name, monkeypatch, generator):
    """100 boxes each, as at 800 pixels: with a sixteenth of the anchors and of the block."""
    monkeypatch.setattr(pairwise, "GPU_BLOCK", pairwise.GPU_BLOCK // 16)
    images = [instances(100, (200, 200), generator) for _ in range(8)]
    with EmulatedGPU() as gpu:
        images = [x.to("cuda") for x in images]
        if name == "fovea":
            grids = [(-(-200 // stride),) * 2 for stride in STRIDES]
            matcher = FoveaMatcher(
                STRIDES, ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))
            )
            gpu.clear()
            matcher.match_batch([x.gt_boxes.tensor for x in images], grids)
        else:
            matcher, num_sides = MATCHERS[name]
            anchors = [level.to("cuda") for level in anchors_of(200, num_sides)]
            gpu.clear()
            match_anchors(matcher, anchors, images, 32)
        assert len(gpu.launches) <= 120
        assert len(gpu.waits) <= (name == "fovea")


def model_on_gpu(name):
    """A detector of three classes on the emulated GPU."""
    device = {"MODEL.DEVICE": "cuda"}
    if name == "faster_rcnn":
        return small_rcnn("alrp", **device)
    base = {
        "retinanet": "COCO-Detection/alrp_retinanet_R_50_FPN_ATSS_100e.yaml",
        "foveabox": "COCO-Detection/alrp_foveabox_R_50_FPN_100e.yaml",
    }[name]
    return small_model(base, **device)


@pytest.mark.parametrize("sizes", [[(64, 64)] * 8, [(64, 64), (96, 64)] * 4], ids=["one", "two"])
@pytest.mark.parametrize(
    "name, most_waits", [("retinanet", 2), ("foveabox", 4), ("faster_rcnn", 6)]
)
def test_a_training_step_waits_seldom(name, most_waits, sizes, monkeypatch):
    """Lines of this project only; the first step, which checks more, is left out."""
    monkeypatch.setattr(choice, "_has_triton", lambda device: False)  # slow when interpreted
    batch = [image(*size, [[5, 5, 40, 50], [30, 10, 60, 60]], [0, 2]) for size in sizes]
    with EmulatedGPU() as gpu:
        model = model_on_gpu(name)
        for iteration in range(2):
            gpu.clear()
            losses, _ = train_step(model, batch, iteration)
        assert all(loss.is_cuda for loss in losses.values())
        waits = gpu.of_package(gpu.waits)
        assert 0 < len(waits) <= most_waits, waits
        # TF32 is of no concern to the losses.
        in_losses = {x.what for x in gpu.launches if x.where.startswith("alrp/losses/")}
        products = {"mm", "bmm", "addmm", "baddbmm", "matmul", "convolution"}
        assert "searchsorted" in in_losses and not in_losses & products


@pytest.mark.parametrize("name", ["retinanet", "foveabox"])
def test_detecting_waits_seldom_and_once_more_to_cut_at_thresholds(name):
    """Detectron2 waits 10 times for its anchors, and torchvision after NMS."""
    with EmulatedGPU() as gpu, torch.no_grad():
        model = model_on_gpu(name).eval()
        model.test_score_thresh = 0.0
        inputs = [{"image": image(256, 256, [[5, 5, 40, 50]], [0])["image"]}]
        waits = []
        for least_score in (-1.0, 0.0):
            model.shown.least_score = least_score
            gpu.clear()
            detections = model(inputs)[0]["instances"]
            assert len(detections) == model.max_detections_per_image
            waits.append((len(gpu.of_package(gpu.waits)), len(gpu.waits)))
    assert waits == [(1, 19), (2, 20)]


def test_nms_of_very_many_candidates_waits_once_per_class_and_finds_what_torchvision_does(
    generator,
):
    count, num_classes = 26_000, 7
    boxes = 400 * torch.rand(count, 2, generator=generator)
    boxes = torch.cat([boxes, boxes + 30 * torch.rand(count, 2, generator=generator)], dim=1)
    scores = torch.rand(count, generator=generator).mul(5000).round() / 5000
    # Of one class there is none.
    classes = torch.randint(num_classes - 1, (count,), generator=generator)
    classes[classes == 3] = num_classes - 1
    expected = batched_nms(boxes, scores, classes, 0.5)
    with EmulatedGPU() as gpu:
        candidates = Instances((400, 400))
        candidates.pred_boxes, candidates.numbers = Boxes(boxes.cuda()), torch.arange(count).cuda()
        candidates.scores, candidates.pred_classes = scores.cuda(), classes.cuda()
        gpu.clear()
        found = best_detections(candidates, 0.5, count).numbers
        waits = len(gpu.waits)
        assert found.tolist() == expected.tolist() and 1000 < len(found) < count
        gpu.clear()
        batched_nms(boxes.cuda(), scores.cuda(), classes.cuda(), 0.5)
        assert waits <= num_classes + 3
        assert len(gpu.waits) > 1.5 * waits
