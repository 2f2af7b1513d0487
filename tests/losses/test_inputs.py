"""What the ranking losses refuse, and what they say."""

from __future__ import annotations

import functools
import numpy as np
import re
import pytest
import torch
from helpers.loss_cases import both, errors_for, total
from torch.testing import assert_close

from alrp.losses import alrp_loss, ap_loss, class_targets, localization_error, rs_loss

pytestmark = pytest.mark.usefixtures("cpu_backend")


@both
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("targets", [[1, 0, 1], [0, 0, 0]], ids=["positives", "no_positives"])
def test_non_finite_logits_are_named(loss, value, place, targets):
    targets = torch.tensor(targets)
    logits = torch.tensor([0.1, 0.2, 0.3])
    logits[place] = value
    with pytest.raises(FloatingPointError, match="logits"):
        total(loss, logits.requires_grad_(), targets, errors_for(targets)).backward()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_errors_are_named(value):
    logits = torch.tensor([0.1, 0.2, 0.3], requires_grad=True)
    errors = torch.tensor([0.5, value], requires_grad=True)
    with pytest.raises(FloatingPointError, match="loc_errors"):
        alrp_loss(logits, torch.tensor([1, 0, 1]), errors)


@both
@pytest.mark.parametrize("delta", [0, 0.0, -1.0, 5e-324, 1e308, float("inf"), float("nan")])
@pytest.mark.parametrize("targets", [[1, 0], [0, 0]], ids=["positives", "no_positives"])
def test_delta_must_lie_in_its_range(loss, delta, targets):
    targets = torch.tensor(targets)
    with pytest.raises(ValueError, match=re.escape(f"1e-30 and 1e+30, but is {delta};")):
        total(loss, torch.zeros(2), targets, errors_for(targets), delta=delta)


RANKED = {"logits": torch.zeros(2), "targets": torch.tensor([1, 0])}
FUNCTIONS = {
    alrp_loss: {**RANKED, "loc_errors": torch.zeros(1)},
    ap_loss: RANKED,
    rs_loss: {**RANKED, "ious": torch.zeros(1)},
    localization_error: dict.fromkeys(["pred_boxes", "gt_boxes"], torch.zeros(1, 4)),
    functools.partial(class_targets, num_classes=2): {"gt_classes": torch.tensor([1, 2])},
}
ARGUMENTS = [(function, name) for function, inputs in FUNCTIONS.items() for name in inputs]


@pytest.mark.parametrize("convert", [np.asarray, torch.Tensor.tolist], ids=["array", "list"])
@pytest.mark.parametrize("function, name", ARGUMENTS)
def test_what_is_no_tensor_is_named(function, name, convert):
    inputs = FUNCTIONS[function]
    function(**inputs)
    with pytest.raises(TypeError, match=f"{name} must be a tensor, but is a (ndarray|list);"):
        function(**{**inputs, name: convert(inputs[name])})


@pytest.mark.parametrize(
    "function, name", [pair for pair in ARGUMENTS if len(FUNCTIONS[pair[0]]) > 1]
)
def test_tensors_on_two_devices_are_named(function, name):
    inputs = FUNCTIONS[function]
    with pytest.raises(ValueError, match="are on (cpu|meta), but .* on (cpu|meta); move them"):
        function(**{**inputs, name: inputs[name].to("meta")})


BAD_INPUTS = {
    "two_dimensional": (torch.zeros(2, 2), torch.zeros(2, 2).long(), r"logits.*\(2, 2\)"),
    "scalar": (torch.zeros(()), torch.zeros(()).long(), "logits"),
    "lengths_differ": (torch.zeros(3), torch.zeros(2).long(), r"3.*2|2.*3"),
    "8_bit_logits": (torch.zeros(2).to(torch.float8_e5m2), torch.zeros(2).long(), "16 to 64 bits"),
    "integer_logits": (torch.zeros(2).long(), torch.zeros(2).long(), "logits.*int64"),
    "boolean_logits": (torch.zeros(2).bool(), torch.zeros(2).long(), "logits.*bool"),
    "complex_logits": (torch.zeros(2) + 0j, torch.zeros(2).long(), "logits.*complex64"),
    "float_targets": (torch.zeros(2), torch.zeros(2), "targets.*float32"),
}


@both
@pytest.mark.parametrize("case", BAD_INPUTS)
def test_wrong_shapes_and_types_are_refused_and_named(loss, case):
    logits, targets, message = BAD_INPUTS[case]
    with pytest.raises(ValueError, match=message):
        total(loss, logits, targets, torch.zeros(0))


@pytest.mark.parametrize("count", [0, 12, 16])
def test_number_of_errors_must_be_that_of_positives(count):
    targets = torch.tensor([1] * 15 + [0] * 5)
    message = f"loc_errors has {count} elements.* but targets has 15 positives"
    with pytest.raises(ValueError, match=message):
        alrp_loss(torch.zeros(20), targets, torch.zeros(count))


def test_errors_without_positives_are_refused():
    with pytest.raises(ValueError, match="loc_errors has 2 elements.* targets has 0 positives"):
        alrp_loss(torch.zeros(3), torch.zeros(3).long(), torch.zeros(2))


def test_negative_errors_are_refused():
    with pytest.raises(ValueError, match="loc_errors: 1 of 2 values lie outside .0, inf."):
        alrp_loss(torch.zeros(3), torch.tensor([1, 0, 1]), torch.tensor([0.5, -0.3]))


def test_errors_that_are_negative_by_rounding_are_accepted():
    """As 1 - GIoU in bfloat16 may be for a perfect box."""
    errors = torch.tensor([-(2.0**-8)], dtype=torch.bfloat16)
    assert alrp_loss(torch.zeros(2), torch.tensor([1, 0]), errors).loc < 0


@pytest.mark.parametrize("eps", [-1e-5, float("nan"), float("inf")])
@pytest.mark.parametrize("targets", [[1, 0], [0, 0]], ids=["positives", "no_positives"])
def test_eps_must_be_a_number_at_least_zero(eps, targets):
    targets = torch.tensor(targets)
    with pytest.raises(ValueError, match=f"eps .* but is {eps};"):
        alrp_loss(torch.zeros(2), targets, errors_for(targets), eps=eps)


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (2, 4)])
def test_errors_must_be_one_per_positive_in_one_dimension(shape):
    with pytest.raises(ValueError, match="loc_errors"):
        alrp_loss(torch.zeros(3), torch.tensor([1, 0, 1]), torch.zeros(shape))


def test_errors_must_be_floating_point():
    with pytest.raises(ValueError, match="loc_errors.*int64"):
        alrp_loss(torch.zeros(2), torch.tensor([1, 0]), torch.tensor([1]))


@pytest.mark.parametrize("logit, delta", [(1e16, 1.0), (-3.4e38, 1.0), (2.0, 1e-14)])
def test_positives_beside_which_delta_vanishes_are_refused(logit, delta):
    """The two ends of their step would be one number, and the loss a perfect-looking 0."""
    logits = torch.tensor([0.5, logit, 1.0], dtype=torch.float64)
    with pytest.raises(FloatingPointError, match="beside which delta"):
        ap_loss(logits, torch.tensor([1, 1, 0]), delta=delta)


@both
def test_delta_may_be_any_number(loss):
    """Also one that changes afterwards."""
    logits, targets = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1, 0, 1])
    gradients = []
    for delta in (0.5, torch.tensor(0.5), np.array(0.5)):
        leaf = logits.clone().requires_grad_()
        value = total(loss, leaf, targets, errors_for(targets), delta=delta)
        if not isinstance(delta, float):
            delta *= 9
        value.backward()
        gradients.append(leaf.grad)
    assert gradients[0].any()
    for gradient in gradients[1:]:
        assert_close(gradient, gradients[0], rtol=0, atol=0)
