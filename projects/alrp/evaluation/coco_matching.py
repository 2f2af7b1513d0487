"""Matching of detections to ground truths by the official COCOeval, in the form LRP needs.

Naming: a *pair* is one image and one class, numbered class-major; COCO matches inside pairs only.
"""

from __future__ import annotations

import contextlib
import io
import logging
import numpy as np
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .coco_input import (
    DetectionColumns,
    Detections,
    GroundTruths,
    Sources,
    category_names,
    check_ground_truth,
    detection_boxes,
    ground_truth_boxes,
    ids_in_order,
)
from .lrp import OptimalLRP, check_matching_tau, optimal_lrp

_LOGGER = logging.getLogger(__name__)

ALL_AREAS = (0.0, 1e10)


class ClassMatches(NamedTuple):
    """Matches of one class over all images, the arguments of :func:`optimal_lrp`.

    Its D detections are ordered by image id, then by descending score. ``scores`` (D,) float64;
    ``matched_ious`` (D,) float64 in [tau, 1], NaN where unmatched; ``ignored`` (D,) bool;
    ``num_gt`` ground truths that are not ignored.
    """

    scores: np.ndarray
    matched_ious: np.ndarray
    ignored: np.ndarray
    num_gt: int


class ImageMatches(NamedTuple):
    """Matches of one class with the images that they are in.

    ``matches`` of its D detections; ``images`` (D,) int64 index of the image of each; ``num_gt``
    (N,) int64 ground truths in each image that are not ignored. Images are numbered in ascending
    order of their ids.
    """

    matches: ClassMatches
    images: np.ndarray
    num_gt: np.ndarray


@dataclass(frozen=True)
class MatchSettings:
    """How detections are matched; see :func:`match_detections`.

    Raises:
        ValueError: on a value outside its range.
    """

    tau: float = 0.5
    max_dets: int = 100
    area_range: tuple[float, float] = ALL_AREAS

    def __post_init__(self) -> None:
        check_matching_tau(self.tau)
        if self.max_dets < 1:
            raise ValueError(f"max_dets must be at least 1, got {self.max_dets}.")
        if self.area_range[0] > self.area_range[1]:
            raise ValueError(f"area_range must be (lowest, highest), got {tuple(self.area_range)}.")


def match_detections(
    dataset: dict,
    results: list | DetectionColumns,
    *,
    tau: float = 0.5,
    max_dets: int = 100,
    area_range: tuple[float, float] = ALL_AREAS,
    image_ids: Iterable | None = None,
    sources: Sources = Sources(),
) -> dict[int | str, ClassMatches]:
    """Match detections to ground truths of the same image and class, as COCO does.

    Args:
        dataset: ground truth in COCO format (``images``, ``categories``, ``annotations``). Ids may
            be numbers or text, also 0; annotation ids are not used. Not modified.
        results: COCO result list: dicts with ``image_id``, ``category_id``, ``bbox`` (XYWH absolute
            pixels) and ``score``, or the same by columns; may be empty. Not modified.
        tau: IoU at which a detection may match, in (0, 1).
        max_dets: best-scoring detections kept per image and class, >= 1; a warning counts the rest.
        area_range: areas in square pixels, both ends included; ground truths (``area`` field) and
            unmatched detections (width x height) outside are ignored.
        image_ids: images to evaluate; all of them if None.
        sources: names of the two inputs, for messages.
    Returns:
        dict: :class:`ClassMatches` of every class by id, in ascending order of the ids.
    Raises:
        UserError: on malformed input; it names the fields and the first records.
        ValueError: on an argument outside its range.
    """
    settings = MatchSettings(tau, max_dets, area_range)
    check_ground_truth(dataset, sources)
    return match_boxes(dataset, detection_boxes(results, dataset, sources), settings, image_ids)


def match_boxes(
    dataset: dict,
    detections: Detections,
    settings: MatchSettings,
    image_ids: Iterable | None = None,
) -> dict[int | str, ClassMatches]:
    """As :func:`match_detections`, of input that was checked."""
    matches = match_boxes_by_image(dataset, detections, settings, image_ids)
    return {category_id: match.matches for category_id, match in matches.items()}


def match_boxes_by_image(
    dataset: dict,
    detections: Detections,
    settings: MatchSettings,
    image_ids: Iterable | None = None,
) -> dict[int | str, ImageMatches]:
    """As :func:`match_boxes`, with the image of every detection."""
    all_image_ids = ids_in_order(dataset, "images")
    category_ids = ids_in_order(dataset, "categories")
    ground_truths = ground_truth_boxes(dataset, all_image_ids, category_ids)
    if image_ids is not None:
        wanted = set(image_ids)
        chosen = np.array([image_id in wanted for image_id in all_image_ids], dtype=bool)
        ground_truths = ground_truths.select(chosen[ground_truths.image])
        detections = detections.select(chosen[detections.image])

    gt_pairs = ground_truths.category * len(all_image_ids) + ground_truths.image
    det_pairs = detections.category * len(all_image_ids) + detections.image
    kept = _ranked_and_capped(det_pairs, detections.score, settings.max_dets)
    detections, det_pairs = detections.select(kept), det_pairs[kept]
    num_categories, num_images = len(category_ids), len(all_image_ids)
    matched_ious, ignored, num_gt = _match_all_pairs(
        _Paired(ground_truths, gt_pairs),
        _Paired(detections, det_pairs),
        num_categories * num_images,
        settings,
    )
    per_image = num_gt.reshape(num_categories, num_images)
    bounds = np.searchsorted(detections.category, np.arange(num_categories + 1))
    return {
        category_id: ImageMatches(
            ClassMatches(
                detections.score[begin:end],
                matched_ious[begin:end],
                ignored[begin:end],
                int(counts.sum()),
            ),
            detections.image[begin:end],
            counts,
        )
        for category_id, begin, end, counts in zip(category_ids, bounds, bounds[1:], per_image)
    }


def evaluate_lrp(
    dataset: dict, results: list | DetectionColumns, *, tau: float = 0.5, **match_options
) -> dict[str, OptimalLRP]:
    """Optimal LRP of every class by name, in ascending order of the class ids.

    Args:
        dataset, results, tau, match_options: see :func:`match_detections`.
    Raises:
        UserError: on malformed input, or two classes of the same name.
    """
    matches = match_detections(dataset, results, tau=tau, **match_options)
    names = category_names(dataset)
    return {names[category]: optimal_lrp(*match, tau=tau) for category, match in matches.items()}


_BoxesT = TypeVar("_BoxesT", GroundTruths, Detections)


class _Paired(NamedTuple, Generic[_BoxesT]):
    """Boxes and the (N,) int64 number of the pair that each belongs to."""

    boxes: _BoxesT
    pairs: np.ndarray


class _PairMatches(NamedTuple):
    """(D,) matched IoU or NaN, (D,) whether ignored, and (pairs,) ground truths not ignored."""

    matched_ious: np.ndarray
    ignored: np.ndarray
    num_gt: np.ndarray


def _ranked_and_capped(pairs: np.ndarray, scores: np.ndarray, max_dets: int) -> np.ndarray:
    """Positions of the ``max_dets`` best detections of each pair, by pair, then by rank."""
    order = np.lexsort((-scores, pairs))  # stable: equal scores keep their order in the file
    sorted_pairs = pairs[order]
    rank = np.arange(order.size) - np.searchsorted(sorted_pairs, sorted_pairs, side="left")
    kept = order[rank < max_dets]
    if kept.size < order.size:
        _LOGGER.warning(
            f"{order.size - kept.size} of {order.size} detections left out: only the {max_dets} "
            "best of an image and class count, as in COCO's evaluation; raise max_dets "
            "(evaluate_lrp.py: --max-dets, config: TEST.DETECTIONS_PER_IMAGE) to count more."
        )
    return kept


def _match_all_pairs(
    ground_truths: _Paired[GroundTruths],
    detections: _Paired[Detections],
    num_pairs: int,
    settings: MatchSettings,
) -> _PairMatches:
    """Matches of ranked detections; only pairs with a ground truth need COCOeval, and few have."""
    xywh = detections.boxes.xywh
    matched_ious = np.full(len(xywh), np.nan)
    ignored = _outside(xywh[:, 2] * xywh[:, 3], settings.area_range)
    num_gt = np.zeros(num_pairs, dtype=np.int64)
    pairs, gt_numbers = np.unique(ground_truths.pairs, return_inverse=True)
    if pairs.size:
        numbers = np.searchsorted(pairs, detections.pairs).clip(max=pairs.size - 1)
        has_candidates = pairs[numbers] == detections.pairs
        matched_ious[has_candidates], ignored[has_candidates], num_gt[pairs] = _match_pairs(
            _Paired(ground_truths.boxes, gt_numbers),
            _Paired(detections.boxes.select(has_candidates), numbers[has_candidates]),
            settings,
        )
    return _PairMatches(matched_ious, ignored, num_gt)


def _match_pairs(
    ground_truths: _Paired[GroundTruths],
    detections: _Paired[Detections],
    settings: MatchSettings,
) -> _PairMatches:
    """Run COCOeval over G ground truths and D ranked detections, each given with its pair number.

    Every pair enters as an "image" of its own with a single class. That gives COCOeval the same
    boxes to match, but spares it the many pairs in which there is nothing to match. Ids are
    renumbered from 1, since it takes the id 0 for "no match".
    """
    gt_order = np.argsort(ground_truths.pairs, kind="stable")  # by pair, in file order inside
    gt, gt_pairs = ground_truths.boxes.select(gt_order), ground_truths.pairs[gt_order]
    num_pairs = int(gt_pairs[-1]) + 1
    first_id = np.searchsorted(gt_pairs, np.arange(num_pairs)) + 1
    det, det_pairs = detections
    with contextlib.redirect_stdout(io.StringIO()):
        coco_eval = COCOeval(
            _coco_of_pairs(gt, gt_pairs, area=gt.area, iscrowd=gt.is_crowd.astype(np.int64)),
            _coco_of_pairs(det, det_pairs, area=det.xywh[:, 2] * det.xywh[:, 3], score=det.score),
            "bbox",
        )
        coco_eval.params.imgIds = list(range(num_pairs))
        coco_eval.params.catIds = [1]
        coco_eval.params.iouThrs = np.array([settings.tau])
        coco_eval.params.areaRng = [list(settings.area_range)]
        coco_eval.params.maxDets = [settings.max_dets]
        coco_eval.evaluate()
    matched_ids = [result["dtMatches"][0].astype(np.int64) for result in coco_eval.evalImgs]
    matched_ious = []
    for pair, ids in enumerate(matched_ids):
        ious = np.full(ids.size, np.nan)
        rows = np.flatnonzero(ids)
        if rows.size:
            ious[rows] = coco_eval.ious[pair, 1][rows, ids[rows] - first_id[pair]]
        matched_ious.append(ious)
    ignored = [result["dtIgnore"][0].astype(bool) for result in coco_eval.evalImgs]
    num_gt = [np.count_nonzero(result["gtIgnore"] == 0) for result in coco_eval.evalImgs]
    return _PairMatches(np.concatenate(matched_ious), np.concatenate(ignored), np.array(num_gt))


def _coco_of_pairs(
    boxes: GroundTruths | Detections, pairs: np.ndarray, **columns: np.ndarray
) -> COCO:
    """In-memory COCO object with one "image" per pair; ids are positions + 1."""
    names = ("id", "image_id", "category_id", "bbox", *columns)
    rows = zip(
        range(1, pairs.size + 1),
        pairs.tolist(),
        np.ones(pairs.size, dtype=np.int64).tolist(),
        boxes.xywh.tolist(),
        *(column.tolist() for column in columns.values()),
    )
    api = COCO()
    api.dataset = {
        "images": [{"id": pair} for pair in np.unique(pairs).tolist()],
        "categories": [{"id": 1}],
        "annotations": [dict(zip(names, row)) for row in rows],
    }
    api.createIndex()
    return api


def _outside(areas: np.ndarray, area_range: tuple[float, float]) -> np.ndarray:
    return (areas < area_range[0]) | (areas > area_range[1])
