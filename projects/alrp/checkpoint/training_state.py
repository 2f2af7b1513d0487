"""What a resumed run takes from the state of a training in its checkpoint, and what it does not."""

from __future__ import annotations

import logging
from typing import Any

from ..errors import UserError

_LOGGER = logging.getLogger(__name__)

# Hyperparameters that one optimizer has and others have not.
_TELLING = ("momentum", "betas")
# Settings of an optimizer that change no result.
_WAYS_TO_COMPUTE = ("capturable", "foreach", "fused")


def resumable_state(saved: Any, current: dict[str, Any], path: str) -> dict[str, Any]:
    """State of a trainer to load: the progress is the checkpoint's, the settings are the config's.

    Learning rates, momentum, weight decay and the like follow the config, with a warning where they
    differ. Mixed precision may be switched on or off between the runs.

    Args:
        saved: "trainer" in the checkpoint.
        current: ``state_dict()`` of the trainer of the config, before its first iteration.
        path: of the checkpoint, for the messages.

    Raises:
        UserError: if there is no such state, it is of another optimizer, or of no iteration.
    """
    is_nested = "_trainer" in current  # in DefaultTrainer, not in a SimpleTrainer
    saved_core = saved.get("_trainer") if is_nested and isinstance(saved, dict) else saved
    current_core = current["_trainer"] if is_nested else current
    if not isinstance(saved_core, dict) or not {"iteration", "optimizer"} <= set(saved_core):
        raise UserError(
            f"checkpoint {path} holds no state of a training by this command, so there is nothing "
            f"to resume. {_new_run(path)}"
        )
    _check_iteration(saved.get("iteration"), path)
    saved_core = dict(saved_core)
    saved_core["optimizer"] = _optimizer_state(
        saved_core["optimizer"], current_core["optimizer"], path
    )
    _carry_over_scale(saved_core, current_core)
    state = {**saved, "_trainer": saved_core} if is_nested else saved_core
    scheduler = state.get("hooks", {}).get("LRScheduler", {})
    groups = saved_core["optimizer"]["param_groups"]
    if len(scheduler.get("base_lrs", [])) == len(groups):
        base_lrs = [group["initial_lr"] for group in groups]
        hooks = {**state["hooks"], "LRScheduler": {**scheduler, "base_lrs": base_lrs}}
        state = {**state, "hooks": hooks}
    return state


def _check_iteration(iteration: Any, path: str) -> None:
    """The number is counted on from; a checkpoint may have been edited."""
    if type(iteration) is not int or iteration < 0:
        raise UserError(
            f"checkpoint {path}: expected its iteration to be a whole number from 0 on, but it is "
            f"{iteration!r}, so there is nothing to resume. {_new_run(path)}"
        )


def _optimizer_state(saved: dict, current: dict, path: str) -> dict:
    """The saved state with the hyperparameters of the config."""
    if _layout(saved) != _layout(current):
        raise UserError(
            f"checkpoint {path} was trained with another optimizer or other trained layers: its "
            f"optimizer has {_described(saved)}, but the config's has {_described(current)}. "
            f"Resume with the settings of the interrupted run. {_new_run(path)}"
        )
    groups, changes = [], {}
    for old, new in zip(saved["param_groups"], current["param_groups"]):
        before, now = (group.get("initial_lr", group["lr"]) for group in (old, new))
        settings = {k: v for k, v in new.items() if k not in ("params", "lr", "initial_lr")}
        # The rate of the next iteration, in the middle of the schedule.
        lr = old["lr"] if now == before else old["lr"] * (now / before if before else 1.0)
        groups.append({**old, **settings, "lr": lr, "initial_lr": now})
        for name, value in {**settings, "lr": now}.items():
            former = before if name == "lr" else old.get(name, value)
            if former != value and name not in _WAYS_TO_COMPUTE:
                changes[name] = f"{name} {value} instead of {former}"
    if changes:
        _LOGGER.warning(
            f"The config's settings of the optimizer are in force, not those of {path}: "
            f"{', '.join(changes.values())}."
        )
    return {**saved, "param_groups": groups}


def _layout(state: dict) -> list:
    """What two states of one optimizer have in common."""
    return [
        (len(group["params"]), [name for name in _TELLING if name in group])
        for group in state["param_groups"]
    ]


def _described(state: dict) -> str:
    """Like "2 groups of 3 and 4 parameters with momentum"."""
    groups = state["param_groups"]
    sizes = " and ".join(str(len(group["params"])) for group in groups[:4])
    names = [name for name in _TELLING if any(name in group for group in groups)]
    more = " ..." if len(groups) > 4 else ""
    return f"{len(groups)} group(s) of {sizes}{more} parameters with {' and '.join(names)}"


def _carry_over_scale(saved: dict, current: dict) -> None:
    """Let mixed precision start, or end, with the resumed run."""
    if "grad_scaler" in current and "grad_scaler" not in saved:
        saved["grad_scaler"] = current["grad_scaler"]
        _LOGGER.warning("Mixed precision begins with the resumed run.")
    elif current.get("grad_scaler") and not saved["grad_scaler"]:  # of bfloat16 there is none
        saved["grad_scaler"] = current["grad_scaler"]
        _LOGGER.warning("The loss scale of float16 begins with the resumed run.")
    elif "grad_scaler" in saved and "grad_scaler" not in current:
        _LOGGER.warning("The run was in mixed precision before it was resumed, and now is not.")


def _new_run(path: str) -> str:
    return (
        "To start a new run from these weights, leave --resume out, set MODEL.WEIGHTS "
        f"(train.init_checkpoint) to {path} and name another output folder."
    )
