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
MODELS = {
    "dense": lambda: build_model(small_config("Base-ALRP-RetinaNet.yaml", 3, **NARROW_RESNET)),
    "cascade": lambda: small_rcnn("rs_cascade"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_compiled_detector_has_the_losses_of_the_same_one_uncompiled(name):
    torch._dynamo.reset()
    batch = [image(64, 96, USUAL, [0, 2]), image(64, 96)]
    model, results = MODELS[name](), []
    for compiles in (False, True):
        detector = copy.deepcopy(model)
        detector = torch.compile(detector, backend="eager") if compiles else detector
        torch.manual_seed(0)
        losses, _ = train_step(detector, batch)
        results.append({key: loss.detach() for key, loss in losses.items()})
    torch._dynamo.reset()
    assert_close(*results)
