"""The losses inside of what torch.compile compiles."""

from __future__ import annotations

import pytest
import torch
from helpers.loss_cases import random_case
from torch import nn

from alrp.losses import (
    SelfBalance,
    alrp_loss,
    ap_loss,
    class_targets,
    localization_error,
    rs_loss,
)

pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.7", reason="before, the compiler finds out where it has to stop"
)
LOSSES = {
    "alrp": lambda logits, targets, values: sum(alrp_loss(logits, targets, values)[:2]),
    "ap": lambda logits, targets, values: ap_loss(logits, targets),
    "rs": lambda logits, targets, values: sum(rs_loss(logits, targets, values)[:2]),
}


@pytest.fixture(autouse=True)
def _forget_what_was_compiled():
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_inside_a_whole_graph_is_refused_with_what_to_do(loss):
    logits, targets = random_case()
    values = torch.linspace(0, 1, int((targets == 1).sum()))
    compiled = torch.compile(LOSSES[loss], backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="compile without fullgraph=True"):
        compiled(logits, targets, values)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_inside_of_several_graphs_is_as_outside(loss):
    logits, targets = random_case()
    values = torch.linspace(0, 1, int((targets == 1).sum()))
    results = []
    for function in (LOSSES[loss], torch.compile(LOSSES[loss], backend="eager")):
        leaf = logits.clone().requires_grad_()
        value = function(2 * leaf, targets, values) + 1
        value.backward()
        results.append((value.detach(), leaf.grad))
    torch.testing.assert_close(*results, rtol=0, atol=0)


class Step(nn.Module):
    """A head with aLRP Loss and its balance: layers before, arithmetic behind."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.classifier, self.regressor = nn.Linear(8, 3), nn.Linear(8, 4)
        self.balance = SelfBalance(period=2)

    def forward(self, features, candidates, gt_classes, gt_boxes):
        rows = (gt_classes >= 0) & (gt_classes < 3)
        boxes = (candidates + self.regressor(features))[rows]
        errors = localization_error(boxes, gt_boxes[rows])
        targets = class_targets(gt_classes, 3)
        output = alrp_loss(self.classifier(features).flatten(), targets, errors)
        return output.cls + self.balance(output) * output.loc


def train(generator, **options):
    """Losses, gradients and state after two steps, compiled if there are options."""
    module = Step()
    forward = torch.compile(module, **options) if options else module
    generator.manual_seed(0)
    losses = []
    for _ in range(2):
        features = torch.randn(40, 8, generator=generator)
        gt_classes = torch.randint(-1, 7, (40,), generator=generator).clamp(max=3)
        corners = 50 * torch.rand(40, 2, generator=generator)
        candidates = torch.cat([corners, corners + 20], dim=1)
        losses.append(forward(features, candidates, gt_classes, candidates + 2))
        losses[-1].backward()
    return torch.stack(losses), [p.grad for p in module.parameters()], module.state_dict()


def test_a_compiled_step_is_the_step_and_balances_itself(generator):
    found = train(generator, backend="aot_eager")
    torch.testing.assert_close(found, train(generator), rtol=1e-6, atol=1e-7)
    assert found[2]["balance.weight"] != 50
