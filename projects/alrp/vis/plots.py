"""Loss curves, and detections beside the ground truth.

Functions draw into the given axes, or into a figure of their own, which is never registered with
pyplot: no display is needed and nothing has to be closed. Save with ``axes.figure.savefig(path)``.
"""

from __future__ import annotations

import numpy as np
import os
from pathlib import Path
from typing import Iterable, NamedTuple, Sequence
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from ..errors import UserError
from ..files import parse_json

# Key in metrics.json -> legend and colour.
_LOSSES = {
    "alrp/loss": ("aLRP loss, unweighted", "#111111"),
    "loss_cls": ("loss_cls, classification part of aLRP", "#0072B2"),
    "alrp/loc_error": ("mean localisation error of positives", "#D55E00"),
}
_WEIGHT = "alrp/self_balance_weight"
# A step of the learning rate at least divides it by this; schedules without steps fall slower.
_LR_DROP = 1.8
# Rows averaged by the bold curves.
_WINDOW = 7
# Okabe and Ito's colours, told apart with any colour vision.
_CLASS_COLOURS = ("#E69F00", "#0072B2", "#CC79A7", "#009E73", "#D55E00", "#56B4E9", "#F0E442")


class LabelledBoxes(NamedTuple):
    """Boxes of one image.

    Attributes:
        boxes: (B, 4) XYXY in pixels of the image; B may be 0.
        classes: (B,) integers, indices into the class names.
        scores: (B,) in [0, 1]; None for a ground truth.
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray | None = None

    @classmethod
    def from_coco(cls, records: Sequence[dict], category_ids: Sequence[int]) -> LabelledBoxes:
        """From annotations or results of one image in COCO's format.

        Args:
            records: with "bbox" (XYWH), "category_id" and, all or none of them, "score".
            category_ids: id of each class, by class index.
        """
        boxes = np.array([record["bbox"] for record in records], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        class_of = {category_id: i for i, category_id in enumerate(category_ids)}
        classes = np.array([class_of[record["category_id"]] for record in records], dtype=np.int64)
        if not any("score" in record for record in records):
            return cls(boxes, classes)
        return cls(boxes, classes, np.array([record["score"] for record in records]))


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """Rows of a ``metrics.json``; a last line that is still being written is left out.

    Raises:
        UserError: if the file cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); expected the metrics.json of a training run."
        ) from error
    return [
        parse_json(line, f"{path}, line {i},")
        for i, line in enumerate(lines, start=1)
        if line.endswith("\n")
    ]


def plot_losses(rows: Iterable[dict], ax: Axes | None = None) -> Axes:
    """Curves of the aLRP loss, of its classification part and of the localisation error.

    Thin lines are the values as written, bold lines their running mean. A step of the learning
    rate is marked half-way between the rows around it.

    Args:
        rows: of ``metrics.json``, in the order written; rows without a key are passed over. Of
            rows of the same iteration (after resuming) the last one counts.
        ax: axes to draw into; of a new figure if None.

    Raises:
        UserError: if a curve has no row at all.
    """
    rows = list(rows)
    curves = {key: _series(rows, key) for key in _LOSSES}
    ax = _new_axes(8, 4.5) if ax is None else ax
    for key, (label, colour) in _LOSSES.items():
        _draw_curve(ax, *curves[key], label, colour)
    _mark_lr_drops(ax, rows)
    ax.set_ylim(0, None)
    _finish(ax, "loss (0: perfect)")
    title = f"thin: as logged, bold: mean of {_WINDOW} rows"
    ax.legend(loc="best", frameon=False, fontsize="small", title=title, title_fontsize="x-small")
    return ax


def plot_self_balance_weight(rows: Iterable[dict], ax: Axes | None = None) -> Axes:
    """Steps of the weight that multiplies the localisation loss; otherwise as plot_losses."""
    rows = list(rows)
    iterations, weights = _series(rows, _WEIGHT)
    ax = _new_axes(8, 3) if ax is None else ax
    ax.step(iterations, weights, where="post", color="#009E73", linewidth=2)
    _mark_lr_drops(ax, rows)
    ax.set_ylim(0, None)
    _finish(ax, "self-balance weight")
    return ax


def training_figure(rows: Iterable[dict]) -> Figure:
    """Losses above, self-balance weight below, with one axis of iterations; see plot_losses."""
    rows = list(rows)
    figure = Figure(figsize=(8, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(2.2, 1))
    plot_losses(rows, upper).set_xlabel("")
    plot_self_balance_weight(rows, lower)
    return figure


def plot_boxes(
    image: np.ndarray,
    labelled: LabelledBoxes,
    class_names: Sequence[str],
    ax: Axes | None = None,
) -> Axes:
    """An image with boxes, class names and, if there are any, scores in percent.

    Args:
        image: (H, W, 3) uint8 RGB.
        labelled: its boxes.
        class_names: by class index.
        ax: axes to draw into; of a new figure if None.

    Raises:
        UserError: if boxes, classes and scores differ in number, or a class has no name.
    """
    boxes, classes, scores = _checked(labelled, class_names)
    height, width = image.shape[:2]
    ax = _new_axes(5, 5 * height / width) if ax is None else ax
    ax.imshow(image, extent=(0, width, height, 0), interpolation="nearest")
    # The best score comes last, so that its label lies on top.
    for i in range(len(boxes)) if scores is None else np.argsort(scores):
        text = class_names[classes[i]]
        text = text if scores is None else f"{text} {100 * scores[i]:.0f}"
        _draw_box(ax, boxes[i], text, _class_colour(classes[i]), (width, height))
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    return ax


def detections_figure(
    images: Sequence[np.ndarray],
    ground_truth: Sequence[LabelledBoxes],
    detections: Sequence[LabelledBoxes],
    class_names: Sequence[str],
) -> Figure:
    """Pairs of ground truth and detections, two pairs in a row.

    Args:
        images: N times (H, W, 3) uint8 RGB, N >= 1.
        ground_truth, detections: N each, in the order of ``images``.
        class_names: by class index.

    Raises:
        UserError: without images, or if the numbers differ.
    """
    if not len(images) == len(ground_truth) == len(detections) >= 1:
        raise UserError(
            "detections_figure: expected as many ground truths and detections as images, at least "
            f"one, but got {len(ground_truth)} and {len(detections)} for {len(images)} images; "
            "pass one of each per image."
        )
    num_columns = min(2, len(images))
    num_rows = -(-len(images) // num_columns)
    figure = Figure(figsize=(6.4 * num_columns, 3.2 * num_rows + 0.6), layout="constrained")
    widths = [1, 1, 0.04, 1, 1][: 3 * num_columns - 1]
    # A narrow empty column keeps the pairs apart.
    grid = figure.add_gridspec(num_rows, len(widths), width_ratios=widths)
    for i, image in enumerate(images):
        row, column = divmod(i, num_columns)
        left, right = (figure.add_subplot(grid[row, 3 * column + side]) for side in (0, 1))
        plot_boxes(image, ground_truth[i], class_names, left)
        plot_boxes(image, detections[i], class_names, right)
        if row == 0:
            left.set_title("ground truth", fontsize=11)
            right.set_title("detections, score in %", fontsize=11)
    shown = sorted({int(c) for part in (*ground_truth, *detections) for c in part.classes})
    if 0 < len(shown) <= len(_CLASS_COLOURS):  # beyond, colours repeat
        handles = [Line2D([], [], color=_class_colour(c), linewidth=4) for c in shown]
        names = [class_names[c] for c in shown]
        figure.legend(handles, names, loc="outside lower center", ncols=7, frameon=False)
    return figure


def _series(rows: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Ascending iterations and values of the rows that have ``key``."""
    points = {row["iteration"]: row[key] for row in rows if key in row and "iteration" in row}
    if not points:
        found = sorted(set().union(*rows)) if rows else "no rows"
        raise UserError(
            f"curves: expected rows with 'iteration' and {key!r}, but got {found}; pass the rows "
            "of metrics.json of an aLRP training that ran for at least 20 iterations."
        )
    iterations = np.array(sorted(points))
    return iterations, np.array([points[i] for i in iterations], dtype=np.float64)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over a centred window, cut at both ends."""
    half = _WINDOW // 2
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def _draw_curve(ax: Axes, iterations, values, label: str, colour: str) -> None:
    ax.plot(iterations, values, color=colour, linewidth=0.8, alpha=0.3)
    # A single point has no line to be seen by.
    marker = "o" if len(values) == 1 else None
    ax.plot(
        iterations, _running_mean(values), color=colour, linewidth=2, label=label, marker=marker
    )


def _mark_lr_drops(ax: Axes, rows: list[dict]) -> None:
    """Dotted lines half-way between the rows around a step of the learning rate."""
    if not any("lr" in row and "iteration" in row for row in rows):
        return
    iterations, rates = _series(rows, "lr")
    # A cosine falls as fast towards its end, but from no plateau.
    plateau = np.append(True, np.isclose(rates[1:-1], rates[:-2], rtol=1e-6, atol=0.0))
    falls = rates[1:] * _LR_DROP < rates[:-1]
    for i in np.flatnonzero(falls & plateau[: len(falls)]):
        x = (iterations[i] + iterations[i + 1]) / 2
        ax.axvline(x, color="#777777", linestyle=":", linewidth=1.2)
        ax.annotate(
            f"lr {rates[i + 1]:.2g} ",
            (x, 0.97),
            xycoords=("data", "axes fraction"),
            rotation=90,
            ha="right",
            va="top",
            color="#777777",
            fontsize="x-small",
        )


def _draw_box(ax: Axes, box: np.ndarray, text: str, colour: str, size) -> None:
    x0, y0, x1, y1 = box
    width, height = size
    ax.add_patch(
        Rectangle(
            (x0, y0),
            x1 - x0,
            y1 - y0,
            fill=False,
            edgecolor=colour,
            linewidth=1.8,
            path_effects=[withStroke(linewidth=3.2, foreground="white")],
        )
    )
    # The label starts where the box does, but ends with it at the right border, and it stands
    # above the box, but inside it at the upper border.
    at_right, at_top = x0 > 0.7 * width, y0 < 0.08 * height
    ax.annotate(
        text,
        (min(x1, width) if at_right else max(x0, 0), max(y0, 0)),
        xytext=(-1 if at_right else 1, -1 if at_top else 1),
        textcoords="offset points",
        ha="right" if at_right else "left",
        va="top" if at_top else "bottom",
        fontsize=7,
        color="white" if _luminance(colour) < 0.55 else "black",
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 1, "alpha": 0.85},
        clip_on=True,
    )


def _checked(labelled: LabelledBoxes, class_names: Sequence[str]) -> LabelledBoxes:
    boxes = np.asarray(labelled.boxes, dtype=np.float64).reshape(-1, 4)
    classes = np.asarray(labelled.classes, dtype=np.int64).reshape(-1)
    scores = None if labelled.scores is None else np.asarray(labelled.scores).reshape(-1)
    if len(boxes) != len(classes) or (scores is not None and len(boxes) != len(scores)):
        num_scores = "no" if scores is None else len(scores)
        raise UserError(
            f"plot_boxes: got {len(boxes)} boxes, {len(classes)} classes and {num_scores} scores; "
            "pass one class, and one score or None for all, per box."
        )
    if len(classes) and not 0 <= classes.min() <= classes.max() < len(class_names):
        raise UserError(
            f"plot_boxes: expected classes 0 to {len(class_names) - 1}, but got {classes.min()} to "
            f"{classes.max()}; pass indices into class_names, not category ids of a dataset."
        )
    return LabelledBoxes(boxes, classes, scores)


def _class_colour(index: int) -> str:
    return _CLASS_COLOURS[index % len(_CLASS_COLOURS)]


def _luminance(colour: str) -> float:
    """Of "#RRGGBB", in [0, 1]."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _new_axes(width: float, height: float) -> Axes:
    """Axes of a figure of this size in inches."""
    return Figure(figsize=(width, height), layout="constrained").subplots()


def _finish(ax: Axes, ylabel: str) -> None:
    ax.set_xlabel("iteration")
    ax.set_ylabel(ylabel)
    ax.grid(True, color="#DDDDDD", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
