"""What both training modules share: automatic optimization, what a batch is and what is logged."""

import copy
import warnings
from collections.abc import Iterable, Sized
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ep_plugin.lightning import spike_losses
from ep_plugin.lightning.accuracy import accuracy, summed
from ep_plugin.lightning.batches import Batch, inputs, pair
from ep_plugin.lightning.emulated import SLOWER, bfloat16_slowdown
from ep_plugin.lightning.ignored_targets import IgnoredTargets
from ep_plugin.lightning.losses import Loss, as_loss, ignored_by, is_mean_of_targets, named
from ep_plugin.lightning.optimizers import Optimizer, as_optimizer
from ep_plugin.lightning.resuming import Resuming, knows_optimizers
from ep_plugin.unnoticed import random_numbers_as_before
from ep_plugin.validation import chosen, count, positive

_TASK = "ep_plugin_task"  # its place in a checkpoint
SCHEDULES = {"constant": "lr stays", "cosine": "lr falls to zero along a cosine, step by step"}


def tensors(tree: Any) -> list[Tensor]:
    """All tensors of an output: it may be several."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class _Logged(NamedTuple):
    """Means over so many samples."""

    values: dict[str, Tensor]
    samples: int


class Task(L.LightningModule):
    """What both modules share: automatic optimization, what a batch is and what is logged."""

    def __init__(
        self, loss: str | Loss, lr: float, optimizer: Optimizer | None, schedule: str, population: int | None
    ) -> None:
        super().__init__()
        self.loss, self.lr, self.optimizer = as_loss(loss), positive("lr", lr), as_optimizer(optimizer)
        spike_losses.check(self.loss)
        chosen("schedule", schedule, SCHEDULES)
        self.schedule = schedule
        self.population = spike_losses.populations(self.loss)
        population = None if population is None else count("population", population)
        if population is not None and self.population not in (None, population):
            raise ValueError(
                f"population is {population}, and the loss sums populations of {self.population} classes; leave "
                "population out, which is the loss's own"
            )
        self._ignored_targets = IgnoredTargets(named(self.loss))
        self._sums = population is not None and self.population is None
        self.population = self.population or population

    def outcome(self, x: Tensor) -> tuple[Any, Any, dict[str, Tensor]]:
        """What the loss sees, the output [B, ...], and what else is logged."""
        raise NotImplementedError

    def loss_of(self, seen: Any, y: Any) -> Tensor:
        """The loss of what it sees: an equilibrium's output, or a record.

        Raises:
            ValueError: it is no single number, or has no gradient.
        """
        loss = self.loss(summed(seen, self.population) if self._sums and self.population else seen, y)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"values of shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise ValueError(f'the loss {named(self.loss)} gave {got}; expected a single number: reduction="mean"')
        if not loss.requires_grad and any(t.requires_grad for t in tensors(seen)):
            raise ValueError(
                f"the loss {named(self.loss)} has no gradient: nothing in it is differentiable in the output (argmax, "
                'round, comparisons, detach and numpy are not); use one that is, such as "cross_entropy"'
            )
        return loss

    def _step(self, batch: Batch, stage: str) -> tuple[Tensor, list[_Logged]]:
        x, y = pair(batch)
        seen, output, others = self.outcome(x)
        loss = self.loss_of(seen, y)
        if stage == "train" and self._ignored_targets.left:
            self._look_at_targets(seen, y, loss.detach())
        # An input that changes over time has its time first, so the batch is counted in the output.
        samples = len(tensors(output)[0])
        classified = summed(output, self.population) if self.population else output
        share = accuracy(classified, y, ignored_by(self.loss))
        counted = share[1] if share and is_mean_of_targets(self.loss) else samples
        found = [_Logged({"loss": loss.detach()}, counted), _Logged(others, samples)]
        if share:
            found.append(_Logged({"accuracy": share[0]}, share[1]))
        self._log(stage, found)
        return loss, found

    def _look_at_targets(self, seen: Any, y: Any, loss: Tensor) -> None:
        """With a copy of the loss, and random numbers that are given back: a loss may count, keep centres or draw."""
        own = self.loss
        try:
            self.loss = copy.deepcopy(own)
        except (TypeError, RuntimeError):  # it holds what cannot be copied, so it is not tried
            return
        try:
            with random_numbers_as_before(self.device):
                self._ignored_targets.look(self.loss_of, seen, y, loss)
        finally:
            self.loss = own

    def _log(self, stage: str, found: Iterable[_Logged], **options: Any) -> None:
        for values, samples in found:
            self.log_dict(
                {f"{stage}/{k}": v for k, v in values.items()},
                on_step=False,
                on_epoch=True,
                batch_size=float(samples),  # type: ignore[arg-type]  # of whole numbers it cuts the processes' mean off
                prog_bar=False,
                sync_dist=True,  # several processes: over all their images, once an epoch
                **options,
            )

    def _log_plainly(self, stage: str, sets: Sized, outputs: Any, dataloader_idx: int) -> None:
        """Of several sets Lightning adds each one's number to its names. Callbacks that watch "val/loss" see the
        first."""
        if len(sets) > 1 and dataloader_idx == 0 and outputs:
            self._log(stage, outputs["logged"], add_dataloader_idx=False)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._step(batch, "train")[0]

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any] | None:
        return {"logged": self._step(batch, "val")[1]}

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any] | None:
        return {"logged": self._step(batch, "test")[1]}

    def on_validation_batch_end(self, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._log_plainly("val", self.trainer.num_val_batches, outputs, dataloader_idx)

    def on_test_batch_end(self, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._log_plainly("test", self.trainer.num_test_batches, outputs, dataloader_idx)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self(inputs(batch))

    def configure_callbacks(self) -> list[L.Callback]:
        """What a training needs to go on from a checkpoint bit by bit; a subclass adds its own to `super()`'s."""
        return [] if any(isinstance(c, Resuming) for c in self.trainer.callbacks) else [Resuming()]  # type: ignore[attr-defined]

    def on_fit_start(self) -> None:
        mixed = self.trainer.precision == "bf16-mixed" and self.device.type == "cpu"
        if mixed and self.trainer.is_global_zero and (slower := bfloat16_slowdown()) > SLOWER:
            warnings.warn(
                f'precision="bf16-mixed": this processor only emulates bfloat16, and a convolution takes {slower:.0f} '
                'times as long as in float32; use precision="32-true" (--trainer.precision 32-true)',
                stacklevel=1,
            )

    def _told(self) -> dict[str, Any]:
        """What this task was given beside the network, as plain data."""
        return {"loss": named(self.loss), "lr": self.lr, "schedule": self.schedule, "population": self.population}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[_TASK] = self._told()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        here, there = self._told(), checkpoint.get(_TASK, {})
        if self._trainer is None or self._trainer.state.fn != "fit":  # no rate has a part in an evaluation
            here = {name: here[name] for name in ("loss", "population")}
        else:
            self._require_same_schedule(there.get("schedule", self.schedule))
            if self._has_own_optimizer() or knows_optimizers(checkpoint):  # with which the rate is compared
                del here["lr"]
        saved = {name: value for name, value in there.items() if name in here}
        if changed := [f"{name} was {v!r} and is {here[name]!r}" for name, v in saved.items() if v != here[name]]:
            kept = ". (A training that goes on keeps the checkpoint's learning rate)" if "lr" in here else ""
            warnings.warn(
                f"the checkpoint's task had other settings: {'; '.join(changed)}. Give {type(self).__name__} the same "
                f"if that is not meant{kept}",
                stacklevel=2,
            )

    def _require_same_schedule(self, saved: str) -> None:
        """A rate that has come down stays down, and a cosine that begins late does not end at zero."""
        if saved != self.schedule:
            raise ValueError(
                f'schedule is "{self.schedule}", and the checkpoint\'s is "{saved}"; a training cannot change it '
                f'on the way. Give schedule="{saved}"; or begin a new training of its weights: '
                f"{type(self).__name__}.load_from_checkpoint(...)"
            )

    def _has_own_optimizer(self) -> bool:
        """Whether one is given here, or by the command line's --optimizer, which replaces the method."""
        return self.optimizer is not None or "configure_optimizers" in vars(self)

    def on_train_start(self) -> None:
        """Refuses a cosine that a checkpoint has brought along and that does not end where this training does."""
        if self.schedule == "constant":
            return
        schedulers = self.lr_schedulers()
        steps = int(self.trainer.estimated_stepping_batches)
        for own in schedulers if isinstance(schedulers, list) else [schedulers]:
            if isinstance(own, torch.optim.lr_scheduler.CosineAnnealingLR) and own.T_max != steps:
                raise ValueError(
                    f'schedule="cosine": the checkpoint\'s ends after {own.T_max} steps, and this training has '
                    f"{steps}, so that its learning rate would rise again, or not come down. Go on with as many epochs "
                    "and batches as before; or begin a new training of its weights: "
                    f"{type(self).__name__}.load_from_checkpoint(...)"
                )

    def configure_optimizers(self) -> Any:
        # Adam's own eps is zero in float16 (`precision="16-true"`), and so are the squares of most gradients.
        half = any(p.dtype == torch.float16 for p in self.parameters())
        optimizer: Any = torch.optim.Adam(self.parameters(), self.lr, eps=1e-4 if half else 1e-8)
        if self.optimizer is not None:
            optimizer = self.optimizer(self.parameters())
        if self.schedule == "constant":
            return optimizer
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f'schedule="{self.schedule}": optimizer returned a {type(optimizer).__name__}; expected an optimizer '
                'alone, or schedule="constant" beside one that brings its own schedule'
            )
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError(
                'schedule="cosine" falls to zero at the end of the training, and this one has no end that is known; '
                'expected Trainer(max_epochs=...) or Trainer(max_steps=...), or schedule="constant"'
            )
        steps = int(steps)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": "step"}}
