"""The best evaluation of a training: its weights are kept, and without a better one it ends."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from ..checkpoint import CheckedCheckpointer
from ..evaluation.report import METRICS as LRP_METRICS

_LOGGER = logging.getLogger(__name__)
BEST_FILE = "model_best"
_AP_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
VALIDATION_LOSS = "validation/total_loss"


def known_metrics(cfg: CfgNode) -> dict[str, bool]:
    """What the evaluations of a config measure, as in ``metrics.json``: name to "lower is better".

    Of several test sets, the name begins with that of the set.
    """
    tasks = {"bbox": _AP_METRICS, "segm": _AP_METRICS if cfg.MODEL.MASK_ON else ()}
    sets = [f"{name}/" for name in cfg.DATASETS.TEST] if len(cfg.DATASETS.TEST) > 1 else [""]
    metrics = {VALIDATION_LOSS: True}
    for prefix in sets:
        metrics.update({f"{prefix}{task}/{m}": False for task, of in tasks.items() for m in of})
        metrics.update({f"{prefix}lrp/{metric}": True for metric in LRP_METRICS})
    return metrics


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
        lower_is_better: whether it is an error.
        patience: evaluations in a row without a better value, after which the training ends: by
            :meth:`StopsEarly.stop` of the trainer, and with ``model_final.pth``; 0: never.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: CheckedCheckpointer,
        metric: str,
        *,
        lower_is_better: bool,
        patience: int = 0,
    ) -> None:
        folder, names = checkpointer.save_dir, checkpointer.class_names
        best = _BestWeights(checkpointer.model, folder, class_names=names)
        mode = "min" if lower_is_better else "max"
        super().__init__(eval_period, best, metric, mode, BEST_FILE)
        self._of_run = checkpointer
        self._patience = patience
        self._num_worse = 0

    def state_dict(self) -> dict[str, Any]:
        """Metric, best value, its iteration, and the evaluations since."""
        return {
            "metric": self._val_metric,
            "best_metric": self.best_metric,
            "best_iter": self.best_iter,
            "num_worse": self._num_worse,
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
        self._num_worse = state["num_worse"]

    def _best_checking(self) -> None:
        """As the parent, on the main process; all processes stop together."""
        if comm.is_main_process():
            self._compare_latest()
        self._num_worse = comm.all_gather(self._num_worse)[0]
        is_over = self.trainer.iter + 1 >= self.trainer.max_iter
        if 0 < self._patience <= self._num_worse and not is_over:
            _LOGGER.info(
                f"The training ends: {self._val_metric} has been no better than "
                f"{self.best_metric} in the last {self._num_worse} evaluations."
            )
            self._of_run.save("model_final", iteration=self.trainer.iter)
            self.trainer.stop()

    def _compare_latest(self) -> None:
        is_measured = self._val_metric in self.trainer.storage.latest()
        before = self.best_metric, self.best_iter
        self._checkpointer.iteration = min(self.trainer.iter, self.trainer.max_iter - 1)
        super()._best_checking()  # warns if nothing is measured
        is_better = before != (self.best_metric, self.best_iter)
        self._num_worse = 0 if is_better else self._num_worse + is_measured


class _Stopped(BaseException):
    """Leaves the loop of Detectron2's trainers, which take an ``Exception`` for a failure."""


class StopsEarly:
    """Mixin of trainers that can be ended before their last iteration.

    What the hooks do behind the last iteration they do then, too. There is no further evaluation.
    """

    cfg: CfgNode
    _stops = False

    def stop(self) -> None:
        """End the training when all hooks are through with this iteration."""
        self._stops = True

    def after_step(self) -> None:
        """As the parent; leaves the loop after :meth:`stop`."""
        super().after_step()
        if self._stops:
            raise _Stopped

    def train(self, *args: Any) -> Any:
        """As the parent."""
        try:
            return super().train(*args)
        except _Stopped:
            results = getattr(self, "_last_eval_results", None)
            if comm.is_main_process():
                verify_results(self.cfg, results)
            return results
