"""Whole detectors inside of torch.compile, as Detectron2's own can be."""

from __future__ import annotations

import copy
import pytest
import torch
from helpers.detectors import NARROW_RESNET, USUAL, image, small_config, train_step
from helpers.rcnn_models import small_rcnn
from torch.testing import assert_close

from detectron2.modeling import build_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        torch.__version__ < "2.7", reason="before, the compiler finds out where it has to stop"
    ),
]
# A model, and what of it is compiled: compiling takes long, and the rest is Detectron2's.
MODELS = {
    "dense": (
        lambda: build_model(small_config("Base-ALRP-RetinaNet.yaml", 3, **NARROW_RESNET)),
        "",
    ),
    "cascade": (lambda: small_rcnn("rs_cascade"), "roi_heads"),
}


@pytest.mark.parametrize("build, part", MODELS.values(), ids=MODELS)
def test_a_compiled_detector_has_the_losses_of_the_same_one_uncompiled(build, part):
    torch._dynamo.reset()
    batch = [image(64, 96, USUAL, [0, 2]), image(64, 96)]
    model, results = build(), []
    for compiles in (False, True):
        detector = copy.deepcopy(model)
        if compiles:
            detector.get_submodule(part).compile(backend="eager")
        torch.manual_seed(0)
        losses, _ = train_step(detector, batch)
        results.append({key: loss.detach() for key, loss in losses.items()})
    torch._dynamo.reset()
    assert_close(*results)
