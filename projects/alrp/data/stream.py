"""The stream of training images, from any place on, with random numbers that depend on the place.

Detectron2's samplers shuffle by a seed, but every new process starts them at the first image, and
its loader workers draw the augmentation from generators that only their own past determines. Here
each image has a place in the stream of the whole run. The order of the images and what is drawn for
each of them follow from the seed and the place alone: they are the same in a resumed run, and with
any number of loader workers.
"""

from __future__ import annotations

import numpy as np
import random
from contextlib import contextmanager
from itertools import islice
from typing import Iterable, Iterator
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from detectron2.data.common import AspectRatioGroupedDataset, MapDataset, ToIterableDataset
from detectron2.utils import comm

from ..errors import UserError

_MOST_DRAWS = 1000

# Streams made while :func:`collected_streams` is active.
_collections: list[list[ImageStream]] = []


class ImageStream(Sampler):
    """Pairs (place, index) of an endless sampler of indices, from any batch on.

    Args:
        sampler: of this process's share of the images, without end and without ``__len__``, as
            Detectron2's training samplers are.
        batch_size: images per batch of this process.
        num_images: length of the dataset.
        is_wide: per index, whether the image is wider than high, to put only images of one
            orientation into a batch; None for batches of all.

    Attributes:
        first_batch: number of batches that are left out. Their images are not read.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        num_images: int,
        is_wide: list[bool] | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.num_images = num_images
        self.first_batch = 0
        self._sampler = sampler
        self._is_wide = is_wide
        # Kept, as worker processes know no process group.
        self._rank, self._num_processes = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The pairs of this process, or in a loader worker the share that it is asked for."""
        worker = get_worker_info()
        num_workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        # The loader takes from its workers in turn: batches, or single images to be grouped.
        turn = self.batch_size if self._is_wide is None else 1
        for number, (place, index) in enumerate(self._from_first_batch()):
            if number // turn % num_workers == worker_id:
                yield place * self._num_processes + self._rank, int(index)

    def _from_first_batch(self) -> Iterator[tuple[int, int]]:
        """Pairs (place in this process's stream, index) in the order of the batches."""
        pairs = enumerate(self._sampler)
        if self._is_wide is not None:
            pairs = self._grouped(pairs)
        return islice(pairs, self.first_batch * self.batch_size, None)

    def _grouped(self, pairs: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """The pairs in an order in which each batch has one orientation."""
        groups: tuple[list, list] = ([], [])
        for pair in pairs:
            group = groups[self._is_wide[pair[1]]]
            group.append(pair)
            if len(group) == self.batch_size:
                yield from group
                group.clear()


class _PlacedDataset(Dataset):
    """Images by pairs (place, index); random numbers drawn for one depend on seed and place.

    For an image of which a mapper makes None, another one is drawn, by the same numbers.
    Detectron2's ``MapDataset`` would draw it by its own, which depend on the worker's past.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self._dataset = dataset
        self._seed = seed

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, pair: tuple[int, int]):
        place, index = pair
        with seeded(self._seed, place):
            for _ in range(_MOST_DRAWS):
                image = self._mapped(index)
                if image is not None:
                    return image
                index = random.randrange(len(self))
        raise UserError(
            f"training data: the mapper made None of {_MOST_DRAWS} images in a row; let it "
            "return images, or remove those that it cannot use from the dataset."
        )

    def _mapped(self, index: int):
        if isinstance(self._dataset, MapDataset):
            return self._dataset._map_func(self._dataset._dataset[index])
        return self._dataset[index]


def with_places(loader: Iterable) -> Iterable:
    """Let a training loader of Detectron2 start at any batch; other loaders stay as they are.

    The loader is changed in place. It is one of ``build_detection_train_loader``, with or without
    aspect ratio grouping and ``collate_fn``, over a dataset with a length. The seed of its images
    is drawn here, from the generator that also gives Detectron2's samplers theirs.

    Args:
        loader: of this process; the other processes make the same call.

    Returns:
        ``loader``. The stream that was put into it is noted by :func:`collected_streams`. Without
        ``width`` and ``height`` in the records, images cannot be grouped before they are read, and
        the loader stays as it is.
    """
    is_grouped, node = False, loader
    while node is not None and not isinstance(node, ToIterableDataset):
        is_grouped = is_grouped or isinstance(node, AspectRatioGroupedDataset)
        if isinstance(node, DataLoader):
            # Starting its workers draws a number, which must not come from the model's generator.
            node.generator = torch.Generator().manual_seed(0)
        node = getattr(node, "dataset", getattr(node, "_dataset", None))
    if node is None or isinstance(node.sampler, ImageStream) or hasattr(node.sampler, "__len__"):
        return loader
    is_wide = None
    if is_grouped:
        records = node.dataset._dataset  # of a MapDataset, whose images would have to be read
        if any("width" not in record or "height" not in record for record in records):
            return loader  # which groups by what the mapper adds
        is_wide = [record["width"] > record["height"] for record in records]
    stream = ImageStream(node.sampler, node.shard_chunk_size, len(node.dataset), is_wide)
    node.sampler, node.shard_sampler = stream, False
    node.dataset = _PlacedDataset(node.dataset, seed=comm.shared_random_seed())
    for streams in _collections:
        streams.append(stream)
    return loader


@contextmanager
def collected_streams() -> Iterator[list[ImageStream]]:
    """The streams of loaders that are built in the block, also of those in a foreign wrapper."""
    streams: list[ImageStream] = []
    _collections.append(streams)
    try:
        yield streams
    finally:
        _collections.pop()


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed the global CPU generators of Python, NumPy and PyTorch in the block, then restore them.

    Args:
        key: whole numbers >= 0, as a seed and the number of an image.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = mixed_seed(*key)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # no GPU's, unlike torch.manual_seed
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def mixed_seed(*key: int) -> int:
    """A seed of 32 bits; keys that differ in one number give unrelated seeds."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])
