"""A callback that counts operations while a network trains."""

from typing import Any

import lightning as L
import torch

from ep_plugin.analysis.energy import EnergyCosts
from ep_plugin.analysis.operation_counts import OperationCounts
from ep_plugin.analysis.operations import count_operations
from ep_plugin.analysis.plain_operations import any_loss
from ep_plugin.estimators.implicit_differentiation import ImplicitDifferentiation
from ep_plugin.lightning.batches import pair
from ep_plugin.lightning.bptt_module import BPTTLightningModule
from ep_plugin.lightning.module import EPLightningModule, can_infer
from ep_plugin.validation import count

_LOGGED = ("spikes", "synaptic_operations", "multiply_adds", "dense")


class OperationsMonitor(L.Callback):
    """Counts the operations of an inference and a training step, once per epoch, on its first batch.

    Logs "operations/inference NAME" and "operations/training step NAME", means per sample, for spikes,
    synaptic_operations, multiply_adds, dense and energy (an estimate, in joules); see `count_operations`. (With
    `ImplicitDifferentiation`, which has no phases, both are those of an inference.) The training is not affected. With
    several processes the first one counts its own images.

    Args:
        costs: of one operation each, for the estimate; by default those of `EnergyCosts()`.
        every_n_epochs: 1 or more.

    Raises:
        ValueError: `every_n_epochs` is below 1. In fitting: the trainer has no logger.
        TypeError: `every_n_epochs` is not a whole number, or `costs` is not an `EnergyCosts`. In fitting: the module is
            neither an `EPLightningModule` nor a `BPTTLightningModule`.

    Example:
        >>> trainer = L.Trainer(callbacks=[ep.OperationsMonitor()])
    """

    def __init__(self, costs: EnergyCosts | None = None, every_n_epochs: int = 1) -> None:
        if costs is not None and not isinstance(costs, EnergyCosts):
            raise TypeError(f"costs is {costs!r}; expected EnergyCosts(...)")
        self.costs = costs
        self.every_n_epochs = count("every_n_epochs", every_n_epochs)
        self.counts: OperationCounts | None = None
        """The last count, layer by layer."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        name = type(self).__name__
        if not isinstance(pl_module, (EPLightningModule, BPTTLightningModule)):
            raise TypeError(
                f"{name} was given a {type(pl_module).__name__}; expected an EPLightningModule or BPTTLightningModule"
            )
        if not trainer.loggers:
            raise ValueError(f"{name} has no logger to write to; expected Trainer(logger=True), a logger or several")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx or trainer.current_epoch % self.every_n_epochs or not trainer.is_global_zero:
            return
        x, y = pair(batch)
        with torch.enable_grad():
            if isinstance(pl_module, BPTTLightningModule):
                # Its backward pass is dense, whatever the loss.
                self.counts = count_operations(pl_module.net, x, y, any_loss, pl_module.num_steps)
            elif isinstance(pl_module, EPLightningModule) and can_infer(pl_module.model):
                has_phases = not isinstance(pl_module.model.estimator, ImplicitDifferentiation)
                self.counts = count_operations(pl_module.model, x, y if has_phases else None, pl_module.loss_of)
            else:
                return
        found = {
            f"operations/{name} {field}": getattr(sums, field)
            for name, sums in (("inference", self.counts.inference), ("training step", self.counts.training))
            for field in _LOGGED
        }
        found |= {f"operations/{name} energy": joules for name, joules in self.counts.energy(self.costs).items()}
        for logger in trainer.loggers:
            logger.log_metrics(found, step=trainer.global_step)
