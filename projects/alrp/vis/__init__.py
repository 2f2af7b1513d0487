"""Pictures of a training and of its detections; numpy and matplotlib only."""

try:
    import matplotlib  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError("alrp.vis needs matplotlib: run `pip install matplotlib`.") from error

from .plots import (
    LabelledBoxes,
    detections_figure,
    plot_boxes,
    plot_losses,
    plot_self_balance_weight,
    read_metrics,
    training_figure,
)

__all__ = [
    "LabelledBoxes",
    "detections_figure",
    "plot_boxes",
    "plot_losses",
    "plot_self_balance_weight",
    "read_metrics",
    "training_figure",
]
