"""A training that goes on from a checkpoint as if it had never stopped.

Lightning's checkpoints hold weights, optimizers, schedulers and how many batches there were. What else the rest of a
training depends on is added here: random generators, gradients that are being accumulated, sums of what is logged once
an epoch, and what was due when the checkpoint was written. All of it is plain data.
"""

import random
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ep_plugin.lightning.checkpoint_files import write_whole
from ep_plugin.lightning.ignored_targets import IgnoredTargets
from ep_plugin.lightning.optimizers import compare, described
from ep_plugin.lightning.zero_gradients import ZeroGradients

_KEY = "ep_plugin_resuming"
_LOGGED_AS = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx")


class Resuming(L.Callback):
    """Adds to every checkpoint what a bit-exact continuation needs, and takes it up again.

    The modules of this package bring it with them. Some of what it reads and sets is inside Lightning, which has no
    other way to it; `tests/lightning/test_resume.py` says whether it is still there.
    """

    _found: dict[str, Any] | None = None
    _optimizers: list[dict[str, Any]] | None = None  # as they were before the first step; [] where that is not known

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        write_whole(trainer)
        self._found = self._optimizers = None  # of a run that never came to its training, such as that of a tuner

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        own = {
            "generators": _generators(pl_module.device),
            "gradients": _gradients(pl_module) if trainer.fit_loop._should_accumulate() else {},
            "sums": _sums(trainer),
            "metrics": {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()},
        }
        checkpoint[_KEY] = {
            "processes": _of_all_processes(own),
            "optimizers": self._optimizers,
            "looks": {type(look).__name__: look.left for look in _looks(pl_module)},
            **_due(trainer, checkpoint["loops"]["fit_loop"]),
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._found = checkpoint.get(_KEY) if trainer.state.fn == TrainerFn.FITTING else None
        self._optimizers = (checkpoint.get(_KEY) or {}).get("optimizers", [])

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        optimizers = described(trainer.optimizers)
        if self._optimizers:
            compare(self._optimizers, optimizers, type(pl_module).__name__)
        elif self._optimizers is None:
            self._optimizers = optimizers
        # A new epoch's iterator, which may draw, is made between this and `on_train_start`.
        if self._found and not self._found["within_epoch"] and (own := _of_this_process(trainer, self._found)):
            _set_generators(own["generators"], pl_module.device)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        found, self._found = self._found, None
        if not found:
            return
        own = _of_this_process(trainer, found) or {}
        trainer.callback_metrics.update({k: v.to(pl_module.device) for k, v in own.get("metrics", {}).items()})
        for look in _looks(pl_module):
            look.left = found["looks"].get(type(look).__name__, look.left)
        if found["within_epoch"]:
            _go_on_within_epoch(trainer, pl_module, own)
        else:
            # Where the training's length is given in steps, Lightning would take the next epoch for one that had begun.
            trainer.fit_loop.epoch_loop.restarting = False
        trainer.fit_loop._restarting = False  # it would leave out the schedulers that wait for the epoch's metrics
        _do_what_is_left(trainer, found)


def knows_optimizers(checkpoint: dict[str, Any]) -> bool:
    """Whether it tells what they were before the first step."""
    return bool(checkpoint.get(_KEY, {}).get("optimizers"))


def _go_on_within_epoch(trainer: L.Trainer, module: L.LightningModule, own: dict[str, Any]) -> None:
    loop = trainer.fit_loop
    # A module that asks for the number of steps has had the loaders made before Lightning could load their state.
    if loop._combined_loader_states_to_load:
        loop._load_combined_loader_states()
        iter(loop._data_fetcher)  # type: ignore[arg-type]
    _set_sums(trainer, own.get("sums", []), module.device)
    for name, parameter in module.named_parameters():
        if name in own.get("gradients", {}):
            parameter.grad = own["gradients"][name].to(parameter.device)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):  # it acts where an epoch begins
            callback.on_train_epoch_start(trainer)
    if own:
        _set_generators(own["generators"], module.device)


def _due(trainer: L.Trainer, loops: dict[str, Any]) -> dict[str, Any]:
    """Where the training stands, and what would have followed at once. `loops` is brought into a state for it.

    From a checkpoint of a batch's or an epoch's end, Lightning would leave out the validation and the end of the epoch
    that were to follow, where it takes them for done.
    """
    loop = trainer.fit_loop.epoch_loop
    epoch: Any = trainer.fit_loop.epoch_progress.current
    batch: Any = loop.batch_progress.current
    left: dict[str, Any] = {"within_epoch": epoch.started > epoch.processed, "row": None, "plateau": None}
    validation = loops["epoch_loop.val_loop.batch_progress"]
    for counted in (validation["total"], validation["current"]):
        counted.update(dict.fromkeys(counted, 0))
    if epoch.processed > epoch.completed:  # in `on_train_epoch_end`
        _complete(loops["epoch_progress"])
        left |= {"row": _row(trainer), "plateau": "epoch"}
    elif left["within_epoch"] and batch.processed > batch.completed:  # in `on_train_batch_end`
        last = loop._num_ready_batches_reached()
        if loop._should_check_val_fx(trainer.fit_loop._data_fetcher):  # type: ignore[arg-type]
            _complete(loops["epoch_loop.batch_progress"])
            validation["total"].update(ready=1, started=1)  # as if it had begun: it is then done from its start
        elif last and all(hasattr(loader, "load_state_dict") for loader in tree_leaves(trainer.train_dataloader)):
            _complete(loops["epoch_loop.batch_progress"])
            loops["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
        else:
            left["plateau"] = "step"
    return left


def _complete(progress: dict[str, Any]) -> None:
    for counted in (progress["total"], progress["current"]):
        counted["completed"] = counted["processed"]


def _row(trainer: L.Trainer) -> dict[str, Any] | None:
    """What is logged of an epoch after the checkpoint of its end has been written."""
    values = {name: float(value) for name, value in trainer._logger_connector.metrics["log"].items()}
    if not values:
        return None
    step = values.pop("step", trainer.fit_loop.epoch_loop._batches_that_stepped - 1)
    return {"values": {"epoch": trainer.current_epoch, **values}, "step": int(step)}


def _do_what_is_left(trainer: L.Trainer, found: dict[str, Any]) -> None:
    if row := found["row"]:
        trainer._logger_connector.log_metrics(row["values"], step=row["step"])
    if found["plateau"]:
        counted = trainer.fit_loop.epoch_progress.current
        counted.completed -= found["plateau"] == "epoch"  # it is of the epoch before
        trainer.fit_loop.epoch_loop.update_lr_schedulers(found["plateau"], update_plateau_schedulers=True)
        counted.completed += found["plateau"] == "epoch"


def _sums(trainer: L.Trainer) -> list[dict[str, Any]]:
    """Of what is logged once an epoch, up to now."""
    found = []
    for metric in trainer.fit_loop.epoch_loop._results.values():
        meta = metric.meta
        if metric.is_tensor and meta.on_epoch and not metric.has_reset and meta.sync._group is None:
            found.append(
                {name: getattr(meta, name) for name in _LOGGED_AS}
                | {"reduce_fx": meta.reduce_fx.__name__, "sync_dist": meta.sync.should}
                | {"rank_zero_only": meta.sync.rank_zero_only, "value": metric.value.detach().cpu()}
                | ({"samples": metric.cumulated_batch_size.cpu()} if meta.is_mean_reduction else {})
            )
    return found


def _set_sums(trainer: L.Trainer, sums: list[dict[str, Any]], device: torch.device) -> None:
    results = trainer.fit_loop.epoch_loop._results
    for kept in sums:
        how = {name: setting for name, setting in kept.items() if name not in ("value", "samples")}
        value = kept["value"].to(device)
        results.log(value=value, sync_dist_fn=trainer.strategy.reduce, batch_size=1, **how)
        metric = results[f"{kept['fx']}.{kept['name']}"]
        metric.value = value
        if "samples" in kept:
            metric.cumulated_batch_size = kept["samples"].to(device)
    trainer._logger_connector._first_loop_iter = True  # the next batch is not the epoch's first, which would reset them


def _looks(module: nn.Module) -> list[IgnoredTargets | ZeroGradients]:
    """At the first batches, which are not to come again."""
    return [value for value in vars(module).values() if isinstance(value, (IgnoredTargets, ZeroGradients))]


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.detach().cpu() for name, p in module.named_parameters() if p.grad is not None}


def _generators(device: torch.device) -> dict[str, Any]:
    """The states of the global random generators."""
    kind, keys, *rest = np.random.get_state()
    found = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "python": random.getstate(),
    }
    if device.type != "cpu":
        found[device.type] = torch.get_device_module(device).get_rng_state()
    return found


def _set_generators(states: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(states["torch"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    if device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type])


def _of_all_processes(own: dict[str, Any]) -> list[dict[str, Any]]:
    """Every process has its own; the first one writes them."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return [own]
    everyones: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyones, own)
    return everyones


def _of_this_process(trainer: L.Trainer, found: dict[str, Any]) -> dict[str, Any] | None:
    """None where there are other processes than there were."""
    everyones = found["processes"]
    return everyones[trainer.global_rank] if len(everyones) == trainer.world_size else None
