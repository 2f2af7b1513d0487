"""What the tests of both ranking losses share."""

from __future__ import annotations

import pytest
import torch

from alrp.losses import alrp_loss, ap_loss


def total(loss, logits, targets, errors, **options):
    """One scalar of either loss; AP takes no localisation errors."""
    if loss == "ap":
        return ap_loss(logits, targets, **options)
    out = alrp_loss(logits, targets, errors, **options)
    return out.cls + out.loc


def errors_for(targets, requires_grad=True, dtype=torch.float32):
    count = int((targets == 1).sum())
    return torch.linspace(0.1, 1.3, count, dtype=dtype).requires_grad_(requires_grad)


both = pytest.mark.parametrize("loss", ["alrp", "ap"])


def random_case(dtype=torch.float32, size=200):
    g = torch.Generator().manual_seed(3)
    logits = (2 * torch.randn(size, generator=g)).to(dtype)
    return logits, torch.randint(-1, 2, (size,), generator=g)
