"""Weights and inputs of the stored runs of whole published models, by the rules they were made by.

``golden/model/weights_{case}.json`` lists every tensor of a model; ``golden/README.md`` says more.
"""

from __future__ import annotations

import json
import math
import numpy as np
import zlib
from pathlib import Path
import torch
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "model"

# Case -> last layer -> gain of its weight, mean and deviation of its bias, extra on the last bias.
LAST_LAYERS = {
    "A": {"retina_cls": (0.6, -9.5, 1.0, 0.0), "retina_reg": (0.35, 0.0, 0.1, 0.0)},
    "E": {
        "rpn_cls": (0.6, 0.0, 0.1, 0.0),
        "rpn_reg": (0.1, 0.0, 0.02, 0.0),
        "fc_cls": (1.2, 0.0, 0.5, 9.5),
        "fc_reg": (0.7, 0.0, 0.1, 0.0),
    },
}
SEEDS = {"A": 3, "E": 1}


def listed(case: str) -> dict[str, list]:
    """Name -> [shape, sum, sum of absolute values, first three values] of the stored model."""
    return json.loads((FOLDER / f"weights_{case}.json").read_text())


def golden_arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of one file of the folder."""
    with np.load(FOLDER / f"{name}.npz") as archive:
        return {key: archive[key] for key in archive.files}


def weights(case: str) -> dict[str, Tensor]:
    """The state dict of the stored model, float32, in its order."""
    return {name: _tensor(case, name, entry[0]) for name, entry in listed(case).items()}


def _tensor(case: str, name: str, shape: list[int]) -> Tensor:
    module, kind = name.rsplit(".", 1)
    if kind == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    n = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(np.asarray(_values(case, module, kind, n), dtype=np.float32))


def _values(case: str, module: str, kind: str, n: np.ndarray) -> np.ndarray:
    last = module.rsplit(".", 1)[-1]
    if kind == "running_mean":
        return 0.1 * n
    if kind == "running_var":
        return 1 + 0.1 * np.abs(n)
    if kind == "bias":
        if last not in LAST_LAYERS[case]:
            return 0.1 * n
        _, mean, deviation, extra = LAST_LAYERS[case][last]
        values = mean + deviation * n
        values[-1] += extra
        return values
    if n.ndim == 1:
        return 0.3 + 0.03 * n if last == "bn3" else 1 + 0.1 * n
    if module.startswith("bbox_head.") and n.shape[2:] == (3, 3):
        n = (n + n[:, :, 1:2, 1:2]) / math.sqrt(2)
    rows = n.reshape(len(n), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return (rows * (_gain(case, module, n.ndim) / math.sqrt(rows.shape[1]))).reshape(n.shape)


def _gain(case: str, module: str, num_dimensions: int) -> float:
    last = module.rsplit(".", 1)[-1]
    if last in LAST_LAYERS[case]:
        return LAST_LAYERS[case][last][0]
    if "downsample" in module:
        return 1.5
    if "lateral_convs." in module:
        return 1.0
    if "fpn_convs." in module:
        return 0.7 * 1.5 ** int(module.split("fpn_convs.")[1].split(".")[0])
    if module.startswith("bbox_head.") and num_dimensions == 4:
        return 0.9
    return math.sqrt(3)


def network_input(case: str) -> Tensor:
    """(1, 3, 256, 320) float32, R, G, B, as if normalised."""
    r = np.random.RandomState(SEEDS[case])
    coarse, fine, noise = (r.standard_normal((3, h, w)) for h, w in ((8, 10), (32, 40), (256, 320)))
    image = _grown(coarse, 32) + 0.5 * _grown(fine, 8) + 0.1 * noise
    return torch.from_numpy(image.astype(np.float32))[None]


def published_image(height: int = 333, width: int = 517, seed: int = 5) -> np.ndarray:
    """(H, W, 3) uint8, B, G, R."""
    r = np.random.RandomState(seed)
    sizes = [(-(-height // step), -(-width // step)) for step in (32, 8, 1)]
    coarse, fine, noise = (r.standard_normal((*size, 3)).transpose(2, 0, 1) for size in sizes)
    y, x = np.mgrid[:height, :width]
    ramp = 40 * (x / width - 0.5) + 20 * (y / height - 0.5)
    coarse, fine = (_grown(a, step)[:, :height, :width] for a, step in ((coarse, 32), (fine, 8)))
    image = 128 + ramp + 40 * coarse + 20 * fine + 6 * noise
    return np.clip(np.rint(image), 0, 255).astype(np.uint8).transpose(1, 2, 0).copy()


def _grown(planes: np.ndarray, factor: int) -> np.ndarray:
    """(C, H, W) with every pixel repeated to a square."""
    return planes.repeat(factor, axis=1).repeat(factor, axis=2)
