"""tools/convert_dataset.py: boxes of other formats, and what it says of files it cannot read."""

import json
import pytest
from PIL import Image

VOC = """<annotation><filename>a.jpg</filename><size><width>40</width><height>30</height></size>
<object><name>dog</name><bndbox><xmin>1</xmin><ymin>11</ymin><xmax>10</xmax><ymax>30</ymax></bndbox>
</object><object><name>cat</name><difficult>1</difficult>
<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>5</xmax><ymax>6</ymax></bndbox></object></annotation>"""


@pytest.fixture(scope="module")
def main(load_script):
    return load_script("tools/convert_dataset.py").main


@pytest.fixture
def folder(tmp_path):
    """With VOC's annotation a.xml, and images and labels of YOLO."""
    (tmp_path / "a.xml").write_text(VOC)
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / name)
    (tmp_path / "a.txt").write_text("1 0.25 0.5 0.5 0.2\n\n")
    return tmp_path


def yolo(folder):
    return ["yolo", str(folder), str(folder / "out.json"), "--images", str(folder / "images")]


def boxes(folder):
    content = json.loads((folder / "out.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    return [(names[a["category_id"]], a["bbox"], a["iscrowd"]) for a in content["annotations"]]


def test_first_and_last_pixels_of_voc_become_corner_and_size(main, folder, capsys):
    assert main(["voc", str(folder), str(folder / "out.json")]) == 0
    assert boxes(folder) == [("dog", [0, 10, 10, 20], 0), ("cat", [4, 4, 1, 2], 1)]
    content = json.loads((folder / "out.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}]
    assert [category["name"] for category in content["categories"]] == ["cat", "dog"]
    assert "1 images, 2 annotations, 2 classes" in capsys.readouterr().out


def test_shares_of_yolo_become_pixels_and_images_without_file_stay(main, folder):
    assert main([*yolo(folder), "--names", "cat", "dog"]) == 0
    assert boxes(folder) == [("dog", [0, 12, 20, 6], 0)]
    content = json.loads((folder / "out.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.png", "b.png"]


def test_some_classes_are_taken_in_the_order_asked_for(main, folder):
    both = folder / "both.json"
    assert main(["voc", str(folder), str(both)]) == 0
    assert main(["coco", str(both), str(folder / "out.json"), "--classes", "dog"]) == 0
    assert boxes(folder) == [("dog", [0, 10, 10, 20], 0)]
    content = json.loads((folder / "out.json").read_text())
    assert content["categories"] == [{"id": 1, "name": "dog"}]
    assert len(content["images"]) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<name>dog</name>", "", "a.xml: name is missing in <object>"),
        ("<width>40", "<width>wide", "a.xml: size/width must be a number, but is 'wide'"),
        ("<xmax>10", "<xmax>nan", "a.xml: bndbox/xmax must be a number, but is 'nan'"),
        ("<ymin>11", "<ymin>31", "a.xml: the bndbox of 'dog' ends before it begins"),
        ("</annotation>", "", "a.xml cannot be read as XML"),
        ("<width>40", "<width>0", "a.xml: size must be the width and height of the image"),
    ],
)
def test_a_mistake_in_voc_is_named_with_its_field(main, folder, capsys, old, new, message):
    (folder / "a.xml").write_text(VOC.replace(old, new, 1))
    assert main(["voc", str(folder), str(folder / "out.json")]) == 1
    assert message in capsys.readouterr().err
    assert not (folder / "out.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.5 0.5 0.5 0.5\n2 0.5 0.5 0.5 0.5", "a.txt, line 2: class 2 has no name"),
        ("0 10 10 5 5", "a.txt, line 1: x y width height must be shares"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3", "a.txt, line 1: expected 'class x y width height'"),
        ("0 0.5 0.5 nan 0.5", "a.txt, line 1: x y width height must be shares"),
        ("0 0.5 0.5 1.01 0.5", "a.txt, line 1: x y width height must be shares"),
        ("0.5 0.5 0.5 0.5 0.5", "a.txt, line 1: expected 'class x y width height'"),
        ("inf 0.5 0.5 0.5 0.5", "a.txt, line 1: expected 'class x y width height'"),
        ("", "holds no box for the images"),
    ],
)
def test_a_mistake_in_yolo_is_named_with_its_line(main, folder, capsys, text, message):
    (folder / "a.txt").write_text(text)
    assert main([*yolo(folder), "--names", "cat", "dog"]) == 1
    assert message in capsys.readouterr().err


def test_a_photograph_on_its_side_gets_the_size_that_the_loader_sees(main, folder):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (40, 30)).save(folder / "images" / "a.png", exif=exif)
    assert main([*yolo(folder), "--names", "cat", "dog"]) == 0
    content = json.loads((folder / "out.json").read_text())
    assert content["images"][0] == {"id": 1, "file_name": "a.png", "width": 30, "height": 40}
    assert boxes(folder) == [("dog", [0, 16, 15, 8], 0)]


def test_numbers_as_numpy_writes_and_rounds_them_are_read(main, folder):
    (folder / "a.txt").write_text("1.000000e+00 5e-01 0.5 1.000001 0.2\r\n")
    assert main([*yolo(folder), "--names", "cat", "dog"]) == 0
    assert boxes(folder) == [("dog", [0, 12, 40, 6], 0)]


def test_labels_without_an_image_are_told_of(main, folder, caplog):
    (folder / "classes.txt").write_text("cat\ndog\n")  # LabelImg writes it
    (folder / "d.txt").write_text("1 0.25 0.5 0.5 0.2\n")
    assert main([*yolo(folder), "--names", "cat", "dog"]) == 0
    assert "1 label files have no image, and their boxes are left out: d.txt" in caplog.text


def test_labels_that_two_images_would_get_are_refused(main, folder, capsys):
    Image.new("RGB", (40, 30)).save(folder / "images" / "a.bmp")
    assert main([*yolo(folder), "--names", "cat", "dog"]) == 1
    assert "would both get the boxes of a.txt" in capsys.readouterr().err


def test_a_part_of_voc_gets_the_classes_of_the_whole(main, folder, capsys):
    command = ["voc", str(folder), str(folder / "out.json"), "--names", "bird", "cat", "dog"]
    assert main(command) == 0
    content = json.loads((folder / "out.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["bird", "cat", "dog"]
    assert [name for name, *_ in boxes(folder)] == ["dog", "cat"]
    assert main(command[:-1]) == 1
    assert "a.xml: 'dog' is not among --names" in capsys.readouterr().err


def test_voc_without_an_object_is_refused(main, folder, capsys):
    (folder / "a.xml").write_text(VOC[: VOC.index("<object>")] + "</annotation>")
    assert main(["voc", str(folder), str(folder / "out.json")]) == 1
    assert "holds no object" in capsys.readouterr().err


def test_an_unknown_class_is_named(main, folder, capsys):
    assert main(["voc", str(folder), str(folder / "out.json"), "--classes", "cow"]) == 1
    said = capsys.readouterr().err
    assert "--classes: there is no class 'cow' in" in said and "there are cat, dog" in said


def test_a_class_asked_for_twice_is_refused(main, folder, capsys):
    with pytest.raises(SystemExit):
        main(["voc", str(folder), str(folder / "out.json"), "--classes", "dog", "dog"])
    assert "--classes: expected different names" in capsys.readouterr().err


def test_names_for_a_coco_file_are_refused(main, folder, capsys):
    (folder / "in.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["coco", str(folder / "in.json"), str(folder / "out.json"), "--names", "dog"])
    assert "--names: a COCO file names its classes itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"categories": [{"id": 1}]}, "expected a name as 'name' of each of the categories"),
        (
            {"categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "dog"}]},
            "categories 1 and 2 are both named 'dog'",
        ),
        ({"categories": ["dog"]}, "expected JSON objects in 'categories', but there is"),
        (
            {"categories": [{"id": 1, "name": "dog"}], "annotations": [{"category_id": []}]},
            "{'category_id': []} has no category_id",
        ),
        (
            {"categories": [{"id": 1, "name": "dog"}], "annotations": [{"id": 3}]},
            "{'id': 3} has no category_id",
        ),
    ],
)
def test_a_mistake_in_coco_is_named(main, tmp_path, capsys, content, message):
    path = tmp_path / "in.json"
    path.write_text(json.dumps({"images": [], "annotations": [], **content}))
    assert main(["coco", str(path), str(tmp_path / "out.json"), "--classes", "dog"]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_a_label_file_may_begin_with_a_byte_order_mark_and_must_be_text(main, folder, capsys):
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbf0 0.5 0.5 0.5 0.5")
    assert main([*yolo(folder), "--names", "cat", "dog"]) == 0
    (folder / "a.txt").write_bytes(b"0 0.5\xff")
    assert main([*yolo(folder), "--names", "cat", "dog"]) == 1
    assert "a.txt cannot be read as text" in capsys.readouterr().err
