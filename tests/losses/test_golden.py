"""The losses, and the oracle, give the figures of the published code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.reference import alrp_reference, ap_reference

from alrp.losses import alrp_loss, ap_loss

pytestmark = pytest.mark.usefixtures("cpu_backend")

ALRP = [
    "alrp_loss_all_positive",
    "alrp_loss_p100_n5000_prior_init",
    "alrp_loss_p1_n301",
    "alrp_loss_p3_n24",
    "alrp_loss_p400_n20000",
    "alrp_loss_p50_n2000_delta0p5",
    "alrp_loss_p50_n2000_delta1",
    "alrp_loss_p50_n2000_delta2",
    "alrp_loss_ties",
    "alrp_loss_tiny_one_positive",
]
AP = [
    "ap_loss_p3_n24",
    "ap_loss_p400_n20000",
    "ap_loss_p50_n2000_delta0p5",
    "ap_loss_p50_n2000_delta1",
    "ap_loss_ties_half_grid",
    "ap_loss_tiny_one_positive",
]


def assert_norm_near(actual, expected, rtol):
    """Difference at most ``rtol`` of the norm; exact zero where all of it must be zero."""
    difference = np.linalg.norm(np.asarray(actual, np.float64) - np.asarray(expected, np.float64))
    assert difference <= rtol * np.linalg.norm(expected)


def run_alrp(case, dtype, device="cpu"):
    logits = torch.tensor(case["logits"], dtype=dtype, device=device, requires_grad=True)
    targets = torch.tensor(case["targets"], device=device)
    errors = torch.tensor(case["regression_losses"], dtype=dtype, device=device)
    out = alrp_loss(logits, targets, errors, delta=float(case["delta"]), eps=float(case["eps"]))
    (float(case["upstream_grad"]) * out.cls).backward()
    return [t.detach().cpu().numpy() for t in (out.cls, out.rank, logits.grad)]


def run_ap(case, dtype, device="cpu"):
    logits = torch.tensor(case["logits"], dtype=dtype, device=device, requires_grad=True)
    loss = ap_loss(logits, torch.tensor(case["targets"], device=device), delta=float(case["delta"]))
    (float(case["upstream_grad"]) * loss).backward()
    return [t.detach().cpu().numpy() for t in (loss, logits.grad)]


@pytest.mark.parametrize("name", ALRP)
def test_alrp_loss_in_float32(golden, name, device):
    case = golden(name)
    cls, rank, grad = run_alrp(case, torch.float32, device)
    # cls is 1 - precision: near 0 its relative error is that of the precision, 1e-7.
    np.testing.assert_allclose(cls, case["cls_loss"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(rank, case["rank"], rtol=1e-6)
    assert_norm_near(grad, case["grad_logits"], 1e-5)
    assert not grad[case["targets"] == -1].any()


@pytest.mark.parametrize("name", ALRP)
def test_alrp_loss_in_float64(golden, name):
    case = golden(name)
    cls, rank, grad = run_alrp(case, torch.float64)
    np.testing.assert_allclose(cls, case["cls_loss_float64"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(rank, case["rank_float64"], rtol=1e-10)
    assert_norm_near(grad, case["grad_logits_float64"], 1e-10)


@pytest.mark.parametrize("name", AP)
def test_ap_loss_in_float32(golden, name, device):
    case = golden(name)
    loss, grad = run_ap(case, torch.float32, device)
    np.testing.assert_allclose(loss, case["cls_loss"], rtol=1e-5, atol=1e-7)
    assert_norm_near(grad, case["grad_logits"], 1e-5)
    assert not grad[case["targets"] == -1].any()


@pytest.mark.parametrize("name", AP)
def test_ap_loss_in_float64(golden, name):
    case = golden(name)
    loss, grad = run_ap(case, torch.float64)
    np.testing.assert_allclose(loss, case["cls_loss_float64"], rtol=1e-10, atol=1e-12)
    assert_norm_near(grad, case["grad_logits_float64"], 1e-10)


@pytest.mark.parametrize("name", [name for name in ALRP + AP if "n20000" not in name])
def test_the_oracle_gives_the_published_figures(golden, name):
    case = golden(name)
    if name in ALRP:
        arguments = [case[key] for key in ("logits", "targets", "regression_losses")]
        expected = alrp_reference(*arguments, float(case["delta"]), float(case["eps"]))
        np.testing.assert_allclose(expected.rank, case["rank_float64"], rtol=1e-12)
    else:
        expected = ap_reference(case["logits"], case["targets"], float(case["delta"]))
    np.testing.assert_allclose(expected.cls, case["cls_loss_float64"], rtol=1e-12, atol=1e-14)
    assert_norm_near(expected.grad_logits, case["grad_logits_float64"], 1e-12)
