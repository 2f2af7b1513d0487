"""The emulated GPU refuses, waits and launches as a real one does."""

from __future__ import annotations

import pytest
import torch
from helpers.emulated_gpu import EmulatedGPU, EmulatedTensor
from torch import nn

x = torch.arange(6.0)


@pytest.fixture
def gpu():
    with EmulatedGPU() as gpu:
        yield gpu


def test_tensors_stay_where_they_were_made(gpu):
    on_gpu = x.to("cuda").view(2, 3)
    for tensor in (on_gpu.exp(), on_gpu[0], torch.zeros_like(on_gpu), on_gpu.new_tensor([1.0])):
        assert isinstance(tensor, EmulatedTensor) and tensor.device == torch.device("cuda", 0)
    assert isinstance(on_gpu.long().to(on_gpu), EmulatedTensor)
    assert isinstance(x.long().to(on_gpu), EmulatedTensor)
    assert not isinstance(on_gpu.to(x), EmulatedTensor)
    assert not isinstance(on_gpu.cpu(), EmulatedTensor) and on_gpu.cpu().device.type == "cpu"
    assert on_gpu.sum().item() == 15


@pytest.mark.parametrize(
    "mix",
    [
        lambda a: a + x,
        lambda a: torch.cat([a, x]),
        lambda a: a.index_select(0, torch.tensor([1])),
        lambda a: x[a.long()],
        lambda a: a.scatter_add_(0, torch.tensor([1]), a[:1]),
    ],
)
def test_mixed_devices_are_refused(gpu, mix):
    with pytest.raises(RuntimeError, match="same device"):
        mix(x.cuda())


WAITING = {
    "number": lambda a: a[0].item(),
    "branch": lambda a: bool(a[0] > 0),
    "list": lambda a: a.tolist(),
    "to the CPU": lambda a: a.cpu(),
    "from the CPU": lambda a: x.to(a.device),
    "tensor of a list": lambda a: torch.tensor([1.0], device=a.device),
    "new tensor of a list": lambda a: a.new_tensor([1.0]),
    "mask": lambda a: a[a > 2],
    "places": lambda a: a.nonzero(),
    "index from the CPU": lambda a: a[torch.tensor([1, 2])],
    "repeats": lambda a: a.repeat_interleave(a.long()),
    "values at a mask": lambda a: a.__setitem__(a > 2, a[:3] + 1),
}
NOT_WAITING = {
    "sum": lambda a: a.sum(),
    "number of the CPU": lambda a: a + torch.tensor(2.0),
    "fill": lambda a: a.__setitem__(a > 2, 0.0),
    "choice": lambda a: torch.where(a > 2, a, 0.0),
    "repeats of known size": lambda a: a.repeat_interleave(a.long(), output_size=15),
    "slice": lambda a: a[2:4],
    "asynchronous copy": lambda a: x.to(a.device, non_blocking=True),
}


@pytest.mark.parametrize(
    "name, call, waits",
    [(name, call, 1) for name, call in WAITING.items()]
    + [(name, call, 0) for name, call in NOT_WAITING.items()],
)
def test_waits_are_counted(gpu, name, call, waits):
    on_gpu = x.cuda()
    gpu.clear()
    call(on_gpu)
    assert len(gpu.waits) == waits


def test_waits_are_errors_or_warnings_on_demand(gpu):
    on_gpu = x.cuda()
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="synchronizing"):
        on_gpu[0].item()
    torch.cuda.set_sync_debug_mode("warn")
    with pytest.warns(UserWarning, match="synchronizing"):
        on_gpu[0].item()


def test_views_and_empty_tensors_launch_nothing(gpu):
    on_gpu = x.cuda()
    gpu.clear()
    torch.empty_like(on_gpu.view(2, 3).t()[0, :1].expand(4)).detach()
    assert not gpu.launches
    (on_gpu.exp() + 1).sum()
    assert [event.what for event in gpu.launches] == ["exp", "add", "sum"]


def test_events_name_the_line_of_the_package(gpu):
    from alrp.losses import ap_loss

    ap_loss(x.cuda(), torch.tensor([0, 0, 1, 1, 0, 1]).cuda())
    own = gpu.of_package(gpu.launches)
    assert len(own) == len(gpu.launches) - 2  # the two copies to the GPU are this test's
    assert all(event.where.startswith("alrp/losses/") for event in own)


def test_models_move_and_train(gpu):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).to("cuda")
    assert all(p.is_cuda and isinstance(p, nn.Parameter) for p in model.parameters())
    model(torch.ones(1, 1, 4, 4, device="cuda")).sum().backward()
    assert all(p.grad.is_cuda for p in model.parameters())


def test_nothing_is_left_behind():
    before = torch.cuda.is_available()
    with EmulatedGPU():
        tensor = torch.ones(2, device="cuda")
        assert torch.cuda.is_available()
    assert torch.cuda.is_available() == before
    with pytest.raises(RuntimeError, match="outside of its EmulatedGPU"):
        tensor + 1
