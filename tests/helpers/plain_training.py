"""A training in the manner of Detectron2's plain_train_net.py; spawned processes import it."""

from __future__ import annotations

import contextlib
from itertools import islice
from pathlib import Path
import torch
from torch.nn.parallel import DistributedDataParallel

from detectron2.config import CfgNode, get_cfg
from detectron2.data import build_detection_train_loader
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from alrp import add_alrp_config, prepare_config
from alrp.losses import SelfBalance

CONFIG = Path(__file__).parents[2] / "configs" / "Shapes" / "alrp_retinanet_R_18_FPN_ATSS_demo.yaml"
ITERATIONS, SELF_BALANCE = 4, "ranking_losses.self_balance"


def tiny_config(root: str, split: str, num_images_per_batch: int) -> CfgNode:
    """A detector that trains on one split of a shapes dataset within seconds."""
    cfg = get_cfg()
    add_alrp_config(cfg)
    cfg.merge_from_file(str(CONFIG))
    name = f"{Path(root).name}_{split}"
    cfg.DATASETS.COCO_FORMAT = [[name, f"{root}/annotations/{split}.json", f"{root}/{split}"]]
    cfg.DATASETS.TRAIN, cfg.MODEL.DEVICE, cfg.DATALOADER.NUM_WORKERS = (name,), "cpu", 0
    cfg.INPUT.AUGMENTATION, cfg.SOLVER.OPTIMIZER = "detectron2", "SGD"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (64,), 64
    cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.RETINANET.NUM_CONVS = 32, 1
    cfg.MODEL.ALRP.SELF_BALANCE.PERIOD = 0
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR = num_images_per_batch, 1e-3
    return cfg


def train(cfg: CfgNode, validate=None) -> dict[str, torch.Tensor]:
    """Parameters and self-balance after some iterations; ``validate(model)`` is called in each."""
    seed_all_rng(0)
    model = build_model(prepare_config(cfg))
    parallel = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    seed_all_rng(0)  # of the images
    loader = build_detection_train_loader(cfg)
    with EventStorage(0) as storage:
        for batch in islice(loader, ITERATIONS):
            storage.step()
            losses = parallel(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            scheduler.step()
            if validate is not None:
                validate(model)
    names = {name for name, _ in model.named_parameters()}
    state = model.state_dict()
    # Batch norm counts validation images, whatever the loss does.
    return {n: tensor for n, tensor in state.items() if n in names or SELF_BALANCE in n}


@torch.no_grad()
def validate_without_gradients(model, batches) -> None:
    """A public loss hook: the model stays in training mode, where it returns losses."""
    for batch in batches:
        model(batch)


def validate_paused(model, batches) -> None:
    """A loss hook that keeps gradients, and pauses self-balance for it."""
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, SelfBalance):
                stack.enter_context(module.paused())
        for batch in batches:
            model(batch)


def train_beside_another(rank: int, root: str) -> dict:
    """Train without a hook and with each; the ranks validate on different numbers of batches."""
    cfg = tiny_config(root, "train", 4)
    states = {"without": train(cfg)}
    batches = list(islice(build_detection_train_loader(cfg), 1 + 2 * rank))
    for hook in (validate_without_gradients, validate_paused):
        states[hook.__name__] = train(cfg, lambda model: hook(model, batches))
    return states
