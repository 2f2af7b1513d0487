"""The best evaluation of a training: its weights are kept, and without a better one it ends."""

from __future__ import annotations

import logging
import re
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.utils import comm

from ..checkpoint import CheckedCheckpointer
from ..errors import UserError
from ..evaluation.report import METRICS as LRP_METRICS

_LOGGER = logging.getLogger(__name__)
BEST_FILE = "model_best"
_AP_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
VALIDATION_LOSS = "validation/total_loss"
_OF_OBJECTS = {"bbox", "segm", "keypoints", "lrp", "validation"}
_ERROR = re.compile("(^|/)(lrp/oLRP|validation/[^/]*loss)")


def known_metrics(cfg: CfgNode, *, by_set: bool) -> list[str]:
    """What the evaluators of this project measure, as in ``metrics.json``; others measure more.

    Args:
        cfg: full config.
        by_set: whether a name begins with that of the test set, if there are several.
    """
    tasks = {"bbox": _AP_METRICS, "segm": _AP_METRICS if cfg.MODEL.MASK_ON else ()}
    tasks["lrp"] = LRP_METRICS
    sets = [f"{name}/" for name in cfg.DATASETS.TEST] if by_set else []
    prefixes = sets if len(sets) > 1 else [""]
    names = [f"{prefix}{task}/{m}" for prefix in prefixes for task, of in tasks.items() for m in of]
    return [VALIDATION_LOSS, *names]


def needs_objects(metric: str) -> bool:
    """Whether a metric is a loss, an LRP error or an AP, which images without objects have not.

    An evaluator of one's own may measure others on any images, such as their speed.
    """
    # After the task, a name of a class may follow that has a slash, too.
    return not _OF_OBJECTS.isdisjoint(metric.split("/")[:-1])


def lower_is_better(metric: str) -> bool:
    """Whether a metric is a validation loss or an LRP error; of all others, higher is better."""
    return _ERROR.search(metric) is not None


class _BestWeights(CheckedCheckpointer):
    """Writes weights beside the checkpoints of a run, which is never resumed from them."""

    iteration = 0

    def save(self, name: str, **kwargs: Any) -> None:
        """As the parent; the storage of Detectron2's hooks counts one more at the end of a run."""
        super().save(name, **{**kwargs, "iteration": self.iteration})

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """The run goes on from its own checkpoints."""


class BestMetric(hooks.BestCheckpointer):
    """Keeps the weights of the best evaluation, and ends a training that gets no better.

    To be registered on all processes behind the hooks that evaluate; the main one decides. Its
    state is saved and resumed.

    Args:
        eval_period: iterations between evaluations.
        checkpointer: of the run; the best weights go to ``model_best.pth`` in its folder.
        metric: as in ``metrics.json``, such as "bbox/AP".
        patience: evaluations in a row without a better value, after which the training ends: by
            :meth:`StopsEarly.stop` of the trainer, and with ``model_final.pth``; 0: never.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: CheckedCheckpointer,
        metric: str,
        patience: int = 0,
    ) -> None:
        folder, names = checkpointer.save_dir, checkpointer.class_names
        best = _BestWeights(checkpointer.model, folder, class_names=names)
        mode = "min" if lower_is_better(metric) else "max"
        super().__init__(eval_period, best, metric, mode, BEST_FILE)
        self._of_run = checkpointer
        self._patience = patience
        self._num_worse = 0
        self._last_iter: int | None = None  # of the evaluation that was counted last

    def state_dict(self) -> dict[str, Any]:
        """Metric, best value, its iteration, the evaluations since, and the last iteration."""
        return {
            "metric": self._val_metric,
            "best_metric": self.best_metric,
            "best_iter": self.best_iter,
            "num_worse": self._num_worse,
            "last_iter": self._last_iter,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the best value so far, if it is one of the same metric."""
        if state["metric"] != self._val_metric:
            _LOGGER.warning(
                f"The best evaluation was chosen by {state['metric']} so far: the resumed run "
                f"begins anew, by {self._val_metric}."
            )
            return
        self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]
        self._num_worse, self._last_iter = state["num_worse"], state.get("last_iter")

    def before_train(self) -> None:
        """A resumed training that had ended is not gone on with."""
        if 0 < self._patience <= self._num_worse:
            _LOGGER.warning(
                f"The training has ended: {self._val_metric} was no better than "
                f"{self.best_metric} in the last {self._num_worse} evaluations. To go on, set "
                f"TEST.PATIENCE (in a LazyConfig train.patience) to more than {self._num_worse}, "
                "or to 0."
            )
            self.trainer.stop()

    def _best_checking(self) -> None:
        """As the parent, on the main process; all processes stop, or fail, together.

        Raises:
            UserError: if the metric is not measured.
        """
        measured: list[str] | None = None
        if comm.is_main_process():
            if self._val_metric in self.trainer.storage.latest():
                self._compare_latest()
            else:
                measured = sorted(filter(_is_of_all_classes, self.trainer.storage.latest()))
        self._num_worse, measured = comm.all_gather((self._num_worse, measured))[0]
        if measured == []:
            raise UserError(
                f"TEST.BEST_METRIC: {self._val_metric!r} is not measured, nor anything else; name "
                "a test set with annotations, or set TEST.BEST_METRIC ''."
            )
        if measured is not None:
            raise UserError(
                f"TEST.BEST_METRIC: {self._val_metric!r} is not measured; set TEST.BEST_METRIC to "
                f"one of {', '.join(measured)}, or let an evaluator measure it."
            )
        is_over = self.trainer.iter + 1 >= self.trainer.max_iter
        if 0 < self._patience <= self._num_worse and not is_over:
            _LOGGER.info(
                f"The training ends: {self._val_metric} has been no better than "
                f"{self.best_metric} in the last {self._num_worse} evaluations."
            )
            self._of_run.save("model_final", iteration=self.trainer.iter)
            self.trainer.stop()

    def _compare_latest(self) -> None:
        iteration = min(self.trainer.iter, self.trainer.max_iter - 1)
        if iteration == self._last_iter:  # a finished training that is resumed evaluates again
            return
        before = self.best_metric, self.best_iter
        self._checkpointer.iteration = self._last_iter = iteration
        super()._best_checking()
        is_better = before != (self.best_metric, self.best_iter)
        self._num_worse = 0 if is_better else self._num_worse + 1


def _is_of_all_classes(name: str) -> bool:
    """Whether a name of the storage may be a metric, and not that of one class."""
    task, _, metric = name.rpartition("/")
    return bool(task) and "-" not in metric
