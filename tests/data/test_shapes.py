"""The built-in synthetic dataset: pictures, boxes and files."""

from __future__ import annotations

import json
import numpy as np
import subprocess
import sys
from dataclasses import replace
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from alrp.data.datasets import shapes
from alrp.errors import UserError


def _scenes(count: int, image_size: int = 96) -> list[shapes.Scene]:
    return [shapes.sample_scene(np.random.default_rng([5, i]), image_size) for i in range(count)]


def _changed_by_recolouring(scene: shapes.Scene, index: int) -> np.ndarray:
    """(S, S) bool: pixels that change when one shape gets the opposite colour."""
    shape = scene.shapes[index]
    recoloured = shape._replace(colour=np.where(shape.colour > 127, 0.0, 255.0))
    others = list(scene.shapes)
    others[index] = recoloured
    before = shapes.render(scene).image
    after = shapes.render(replace(scene, shapes=tuple(others))).image
    return (before.astype(int) != after.astype(int)).any(axis=2)


def _write(root, **changes):
    return shapes.make_shapes_dataset(
        root, **{"num_train": 3, "num_val": 2, "image_size": 48} | changes
    )


def _files(root) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


def test_boxes_enclose_the_pixels_a_shape_paints_to_one_pixel():
    for scene in _scenes(12):
        boxes = shapes.render(scene).boxes
        for i, box in enumerate(boxes):
            rows, columns = _changed_by_recolouring(scene, i).nonzero()
            painted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(box, painted, atol=1.0)


def test_areas_agree_with_the_painted_pixels():
    for scene in _scenes(12):
        areas = shapes.render(scene).areas
        for i, area in enumerate(areas):
            painted = _changed_by_recolouring(scene, i)
            # Partly covered pixels of the outline count fully in one and by share in the other.
            outline = painted & ~(
                np.roll(painted, 1, 0)
                & np.roll(painted, -1, 0)
                & np.roll(painted, 1, 1)
                & np.roll(painted, -1, 1)
            )
            assert painted.sum() - 1.5 * outline.sum() - 2 <= area <= painted.sum() + 2


def test_every_shape_shows_at_least_40_percent_of_its_area():
    for scene in _scenes(40):
        areas = shapes.render(scene).areas
        for shape, area in zip(scene.shapes, areas):
            x, y = shape.outline.T
            whole = 0.5 * abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))
            assert area >= 0.4 * whole


def test_scenes_hold_one_to_six_shapes_of_all_classes_and_some_overlap():
    scenes = _scenes(60)
    counts = {len(scene.shapes) for scene in scenes}
    assert counts == {1, 2, 3, 4, 5, 6}
    assert {shape.category for scene in scenes for shape in scene.shapes} == {0, 1, 2}
    hidden = [
        area < 0.8 * _fully_visible_area(scene, i)
        for scene in scenes
        for i, area in enumerate(shapes.render(scene).areas)
    ]
    assert 0.03 < np.mean(hidden) < 0.5


def _fully_visible_area(scene: shapes.Scene, index: int) -> float:
    alone = replace(scene, shapes=(scene.shapes[index],))
    return shapes.render(alone).areas[0]


def test_a_front_shape_shrinks_the_box_of_the_one_behind():
    black, white = np.zeros(3), np.full(3, 255.0)
    square = np.array([[10.0, 10.0], [30.0, 10.0], [30.0, 30.0], [10.0, 30.0]])
    blank = np.full((64, 64, 3), 128.0)
    back = shapes.Shape(1, square, black)
    front = shapes.Shape(1, square + [12.0, 0.0], white)
    picture = shapes.render(shapes.Scene(blank, np.zeros_like(blank), (back, front)))
    np.testing.assert_allclose(picture.boxes, [[10, 10, 22, 30], [22, 10, 42, 30]], atol=0.5)
    np.testing.assert_allclose(picture.areas, [240, 400], rtol=0.05)
    assert picture.masks[0, 10:30, 10:22].all() and picture.masks[0].sum() == 240
    assert picture.masks[1, 10:30, 22:42].all() and picture.masks[1].sum() == 400


def test_a_shape_that_leaves_the_image_has_a_clipped_box():
    blank = np.full((64, 64, 3), 128.0)
    outline = np.array([[-10.0, 50.0], [20.0, 50.0], [20.0, 90.0], [-10.0, 90.0]])
    scene = shapes.Scene(blank, np.zeros_like(blank), (shapes.Shape(1, outline, np.zeros(3)),))
    np.testing.assert_allclose(shapes.render(scene).boxes, [[0, 50, 20, 64]], atol=0.5)


def test_the_files_are_in_coco_format(tmp_path):
    paths = _write(tmp_path)
    assert sorted(paths) == ["train", "val"]
    annotation_file, image_folder = paths["train"]
    content = json.loads(annotation_file.read_text())
    assert [c["name"] for c in content["categories"]] == ["disc", "rectangle", "triangle"]
    assert len(content["images"]) == 3
    for image in content["images"]:
        with Image.open(image_folder / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"]) == (48, 48)
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        assert 0 <= x < x + width <= 48 and 0 <= y < y + height <= 48
        assert 0 < annotation["area"] <= width * height
        assert annotation["category_id"] in (1, 2, 3)


def test_boxes_and_masks_in_the_file_are_those_of_the_picture(tmp_path):
    annotation_file, image_folder = _write(tmp_path, seed=4, masks=True)["val"]
    content = json.loads(annotation_file.read_text())
    picture = shapes.render(shapes.sample_scene(np.random.default_rng([4, 1, 2]), 48))
    image = np.asarray(Image.open(image_folder / "000002.png"))
    np.testing.assert_array_equal(image, picture.image)
    annotations = [a for a in content["annotations"] if a["image_id"] == 2]
    written = np.array([a["bbox"] for a in annotations])
    np.testing.assert_allclose(written[:, :2] + written[:, 2:], picture.boxes[:, 2:])
    np.testing.assert_allclose(written[:, :2], picture.boxes[:, :2])
    masks = mask_util.decode([a["segmentation"] for a in annotations])
    np.testing.assert_array_equal(masks.transpose(2, 0, 1), picture.masks)


def test_masks_are_written_where_they_are_asked_for(tmp_path):
    for file, _ in _write(tmp_path / "plain").values():
        assert not any("segmentation" in a for a in json.loads(file.read_text())["annotations"])
    with pytest.raises(UserError, match="choose another root"):
        _write(tmp_path / "plain", masks=True)


def test_the_same_seed_gives_the_same_files(tmp_path):
    _write(tmp_path / "a", seed=3)
    _write(tmp_path / "b", seed=3)
    assert _files(tmp_path / "a") == _files(tmp_path / "b")


def test_another_seed_and_another_split_give_other_pictures(tmp_path):
    _write(tmp_path / "a", seed=3)
    _write(tmp_path / "b", seed=4)
    one, other = _files(tmp_path / "a"), _files(tmp_path / "b")
    assert one["train/000001.png"] != other["train/000001.png"]
    assert one["train/000001.png"] != one["val/000001.png"]


def test_the_number_of_images_does_not_change_the_first_ones(tmp_path):
    _write(tmp_path / "a", num_train=1)
    _write(tmp_path / "b", num_train=3)
    name = "train/000001.png"
    assert _files(tmp_path / "a")[name] == _files(tmp_path / "b")[name]


def test_a_complete_dataset_is_left_alone(tmp_path):
    _write(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    _write(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("lost", ["train/000002.png", "annotations/train.json"])
def test_an_incomplete_dataset_is_made_again(tmp_path, lost):
    _write(tmp_path)
    before = _files(tmp_path)
    (tmp_path / lost).unlink()
    _write(tmp_path)
    assert _files(tmp_path) == before


def test_an_interrupted_run_leaves_no_annotation_file(tmp_path, monkeypatch):
    drawn = []

    def interrupt_at_the_second(*arguments):
        drawn.append(arguments)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return sample_scene(*arguments)

    sample_scene = shapes.sample_scene
    monkeypatch.setattr(shapes, "sample_scene", interrupt_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path)
    assert sorted(_files(tmp_path)) == ["train/000001.png"]


def test_images_cut_short_while_a_dataset_is_made_again_are_replaced(tmp_path, monkeypatch):
    _write(tmp_path)
    before = _files(tmp_path)
    (tmp_path / "train" / "000002.png").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "sample_scene", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            _write(tmp_path)
    for name in ("000001.png", "000002.png"):
        (tmp_path / "train" / name).write_bytes(before[f"train/{name}"][:50])
    _write(tmp_path)
    assert _files(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file cannot be written: .*; free space there or choose"):
        _write(tmp_path / "file")


def test_another_dataset_in_the_folder_is_not_overwritten(tmp_path):
    _write(tmp_path)
    before = _files(tmp_path)
    with pytest.raises(UserError, match="choose another root"):
        _write(tmp_path, num_val=4)
    assert _files(tmp_path) == before


@pytest.mark.parametrize("text", ["{}", "no json", "[]"])
def test_a_foreign_annotation_file_is_not_overwritten(tmp_path, text):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "val.json").write_text(text)
    with pytest.raises(UserError, match="did not write"):
        _write(tmp_path)
    assert _files(tmp_path) == {"annotations/val.json": text.encode()}


@pytest.mark.parametrize(
    "change", [{"num_train": 0}, {"num_val": 0}, {"image_size": 31}, {"seed": -1}], ids=str
)
def test_values_out_of_range_are_refused(tmp_path, change):
    with pytest.raises(UserError, match="out of range"):
        _write(tmp_path, **change)


def test_the_command_writes_the_dataset(tmp_path):
    arguments = "--num-train 2 --num-val 1 --image-size 32 --seed 7".split()
    assert shapes.main(["--root", str(tmp_path), *arguments]) == 0
    assert len(list((tmp_path / "train").iterdir())) == 2
    assert json.loads((tmp_path / "annotations" / "val.json").read_text())["images"]


def test_the_command_exits_with_a_message_on_a_mistake(tmp_path, capsys):
    assert shapes.main(["--root", str(tmp_path), "--num-train", "0"]) == 2
    assert "num_train" in capsys.readouterr().err


def test_the_command_loads_no_detectron2():
    code = "import sys, alrp.data.datasets.shapes; sys.exit('detectron2' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
