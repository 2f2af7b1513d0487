"""The stream of training images: where a loader goes on, and what is drawn for each image."""

from __future__ import annotations

import numpy as np
import random
from itertools import islice
import pytest
import torch

from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm

from alrp.data.stream import collected_streams, mixed_seed, seeded, with_places
from alrp.errors import UserError

NUM_IMAGES, BATCH = 10, 3


def draw(record):
    """A mapper that draws from every generator that an augmentation may use."""
    return {**record, "drawn": (random.random(), np.random.rand(), torch.rand(()).item())}


def repeating():
    factors = torch.linspace(1, 2.5, NUM_IMAGES)
    return RepeatFactorTrainingSampler(factors, seed=7)


SAMPLERS = {"shuffled": lambda: TrainingSampler(NUM_IMAGES, seed=7), "repeating": repeating}


def batches(
    first, count, *, sampler="shuffled", grouped=False, workers=0, seed=3, mapper=draw, **options
):
    """Batches of (image id, numbers drawn) from batch ``first`` on."""
    records = [
        {"image_id": i, "width": 8 if i % 3 else 4, "height": 6, "annotations": []}
        for i in range(NUM_IMAGES)
    ]
    with collected_streams() as streams, seeded(seed):
        loader = with_places(
            build_detection_train_loader(
                records,
                mapper=mapper,
                sampler=SAMPLERS[sampler](),
                total_batch_size=BATCH * comm.get_world_size(),
                aspect_ratio_grouping=grouped,
                num_workers=workers,
                **options,
            )
        )
    (stream,) = streams
    stream.first_batch = first
    return [[(x["image_id"], x["drawn"]) for x in batch] for batch in islice(loader, count)]


@pytest.mark.parametrize("grouped", [False, True], ids=["plain", "grouped"])
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_a_loader_goes_on_as_if_it_had_not_been_interrupted(sampler, grouped):
    whole = batches(0, 12, sampler=sampler, grouped=grouped)
    for first in (1, 5, 10):
        assert batches(first, 2, sampler=sampler, grouped=grouped) == whole[first : first + 2]


@pytest.mark.parametrize("grouped", [False, True], ids=["plain", "grouped"])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_neither_order_nor_augmentation(workers, grouped):
    assert batches(2, 7, grouped=grouped, workers=workers) == batches(2, 7, grouped=grouped)


def test_batches_are_those_of_detectron2s_sampler():
    expected = list(islice(TrainingSampler(NUM_IMAGES, seed=7), 4 * BATCH))
    found = [image for batch in batches(0, 4) for image, _ in batch]
    assert found == expected


def test_grouped_batches_have_one_orientation_and_leave_no_image_out():
    whole = batches(0, 10, grouped=True)
    orientations = [{image % 3 == 0 for image, _ in batch} for batch in whole]
    assert all(len(orientation) == 1 for orientation in orientations)
    assert {image for batch in whole for image, _ in batch} == set(range(NUM_IMAGES))


def test_a_collate_fn_behind_the_grouping_is_passed_through():
    assert batches(3, 2, grouped=True, collate_fn=list) == batches(0, 5, grouped=True)[3:]


def test_an_image_that_comes_again_is_augmented_anew():
    drawn = [numbers for batch in batches(0, 8) for _, numbers in batch]
    assert len(set(drawn)) == len(drawn) > 2 * NUM_IMAGES


def test_two_processes_share_the_stream_that_one_reads_alone(monkeypatch):
    alone = [pair for batch in batches(0, 8) for pair in batch]
    # Both draw the one seed that they share.
    monkeypatch.setattr(comm, "shared_random_seed", lambda: np.random.randint(2**31))
    for module in ("detectron2.utils.comm", "detectron2.data.build"):
        monkeypatch.setattr(f"{module}.get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        own = [pair for batch in batches(1, 3) for pair in batch]
        assert own == alone[2 * BATCH :][rank::2][: 3 * BATCH]


def test_reading_images_leaves_the_generators_of_the_model_alone():
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    batches(0, 2, workers=1)
    batches(0, 2)
    assert (torch.rand(1), np.random.rand(), random.random()) == expected


def test_other_loaders_are_left_as_they_are():
    finite = torch.utils.data.DataLoader(list(range(4)))
    for loader in ([1, 2], finite):
        with collected_streams() as streams:
            assert with_places(loader) is loader
        assert streams == []


def test_keys_that_differ_in_one_number_give_other_seeds():
    keys = [(s, r, i) for s in range(4) for r in range(4) for i in range(4)]
    assert len({mixed_seed(*key) for key in keys}) == len(keys)


def dropping(record):
    """As ``draw``, but None for every other image."""
    return draw(record) if record["image_id"] % 2 else None


@pytest.mark.parametrize("workers", [0, 2])
def test_what_replaces_an_image_without_result_follows_from_its_place(workers):
    whole = batches(0, 6, mapper=dropping)
    assert all(image % 2 for batch in whole for image, _ in batch)
    assert batches(2, 4, mapper=dropping, workers=workers) == whole[2:]


def test_a_mapper_that_makes_nothing_of_any_image_is_named():
    with pytest.raises(UserError, match="the mapper made None of 1000 images in a row"):
        batches(0, 1, mapper=lambda record: None)


def test_records_without_a_size_are_grouped_by_what_the_mapper_adds():
    records = [{"image_id": i, "annotations": []} for i in range(NUM_IMAGES)]
    with collected_streams() as streams:
        loader = with_places(
            build_detection_train_loader(
                records,
                mapper=lambda record: {**record, "width": 8 if record["image_id"] % 3 else 4}
                | {"height": 6},
                sampler=SAMPLERS["shuffled"](),
                total_batch_size=BATCH,
                num_workers=0,
            )
        )
    assert streams == []
    for batch in islice(loader, 5):
        assert len({record["width"] for record in batch}) == 1
