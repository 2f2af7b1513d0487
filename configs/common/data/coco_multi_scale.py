"""COCO as in Detectron2's own configs (640 to 800 / 1333), with LRP beside COCO's AP."""

from detectron2 import model_zoo

from .coco_500 import dataloader as published

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.mapper.image_format = "RGB"
dataloader.train.mapper.use_instance_mask = False
dataloader.evaluator = published.evaluator
