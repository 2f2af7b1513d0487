"""What makes a resumed run the continuation of the interrupted one, beside the checkpoint."""

from __future__ import annotations

import json
import logging
import numpy as np
import os
import random
from pathlib import Path
from typing import Any, Callable, Iterable, Sequence
import torch

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..data.stream import ImageStream, collected_streams, mixed_seed, seeded, with_places

_LOGGER = logging.getLogger(__name__)


class SeededIterations(HookBase):
    """Gives each iteration its images and random numbers, resumed or not.

    The order of the images and their augmentation are those of :mod:`alrp.data.stream`. All other
    numbers, such as a sampling of proposals, are drawn from generators that are seeded before every
    iteration. A checkpoint holds the seed, the number of images seen, and the training sets. It is
    assumed that an iteration takes one batch from the loader.

    Args:
        seed: of the run; if negative, one is drawn.
        build_train_loader: builds the loader; what it draws depends on the seed alone.
        datasets: names of the training sets, to tell whether a resumed run has others.
    """

    def __init__(
        self,
        seed: int,
        build_train_loader: Callable[[], Iterable],
        datasets: Sequence[str] = (),
    ) -> None:
        self._is_given = seed >= 0
        self._seed = seed if self._is_given else comm.shared_random_seed()
        self._build_train_loader = build_train_loader
        self._datasets = list(datasets)
        self._stream: ImageStream | None = None
        self._resumed: dict[str, int] | None = None
        self._first_batch = 0

    def build_train_loader(self) -> Iterable:
        """The training loader, in which this hook will choose the first batch."""
        with collected_streams() as streams, seeded(self._seed):
            loader = with_places(self._build_train_loader())
        # Nobody knows in which order several streams are read.
        self._stream = streams[0] if len(streams) == 1 else None
        return loader

    @property
    def num_images(self) -> int | None:
        """Length of the training set; None if the loader is not one of Detectron2's."""
        return None if self._stream is None else self._stream.num_images

    def before_train(self) -> None:
        """Choose the first batch, and say what a resumed run does differently."""
        start, end = self.trainer.start_iter, self.trainer.max_iter
        if 0 < end <= start:
            _LOGGER.warning(
                f"The checkpoint has done {start} iterations of {end} (SOLVER.MAX_ITER): nothing "
                "is left to train."
            )
        self._first_batch = self.trainer.start_iter  # of a checkpoint without this state
        resumed = comm.all_gather(self._resumed)[0]  # not every machine may see the checkpoint
        if resumed is not None:
            self._continue(**resumed)
        if self._stream is not None:
            self._stream.first_batch = self._first_batch
        elif self._first_batch > 0:
            _LOGGER.warning(
                "The training loader is not one of build_detection_train_loader, so that it starts "
                "anew: this part of the run sees the images that its first part saw."
            )

    def before_step(self) -> None:
        """Seed the generators of this process."""
        seed = mixed_seed(self._seed, comm.get_rank(), self.trainer.iter)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """Seed, images seen by all processes, images per iteration, and training sets."""
        num_batches = self._first_batch + self.trainer.iter + 1 - self.trainer.start_iter
        return {
            "seed": self._seed,
            "num_seen": num_batches * self._batch,
            "batch": self._batch,
            "datasets": self._datasets,
            "num_images": self.num_images,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the images seen, in the order of the seed of the checkpoint."""
        self._resumed = state

    def _continue(
        self,
        seed: int,
        num_seen: int,
        batch: int,
        datasets: Sequence[str] | None = None,
        num_images: int | None = None,
    ) -> None:
        before, now = (datasets, num_images), (self._datasets, self.num_images)
        if datasets is not None and before != now:  # an older checkpoint knows nothing of them
            _LOGGER.warning(
                f"The checkpoint was trained on {num_images} images of {datasets}, and the resumed "
                f"run goes on with {self.num_images} of {self._datasets}."
            )
        if seed != self._seed:
            if self._is_given:
                _LOGGER.warning(
                    f"SEED is {self._seed}, but the resumed run goes on with its own, {seed}."
                )
            self._seed = seed
            trainer = getattr(self.trainer, "_trainer", self.trainer)
            trainer.reset_data_loader(self.build_train_loader)
        self._first_batch = -(-num_seen // self._batch)
        if batch != self._batch:
            _LOGGER.warning(
                f"An iteration had {batch} images and has {self._batch} now: the run goes on "
                f"behind the {num_seen} images that it saw."
            )

    @property
    def _batch(self) -> int:
        """Images per iteration, of all processes."""
        return comm.get_world_size() * (1 if self._stream is None else self._stream.batch_size)


class ContinuedMetrics(HookBase):
    """Cuts off the rows of ``metrics.json`` that a resumed run will write again.

    The interrupted run wrote them after its last checkpoint. A row that a kill cut short goes too,
    as the next one would be appended to it.

    Args:
        output_dir: folder of the file.
    """

    def __init__(self, output_dir: str) -> None:
        self._path = Path(output_dir, "metrics.json")

    def before_train(self) -> None:
        """Cut the file, on the main process of a resumed run."""
        start = self.trainer.start_iter
        if start == 0 or not comm.is_main_process() or not self._path.is_file():
            return
        num_bytes = 0
        for line in self._path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n") or _is_of_training_from(start, line):
                break
            num_bytes += len(line)
        os.truncate(self._path, num_bytes)


def _is_of_training_from(start: int, line: bytes) -> bool:
    """Whether a row tells of a training iteration from ``start`` on.

    The evaluation at the end of a training counts as the iteration behind the last one, and stays
    if the training is prolonged.
    """
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return "total_loss" in row and row["iteration"] >= start
