"""Training modules: equilibrium propagation, and snnTorch's backpropagation through time."""

import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import lightning as L
import snntorch as snn
import torch
from torch import Tensor, nn

from ep_plugin.lightning.losses import Loss, as_loss, wants_time
from ep_plugin.network import ConvergentNetwork
from ep_plugin.validation import chosen, count, positive

Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Batch = tuple[Tensor, Tensor]

SCHEDULES = {"constant": "lr stays", "cosine": "lr falls to zero along a cosine, step by step"}


class _Classifier(L.LightningModule):
    """What both modules share: automatic optimization and what is logged."""

    def __init__(self, loss: str | Loss, lr: float, optimizer: Optimizer | None, schedule: str) -> None:
        super().__init__()
        self.loss, self.lr, self.optimizer = as_loss(loss), positive("lr", lr), optimizer
        chosen("schedule", schedule, SCHEDULES)
        self.schedule = schedule

    def outcome(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Record [T, B, classes], its mean over time [B, classes], and what else is logged."""
        raise NotImplementedError

    def _step(self, batch: Batch, stage: str) -> Tensor:
        x, y = batch
        record, output, others = self.outcome(x)
        loss = self.loss(record if wants_time(self.loss) else output, y)
        logged = {"loss": loss.detach(), "accuracy": (output.argmax(-1) == y).float().mean(), **others}
        self.log_dict(
            {f"{stage}/{k}": v for k, v in logged.items()},
            on_step=False,
            on_epoch=True,
            batch_size=len(y),  # an input that changes over time has its time first
            prog_bar=False,
            sync_dist=True,  # several processes: over all their images, once an epoch
        )
        return loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "test")

    def configure_optimizers(self) -> Any:
        optimizer: Any = torch.optim.Adam(self.parameters(), self.lr)
        if self.optimizer is not None:
            optimizer = self.optimizer(self.parameters())
        if self.schedule == "constant":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": "step"}}


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


class EPLightningModule(_Classifier):
    """Trains a convergent network by the gradient estimator that it carries.

    Automatic optimization: the nudged phases run inside `loss.backward()`, so clipping,
    accumulation, schedulers and precision are Lightning's own. Logs loss, accuracy, spikes per neuron
    and inference, and the residual of the equilibrium, under train/, val/ and test/.

    Args:
        model: input -> `[B, classes]`.
        loss: "cross_entropy", "mse" (against one-hot targets), a callable of (output, target), or a
            loss of `snntorch.functional`.
        lr: learning rate of Adam, above 0.
        optimizer: from the parameters to an optimizer, in place of Adam; with a constant schedule
            also to whatever else Lightning's `configure_optimizers` may return.
        schedule: of the learning rate: "constant", or "cosine" (to zero at the training's last step).

    Checkpoints: `EPLightningModule.load_from_checkpoint(path, model=ep.convert(net))`; give
    `loss`, `lr` and `optimizer` again if they were not the defaults, and `convert` the options that
    it had. A checkpoint keeps the network's settings as plain data, and the number of steps of both
    phases. A model with another encoder or feedback, or with fewer steps, is another network on the
    same weights, and loading it warns.

    With `AdaptiveDelta(event_weight="fixed")` the trainer's sanity check before the training is skipped:
    events have no weight before the first training step.

    Raises:
        ValueError: an unknown loss or schedule, or an `lr` that is not above 0.
        TypeError: `model` is no `ConvergentNetwork`.

    Example:
        >>> task = EPLightningModule(convert(net), loss="cross_entropy", lr=1e-3)
    """

    def __init__(
        self,
        model: ConvergentNetwork,
        loss: str | Loss = "cross_entropy",
        lr: float = 1e-3,
        optimizer: Optimizer | None = None,
        schedule: str = "constant",
    ) -> None:
        super().__init__(loss, lr, optimizer, schedule)
        if not isinstance(model, ConvergentNetwork):
            raise TypeError(f"model is a {type(model).__name__}; expected a ConvergentNetwork: ep.convert(net)")
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ep_plugin"] = _settings(self.model)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if differing := _differences(checkpoint.get("ep_plugin", {}), self.model):
            warnings.warn(
                f"the checkpoint's network had other settings, so that its weights may do worse here: "
                f"{'; '.join(differing)}. Give ep.convert the same options if that is not meant",
                stacklevel=2,
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if not self.trainer.sanity_checking or can_infer(self.model):
            super().validation_step(batch, batch_idx)

    def outcome(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        output, equilibrium = self.model(x, return_equilibrium=True)
        others = {"residual": equilibrium.residual.mean()}
        if equilibrium.spikes is not None:
            neurons = sum(s[0].numel() for s in equilibrium.states)
            others["spikes"] = equilibrium.spikes.sum(0).mean()
            others["spikes_per_neuron"] = others["spikes"] / neurons
        return output.unsqueeze(0), output, others


class BPTTLightningModule(_Classifier):
    """Trains an untouched snnTorch model by surrogate-gradient backpropagation through time.

    The same input is shown at every step; the output is the mean over time of what the last module
    gives (spikes, or a final linear module's value).

    Args:
        net: a model whose neurons hold their state (`init_hidden=True`).
        num_steps: time steps, 1 or more.
        loss: as in `EPLightningModule`.
        lr: as in `EPLightningModule`.
        optimizer: as in `EPLightningModule`.
        schedule: as in `EPLightningModule`.

    Raises:
        ValueError: a setting is out of its range, or a neuron lacks `init_hidden=True`.
        TypeError: `num_steps` is no whole number.

    Example:
        >>> task = BPTTLightningModule(net, num_steps=25)
    """

    def __init__(
        self,
        net: nn.Module,
        num_steps: int = 25,
        loss: str | Loss = "cross_entropy",
        lr: float = 1e-3,
        optimizer: Optimizer | None = None,
        schedule: str = "constant",
    ) -> None:
        super().__init__(loss, lr, optimizer, schedule)
        self.net, self.num_steps = net, count("num_steps", num_steps)
        for parameter in net.parameters():
            if parameter.dim() == 4:  # the faster layout for convolutions; `contiguous` would skip one input channel
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
        self.neurons = [m for m in net.modules() if isinstance(m, snn.SpikingNeuron)]
        for neuron in self.neurons:
            if not neuron.init_hidden:
                raise ValueError(f"a {type(neuron).__name__} neuron does not hold its state; expected init_hidden=True")

    def forward(self, x: Tensor) -> Tensor:
        return self.outcome(x)[1]

    def outcome(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        self._rest()
        counts: list[Tensor] = []
        sizes: dict[int, int] = {}

        def see(neuron: nn.Module, _: Any, spikes: Tensor | tuple[Tensor, Tensor]) -> None:
            spikes = spikes[0] if isinstance(spikes, tuple) else spikes
            counts.append(spikes.detach().sum() / len(spikes))
            sizes[id(neuron)] = spikes[0].numel()

        with ExitStack() as hooks:
            if not self.training:  # counting would slow the training down
                for neuron in self.neurons:
                    hooks.callback(neuron.register_forward_hook(see).remove)
            outputs = [self.net(x) for _ in range(self.num_steps)]
        self._rest()  # no state, and no graph, outlives the batch
        record = torch.stack([o[0] if isinstance(o, tuple) else o for o in outputs])
        if not counts:
            return record, record.mean(0), {}
        spikes = torch.stack(counts).sum()
        return record, record.mean(0), {"spikes": spikes, "spikes_per_neuron": spikes / sum(sizes.values())}

    def _rest(self) -> None:
        # snntorch.utils.reset would reset every neuron in the process; these are this net's own.
        for neuron in self.neurons:
            neuron.reset_mem()
            neuron.mem = neuron.mem.new_zeros(0)
