"""Curves, boxes and panels: what is drawn where, and what is said about data that does not fit."""

import io
import json
import numpy as np
import subprocess
import sys
from numpy.testing import assert_allclose
from pathlib import Path
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from alrp.errors import UserError
from alrp.vis import (
    LabelledBoxes,
    detections_figure,
    plot_boxes,
    plot_losses,
    plot_self_balance_weight,
    read_metrics,
    training_figure,
)

PROJECTS = Path(__file__).resolve().parents[2] / "projects"
NAMES = ["disc", "rectangle", "triangle"]


def metrics_rows(num_rows=30):
    """Rows of a training whose learning rate drops after iterations 399 and 499."""
    rows = []
    for i in range(num_rows):
        iteration = 20 * i + 19
        losses = {"loss_cls": 0.9 - 0.02 * i, "alrp/loss": 1 - 0.02 * i, "alrp/loc_error": 0.4}
        rate = {"lr": 0.01 * 0.1 ** ((iteration > 399) + (iteration > 499))}
        rows.append({"iteration": iteration, "alrp/self_balance_weight": 50 - i} | losses | rate)
    rows.append({"iteration": 20 * num_rows, "bbox/AP": 12.0})  # of the evaluation, without losses
    return rows


def boxes(*rows, classes=None, scores=None):
    classes = [0] * len(rows) if classes is None else classes
    return LabelledBoxes(np.array(rows, dtype=float).reshape(-1, 4), classes, scores)


def picture(height=40, width=60):
    return np.full((height, width, 3), 127, dtype=np.uint8)


def lines_by_label(ax):
    return {line.get_label(): line for line in ax.lines}


def texts(ax):
    return [text.get_text() for text in ax.texts]


def rectangles(ax):
    """XYXY of the boxes drawn, in drawing order."""
    patches = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    return [
        (*patch.get_xy(), patch.get_x() + patch.get_width(), patch.get_y() + patch.get_height())
        for patch in patches
    ]


def rendered(figure):
    """The figure as a PNG, read again; (H, W, 3) uint8."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    return np.asarray(Image.open(buffer).convert("RGB"))


def test_loss_curves_have_every_value_as_logged():
    rows = metrics_rows()
    ax = plot_losses(rows)
    for key in ("alrp/loss", "loss_cls", "alrp/loc_error"):
        expected = [row[key] for row in rows[:-1]]
        assert any(np.array_equal(line.get_ydata(), expected) for line in ax.lines), key


def test_bold_curve_is_the_mean_of_seven_rows():
    rows = metrics_rows()
    values = np.random.default_rng(0).uniform(size=30)
    for row, value in zip(rows, values):
        row["alrp/loss"] = value
    bold = lines_by_label(plot_losses(rows))["aLRP loss, unweighted"].get_ydata()
    assert_allclose(bold[[0, 10, 29]], [values[:4].mean(), values[7:14].mean(), values[26:].mean()])


def test_legend_names_each_curve_once():
    labels = [text.get_text() for text in plot_losses(metrics_rows()).get_legend().get_texts()]
    assert len(labels) == len(set(labels)) == 3


def test_lr_drops_are_marked_between_the_rows_around_them():
    ax = plot_losses(metrics_rows())
    marks = sorted(line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":")
    assert marks == [409, 509]
    assert [text.strip() for text in texts(ax)] == ["lr 0.001", "lr 0.0001"]


def test_warm_up_and_cosine_schedule_have_no_drops():
    rows = metrics_rows()
    for i, row in enumerate(rows):
        row["lr"] = min(i / 5, 1) * (1 + np.cos(np.pi * i / len(rows)))
    assert texts(plot_losses(rows)) == []


def test_rows_without_lr_are_drawn_without_drops():
    rows = [{k: v for k, v in row.items() if k != "lr"} for row in metrics_rows()]
    assert texts(plot_losses(rows)) == []


def test_last_row_of_an_iteration_counts():
    rows = metrics_rows(5) + [metrics_rows(3)[2] | {"alrp/self_balance_weight": 7.0}]
    line = plot_self_balance_weight(rows).lines[0]
    assert_allclose(line.get_xdata(), [19, 39, 59, 79, 99])
    assert_allclose(line.get_ydata(), [50, 49, 7, 47, 46])


def test_single_row_is_visible():
    ax = plot_losses(metrics_rows(1))
    assert lines_by_label(ax)["aLRP loss, unweighted"].get_marker() == "o"


@pytest.mark.parametrize("plot", [plot_losses, plot_self_balance_weight])
def test_given_axes_are_drawn_into(plot):
    ax = Figure().subplots()
    assert plot(metrics_rows(), ax) is ax
    assert ax.lines


@pytest.mark.parametrize("key", ["alrp/loss", "loss_cls", "alrp/loc_error", "iteration"])
def test_missing_key_is_named(key):
    rows = [{k: v for k, v in row.items() if k != key} for row in metrics_rows()]
    with pytest.raises(UserError, match=f"expected rows with .*'{key}'.*loss.*metrics.json"):
        plot_losses(rows)


def test_no_rows_are_refused():
    with pytest.raises(UserError, match="got no rows"):
        training_figure([])


def test_training_figure_shares_the_iterations_of_losses_and_weight():
    figure = training_figure(iter(metrics_rows()))
    upper, lower = figure.axes
    assert upper.get_ylabel() == "loss (0: perfect)"
    assert lower.get_ylabel() == "self-balance weight"
    assert (upper.get_xlabel(), lower.get_xlabel()) == ("", "iteration")
    assert upper.get_xlim() == lower.get_xlim()
    assert rendered(figure).shape == (325, 400, 3)


def test_metrics_are_read_without_the_line_being_written(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 19}\n{"iteration": 39, "bbox/AP": NaN}\n{"itera')
    rows = read_metrics(path)
    assert [row["iteration"] for row in rows] == [19, 39]
    assert np.isnan(rows[1]["bbox/AP"])


@pytest.mark.parametrize(
    "content, said", [(None, "cannot be read"), ("{}\nno json\n", "line 2, is not")]
)
def test_unreadable_metrics_are_explained(tmp_path, content, said):
    path = tmp_path / "metrics.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=rf"metrics.json,? {said}"):
        read_metrics(path)


def test_boxes_are_drawn_where_they_are_with_name_and_score():
    labelled = boxes((5, 6, 20, 30), (30, 8, 55, 39), classes=[2, 0], scores=[0.914, 0.25])
    ax = plot_boxes(picture(), labelled, NAMES)
    # By ascending score: the best one lies on top.
    assert rectangles(ax) == [(30, 8, 55, 39), (5, 6, 20, 30)]
    assert texts(ax) == ["disc 25", "triangle 91"]
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 60), (40, 0))


def test_ground_truth_has_names_only():
    assert texts(plot_boxes(picture(), boxes((1, 1, 5, 5), classes=[1]), NAMES)) == ["rectangle"]


def test_image_without_boxes_is_shown():
    ax = plot_boxes(picture(), boxes(scores=[]), NAMES)
    assert rectangles(ax) == []
    assert_allclose(ax.images[0].get_array(), picture())


def test_box_is_visible_in_the_rendered_picture():
    plain = rendered(plot_boxes(picture(), boxes(), NAMES).figure).astype(int)
    boxed = rendered(plot_boxes(picture(), boxes((20, 10, 40, 30)), NAMES).figure).astype(int)
    rows, columns = np.nonzero(np.abs(plain - boxed).max(axis=2) > 40)
    height, width = plain.shape[:2]
    # The figure has a small margin around the image; the label adds a few pixels above.
    assert_allclose([columns.min() / width, columns.max() / width], [1 / 3, 2 / 3], atol=0.03)
    assert_allclose(rows.max() / height, 3 / 4, atol=0.03)


@pytest.mark.parametrize(
    "labelled, message",
    [
        (boxes((1, 1, 5, 5), classes=[]), "got 1 boxes, 0 classes and no scores"),
        (boxes((1, 1, 5, 5), scores=[0.1, 0.2]), "got 1 boxes, 1 classes and 2 scores"),
        (boxes((1, 1, 5, 5), classes=[3]), "expected classes 0 to 2, but got 3 to 3"),
        (boxes((1, 1, 5, 5), classes=[-1]), "expected classes 0 to 2, but got -1 to -1"),
    ],
)
def test_boxes_that_do_not_fit_are_refused(labelled, message):
    with pytest.raises(UserError, match=message):
        plot_boxes(picture(), labelled, NAMES)


def test_coco_records_become_xyxy_boxes_and_class_indices():
    records = [
        {"bbox": [1, 2, 10, 20], "category_id": 7, "score": 0.5},
        {"bbox": [3, 4, 5, 6], "category_id": 2, "score": 0.25},
    ]
    labelled = LabelledBoxes.from_coco(records, [2, 7])
    assert_allclose(labelled.boxes, [[1, 2, 11, 22], [3, 4, 8, 10]])
    assert_allclose(labelled.classes, [1, 0])
    assert_allclose(labelled.scores, [0.5, 0.25])
    assert LabelledBoxes.from_coco([], [2, 7]).boxes.shape == (0, 4)


@pytest.mark.parametrize("num_images", [1, 2, 3, 8])
def test_panel_has_ground_truth_left_of_detections_for_every_image(num_images):
    truths = [boxes((1, 2, 9, 9 + i)) for i in range(num_images)]
    found = [boxes((2, 2, 8, 9 + i), scores=[0.5]) for i in range(num_images)]
    figure = detections_figure([picture()] * num_images, truths, found, NAMES)
    figure.draw_without_rendering()
    assert len(figure.axes) == 2 * num_images
    for i in range(num_images):
        left, right = figure.axes[2 * i : 2 * i + 2]
        assert rectangles(left) == [(1, 2, 9, 9 + i)]
        assert rectangles(right) == [(2, 2, 8, 9 + i)]
        assert left.get_position().x1 <= right.get_position().x0
        assert_allclose(left.get_position().y0, right.get_position().y0)


def test_panel_colours_a_class_alike_everywhere_and_names_it_once():
    truths = [boxes((1, 2, 9, 9), (20, 2, 39, 9), classes=[2, 0])]
    found = [boxes((1, 2, 9, 9), classes=[2], scores=[0.5])]
    figure = detections_figure([picture()], truths, found, NAMES)
    left, right = figure.axes
    assert left.patches[0].get_edgecolor() == right.patches[0].get_edgecolor()
    assert left.patches[0].get_edgecolor() != left.patches[1].get_edgecolor()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["disc", "triangle"]


def test_panel_of_nothing_found_has_no_legend():
    figure = detections_figure([picture()], [boxes()], [boxes(scores=[])], NAMES)
    assert figure.legends == []
    assert rendered(figure).shape[0] > 50


@pytest.mark.parametrize("counts", [(0, 0, 0), (2, 1, 2), (1, 1, 2)])
def test_panel_refuses_other_numbers_of_images_and_boxes(counts):
    images, truths, found = counts
    with pytest.raises(UserError, match="expected as many ground truths and detections as images"):
        detections_figure([picture()] * images, [boxes()] * truths, [boxes()] * found, NAMES)


def test_pyplot_and_detectron2_are_not_loaded():
    code = "import json, sys, alrp.vis; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(PROJECTS)!r}); {code}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert "alrp.vis.plots" in loaded
    assert loaded.isdisjoint({"matplotlib.pyplot", "detectron2", "torch"})


def test_missing_matplotlib_is_explained():
    code = "sys.modules['matplotlib'] = None; import alrp.vis"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(PROJECTS)!r}); {code}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "ImportError: alrp.vis needs matplotlib" in done.stderr
