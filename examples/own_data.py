"""From a folder of photographs with boxes to an exported detector, step by step.

Run it in the root of a checkout, as a script or cell by cell in an editor that knows "# %%":

    python examples/own_data.py --format voc --images PHOTOS --labels XML_FOLDER
    python examples/own_data.py --format yolo --images PHOTOS --labels TXT_FOLDER --names cat dog
    python examples/own_data.py --format coco --images PHOTOS --labels FILE.json

Without photographs it draws scenes of its own, and needs no network. For photographs of yours the
training starts from the ImageNet weights of torchvision, which are downloaded once; without network
it ends with a message that says where to put them. The commands that do the work are printed.
"""

# %% Settings
import argparse
import json
import numpy as np
import runpy
import sys
from pathlib import Path
import yaml
from PIL import Image, ImageOps

from alrp.config import load_config
from alrp.data.datasets.shapes import CLASS_NAMES, render, sample_scene

parser = argparse.ArgumentParser()
parser.add_argument("--images", help="folder of the photographs; default: generated scenes")
parser.add_argument("--labels", help="folder of .xml or .txt files, or a COCO file")
parser.add_argument(
    "--format", choices=("voc", "yolo", "coco"), default="yolo", help="of the labels"
)
parser.add_argument("--names", nargs="+", help="of the classes by index, for YOLO")
parser.add_argument("--output", default="output/own_data", help="folder of all that is made")
parser.add_argument("--base", help="config of a RetinaNet to start from")
parser.add_argument("--iterations", type=int, default=300)
parser.add_argument("--batch", type=int, default=8, help="images per iteration")
parser.add_argument("--num-scenes", type=int, default=250)
parser.add_argument("--size", type=int, default=128, help="of the generated scenes, in pixels")
settings = parser.parse_args([] if "ipykernel" in sys.modules else None)
if (settings.images is None) != (settings.labels is None):
    parser.error("--images and --labels go together")
if settings.images and settings.format == "yolo" and not settings.names:
    parser.error("--format yolo needs --names")
if not Path("tools/convert_dataset.py").is_file():
    parser.error("run this in the root of a checkout of the project")
output = Path(settings.output)
output.mkdir(parents=True, exist_ok=True)


def command(script, *arguments):
    """Run a command of this project here; in a shell it is ``python script arguments``."""
    print("\n$ python", script, *arguments, flush=True)
    sys.argv = [script, *map(str, arguments)]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise


# %% Photographs with boxes: yours, or scenes with labels in YOLO's format
if settings.images is None:
    scenes = output / f"{settings.num_scenes}_scenes_of_{settings.size}_pixels"
    settings.images, settings.labels = str(scenes / "images"), str(scenes / "labels")
    settings.format, settings.names = "yolo", CLASS_NAMES
    settings.base = settings.base or "configs/Shapes/rs_retinanet_R_18_FPN_ATSS.yaml"
    for folder in (settings.images, settings.labels):
        Path(folder).mkdir(parents=True, exist_ok=True)
    for i in range(settings.num_scenes):
        scene = sample_scene(np.random.default_rng(i), settings.size)
        pixels, boxes, *_ = render(scene)
        Image.fromarray(pixels).save(f"{settings.images}/{i:04d}.png")
        centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        rows = np.concatenate([centers, sides], axis=1) / settings.size
        lines = [f"{s.category} {' '.join(map(str, row))}" for s, row in zip(scene.shapes, rows)]
        Path(f"{settings.labels}/{i:04d}.txt").write_text("\n".join(lines))

# %% One file in COCO's format, and every fifth image of it for validation
options = ["--images", settings.images, "--names", *settings.names] if settings.names else []
everything = output / "all.json"
command("tools/convert_dataset.py", settings.format, settings.labels, everything, *options)
content = json.loads(everything.read_text())
if len(content["images"]) < 5:
    sys.exit("Five photographs are the least: every fifth is for validation.")
for split in ("train", "val"):
    images = [x for i, x in enumerate(content["images"]) if (i % 5 == 4) == (split == "val")]
    ids = {image["id"] for image in images}
    boxes = [a for a in content["annotations"] if a["image_id"] in ids]
    part = {"images": images, "annotations": boxes, "categories": content["categories"]}
    (output / f"{split}.json").write_text(json.dumps(part))

# %% A config: your data on top of one of this project's
base = Path(settings.base or "configs/COCO-Detection/rs_retinanet_R_50_FPN_ATSS_1x.yaml")
cfg, iterations = load_config(str(base)), settings.iterations
config = {
    "_BASE_": str(base.resolve()),
    "DATASETS": {
        "COCO_FORMAT": [
            [f"own_{split}", str(output / f"{split}.json"), settings.images]
            for split in ("train", "val")
        ],
        "TRAIN": ["own_train"],
        "TEST": ["own_val"],
    },
    "MODEL": {"RETINANET": {"NUM_CLASSES": len(content["categories"])}},
    "SOLVER": {
        "IMS_PER_BATCH": settings.batch,
        "BASE_LR": cfg.SOLVER.BASE_LR * settings.batch / cfg.SOLVER.IMS_PER_BATCH,
        "MAX_ITER": iterations,
        "STEPS": [iterations * 3 // 4],
        "WARMUP_ITERS": iterations // 10,
        "CHECKPOINT_PERIOD": max(1, iterations // 2),
    },
    "TEST": {"EVAL_PERIOD": 0},  # at the end
    "OUTPUT_DIR": str(output),
}
config_file = output / "own_data.yaml"
config_file.write_text(yaml.safe_dump(config))

# %% Training; the evaluation at its end stores the least score of each class in the checkpoint
command("train_net.py", "--config-file", config_file)
evaluated = json.loads((output / "inference" / "lrp_results.json").read_text())["per_class"]
thresholds = {name: values["threshold"] for name, values in evaluated.items()}
print("Classes are shown from these scores on:", thresholds)

# %% A detection that is shown, and its image, in which there is something to find
names = {category["id"]: category["name"] for category in content["categories"]}
files = {image["id"]: image["file_name"] for image in content["images"]}
results = json.loads((output / "inference" / "coco_instances_results.json").read_text())
shown = [r for r in results if r["score"] >= (thresholds[names[r["category_id"]]] or 2)]
if not shown:
    sys.exit("The detector finds nothing yet: train it for more --iterations.")
photograph = Path(settings.images, files[max(shown, key=lambda r: r["score"])["image_id"]])

# %% An exported detector with these thresholds inside; the command checks that it finds the same
exported = output / "own_data.onnx"
where = ["--config-file", config_file, "--output", exported, "--sample-image", photograph]
command("tools/export_model.py", *where, "--opts", "MODEL.WEIGHTS", output / "model_final.pth")

# %% Where it runs, ONNX Runtime is all it needs: an image goes in, resized as in the evaluation
import onnxruntime  # noqa: E402

session = onnxruntime.InferenceSession(str(exported))
class_names = json.loads(session.get_modelmeta().custom_metadata_map["alrp.json"])["class_names"]
image = ImageOps.exif_transpose(Image.open(photograph)).convert("RGB")
least, most = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
scale = min(least / min(image.size), most / max(image.size))
resized = image.resize([round(scale * side) for side in image.size], Image.BILINEAR)
pixels = np.asarray(resized, dtype=np.float32).transpose(2, 0, 1)  # (3, H, W), 0 to 255, RGB
boxes, scores, classes = session.run(None, {"image": pixels})
print(f"\n{photograph}:")
for box, score, index in zip(boxes / scale, scores, classes):
    corners = ", ".join(f"{side:.1f}" for side in box)
    print(f"  {class_names[index]:<12} {score:.3f}  x1, y1, x2, y2 = {corners}")
