"""The training module of equilibrium propagation."""

import warnings
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import Tensor

from ep_plugin.lightning import spike_losses
from ep_plugin.lightning.batches import Batch
from ep_plugin.lightning.health import HealthMonitor
from ep_plugin.lightning.losses import Loss, named
from ep_plugin.lightning.task import Optimizer, Task, tensors
from ep_plugin.lightning.zero_gradients import ZeroGradients
from ep_plugin.linear.modules import FixedNormalization
from ep_plugin.network import ConvergentNetwork


def _settings(model: ConvergentNetwork) -> dict[str, Any]:
    """What the weights were made for, as plain data."""
    return {**model.settings.plain(), "steps": list(model.steps)}


def _differences(saved: dict[str, Any], model: ConvergentNetwork) -> list[str]:
    """How the network that a checkpoint is from infers otherwise than this one.

    The estimator has no part in that, and neither has how a free phase settles, if its steps are enough.
    A checkpoint of an earlier version may lack a setting, gives the feedback of every level, and has one number
    of steps.
    """
    here = _settings(model)
    found = [
        f"{name} was {saved[name]} and is {here[name]}"
        for name in ("encoder", "observe", "time_varying")
        if name in saved and saved[name] != here[name]
    ]
    own = model.settings.between(max(model.levels))
    theirs = saved.get("feedback", own)
    theirs = tuple(theirs) if isinstance(theirs, (list, tuple)) else (theirs,) * len(own)
    if [round(g, 9) for g in theirs] != [round(g, 9) for g in own]:
        found.append(f"feedback was {_shortest(theirs)} and is {_shortest(own)}")
    steps = saved.get("steps", here["steps"])
    steps = steps[0] if isinstance(steps, list) else steps
    if here["steps"][0] < steps:
        found.append(f"steps of the free phase were {steps} and are {here['steps'][0]}")
    return found


def _shortest(feedback: tuple[float, ...]) -> str:
    """One number where all are equal."""
    return f"{feedback[0]:g}" if len(set(feedback)) == 1 else str(list(feedback))


def can_infer(model: ConvergentNetwork) -> bool:
    """Whether the network runs in evaluation mode: the constants of fixed events are found in training first."""
    return model.event_weights is None or bool(model.event_weights.batches[0])


class EPLightningModule(Task):
    """Trains a convergent network by the gradient estimator that it carries.

    Optimization is automatic: the nudged phases run inside `loss.backward()`, so clipping, accumulation, schedulers and
    precision are Lightning's own. The module logs loss, spikes per neuron and inference, and the residual of the
    equilibrium, under train/, val/ and test/. It also logs accuracy if output and target allow it: `[B, classes]` or
    `[B, classes, ...]`, and whole numbers `[B]` or `[B, ...]`. With several validation or test sets Lightning's names
    are "val/loss/dataloader_idx_1" and so on; the first set's are also there without the number.

    Batches are `(x, y)`, where y is what the loss takes; `predict` takes `x` as well. If a loader gives something else,
    convert it to this in `on_before_batch_transfer`.

    Checkpoints: load them with `EPLightningModule.load_from_checkpoint(path, model=ep.convert(net))`. Give `loss`,
    `lr`, `optimizer`, `schedule` and `population` again if they were not the defaults (another loss or population is
    warned of; where a training goes on, other settings of the optimizer are too, and another type of optimizer or
    another schedule is refused), and give `convert` the same options as before. A checkpoint keeps the network's
    settings as plain data, and the number of steps of both phases. A model with another encoder or feedback, or with
    fewer steps, is another network on the same weights, and loading it warns.

    With `AdaptiveDelta(event_weight="fixed")` the trainer skips the sanity check before the training: events have no
    weight before the first training step.

    Args:
        model: input -> output, such as `[B, classes]`.
        loss: "cross_entropy", "mse" (against targets of the output's shape, or classes as one-hot ones), a callable of
            (output, target), or a loss of `snntorch.functional`: `ep_plugin.lightning.spike_losses` says what these
            are given.
        lr: learning rate of Adam, above 0.
        optimizer: a function from the parameters to an optimizer, instead of Adam; with a constant schedule also to
            anything else that Lightning's `configure_optimizers` may return.
        schedule: of the learning rate: "constant", or "cosine" (to zero at the training's last step).
        population: number of classes, if each class has a population of outputs, one class after the other:
            `[B, classes * size]`. Loss and accuracy see the populations' sums. snnTorch's losses with
            `population_code=True` set it themselves.
        health: warn if the training comes to nothing (`HealthMonitor`).

    Raises:
        ValueError: an unknown loss or schedule, an `lr` that is not above 0, or a loss that means nothing for an
            equilibrium. In a step: the loss is not a single number, or not differentiable.
        TypeError: `model` is not a `ConvergentNetwork`, the loss is a class, or `optimizer` is no function. In a
            step: the batch is not `(x, y)`.

    Example:
        >>> task = ep.EPLightningModule(model, loss="cross_entropy", lr=1e-3)
    """

    def __init__(
        self,
        model: ConvergentNetwork,
        loss: str | Loss = "cross_entropy",
        lr: float = 1e-3,
        optimizer: Optimizer | None = None,
        schedule: str = "constant",
        population: int | None = None,
        health: bool = True,
    ) -> None:
        super().__init__(loss, lr, optimizer, schedule, population)
        if not isinstance(model, ConvergentNetwork):
            raise TypeError(f"model is a {type(model).__name__}; expected a ConvergentNetwork: ep.convert(net)")
        self.model, self.health = model, health
        self.loss = spike_losses.on_equilibrium(self.loss)
        self._zero_gradients = ZeroGradients(named(self.loss))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def configure_callbacks(self) -> list[L.Callback]:
        given = any(isinstance(c, HealthMonitor) for c in self.trainer.callbacks)  # type: ignore[attr-defined]
        return super().configure_callbacks() + [HealthMonitor()] * (self.health and not given)

    def on_fit_start(self) -> None:
        """Refuses what would only fail at the end of the training."""
        super().on_fit_start()
        averaging = any(isinstance(c, StochasticWeightAveraging) for c in self.trainer.callbacks)  # type: ignore[attr-defined]
        if averaging and any(isinstance(m, FixedNormalization) for m in self.modules()):
            raise ValueError(
                "StochasticWeightAveraging sets the statistics of every batch normalization back and fills them from "
                "the batches, and those between neurons are fixed; expected Lightning's WeightAveraging in its place"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["ep_plugin"] = _settings(self.model)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if differing := _differences(checkpoint.get("ep_plugin", {}), self.model):
            warnings.warn(
                f"the checkpoint's network had other settings, so that its weights may do worse here: "
                f"{'; '.join(differing)}. Give ep.convert the same options if that is not meant",
                stacklevel=2,
            )

    def loss_of(self, seen: Any, y: Any) -> Tensor:
        try:
            return super().loss_of(seen, y)
        except (ValueError, RuntimeError, IndexError) as error:
            outputs, targets = (next((len(t) for t in tensors(tree) if t.dim()), None) for tree in (seen, y))
            if not self.model.time_varying or None in (outputs, targets) or outputs == targets:
                raise
            axes = "[T, B, ...]" if self.model.time_axis == 0 else f"time on axis {self.model.time_axis}"
            raise ValueError(
                f"there are {targets} targets, and the input has a batch of {outputs}: it is read as {axes} "
                f"(time_varying=True). For inputs without time convert the net with time_varying=False ({error})"
            ) from error

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with self._zero_gradients.watched(self.model.readout):
            return super().training_step(batch, batch_idx)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        super().backward(loss, *args, **kwargs)
        self._zero_gradients.judge(loss)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any] | None:
        if self.trainer.sanity_checking and not can_infer(self.model):
            return None
        return super().validation_step(batch, batch_idx, dataloader_idx)

    def outcome(self, x: Tensor) -> tuple[Any, Any, dict[str, Tensor]]:
        output, equilibrium = self.model(x, return_equilibrium=True)
        others = {"residual": equilibrium.residual.mean()}
        if equilibrium.spikes is not None:
            neurons = sum(s[0].numel() for s in equilibrium.states)
            others["spikes"] = equilibrium.spikes.sum(0).mean()
            others["spikes_per_neuron"] = others["spikes"] / neurons
        return output, output, others
