"""Train with Detectron2's launcher; every rank writes its state: rank_state.py FOLDER OPTIONS..."""

import json
import sys
from pathlib import Path

from detectron2.engine import default_argument_parser, launch
from detectron2.utils import comm

from alrp.engine import Trainer, setup_config


class RecordingTrainer(Trainer):
    images = []

    @classmethod
    def build_train_loader(cls, cfg):
        def recording(loader):
            for batch in loader:
                cls.images += [Path(record["file_name"]).name for record in batch]
                yield batch

        return recording(super().build_train_loader(cfg))


def main(args, folder):
    trainer = RecordingTrainer(setup_config(args))
    trainer.resume_or_load(args.resume)
    trainer.train()
    model = trainer.model.module
    balance = model.head_losses.self_balance
    state = {name: value.item() for name, value in balance.state_dict().items()}
    state["parameters"] = sum(p.double().sum().item() for p in model.parameters())
    # Batch norm statistics come from each rank's own images until the evaluation.
    state["buffers"] = sum(b.double().sum().item() for b in model.buffers())
    (folder / f"images{comm.get_rank()}.json").write_text(json.dumps(trainer.images))
    (folder / f"rank{comm.get_rank()}.json").write_text(json.dumps(state))


if __name__ == "__main__":
    args = default_argument_parser().parse_args(sys.argv[2:])
    launch(main, args.num_gpus, dist_url="auto", args=(args, Path(sys.argv[1])))
