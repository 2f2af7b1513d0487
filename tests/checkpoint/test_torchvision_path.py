"""``torchvision://`` names, with files made here in place of downloads."""

from __future__ import annotations

import hashlib
from pathlib import Path
import pytest
import torch
from torchvision.models import ResNet50_Weights, ResNet101_Weights

from detectron2.utils.file_io import PathManager

import alrp.checkpoint  # noqa: F401  registers the prefix
from alrp.errors import UserError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of PyTorch; returns the folder of its files."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def file_of(weights, cache):
    return cache / Path(weights.url).name


@pytest.mark.parametrize(
    "name, weights",
    [
        ("resnet50", ResNet50_Weights.IMAGENET1K_V1),
        ("resnet50/IMAGENET1K_V2", ResNet50_Weights.IMAGENET1K_V2),
        ("resnet101", ResNet101_Weights.IMAGENET1K_V1),
    ],
)
def test_a_name_stands_for_a_file_in_the_cache_of_pytorch(cache, name, weights):
    file_of(weights, cache).write_bytes(b"content")
    path = PathManager.get_local_path(f"torchvision://{name}")
    assert path == str(file_of(weights, cache))
    with PathManager.open(f"torchvision://{name}", "rb") as f:
        assert f.read() == b"content"


def serve(monkeypatch, url):
    """Let torchvision's enum point to ``url``."""
    member = ResNet50_Weights.IMAGENET1K_V1
    value = type(member.value)(url=url, transforms=None, meta={})
    monkeypatch.setattr(member, "_value_", value)


def test_a_missing_file_is_downloaded_once_and_checked(cache, tmp_path, monkeypatch):
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()[:8]
    source = tmp_path / f"resnet50-{digest}.pth"
    source.write_bytes(content)
    serve(monkeypatch, source.as_uri())
    path = Path(PathManager.get_local_path("torchvision://resnet50"))
    assert path == cache / source.name and path.read_bytes() == content
    source.unlink()
    assert PathManager.get_local_path("torchvision://resnet50") == str(path)


def test_a_file_of_another_content_is_not_kept(cache, tmp_path, monkeypatch):
    source = tmp_path / "resnet50-00000000.pth"
    source.write_bytes(b"weights")
    serve(monkeypatch, source.as_uri())
    with pytest.raises(UserError, match="invalid hash"):
        PathManager.get_local_path("torchvision://resnet50")
    assert not list(cache.glob("*.pth"))


def test_a_failed_download_says_what_to_fetch_and_where_to_put_it(cache, tmp_path, monkeypatch):
    url = (tmp_path / "nowhere" / "resnet50-0676ba61.pth").as_uri()
    serve(monkeypatch, url)
    with pytest.raises(UserError) as caught:
        PathManager.get_local_path("torchvision://resnet50")
    message = str(caught.value)
    assert url in message and str(cache / "resnet50-0676ba61.pth") in message
    assert "MODEL.WEIGHTS" in message


@pytest.mark.parametrize(
    "name, got, choice",
    [
        ("resnet51", "'resnet51'", "resnext101_64x4d"),
        ("vgg16", "'vgg16'", "resnet50"),
        ("resnet50/V3", "'V3'", "IMAGENET1K_V1, IMAGENET1K_V2"),
        ("", "''", "resnet101"),
    ],
)
def test_an_unknown_name_lists_the_choices(cache, name, got, choice):
    with pytest.raises(UserError) as caught:
        PathManager.get_local_path(f"torchvision://{name}")
    assert got in str(caught.value) and choice in str(caught.value)
