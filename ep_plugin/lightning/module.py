"""Training modules: equilibrium propagation, and snnTorch's backpropagation through time."""

import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import lightning as L
import snntorch as snn
import torch
from torch import Tensor, nn

from ep_plugin.checks import chosen, count, positive
from ep_plugin.lightning.losses import Loss, as_loss, wants_time
from ep_plugin.network import ConvergentNetwork

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
    return {
        "encoder": repr(model.encoder),
        "observe": model.observe,
        "feedback": [round(float(g), 9) for g in model.feedback],
        "steps": model.relaxation.steps,
    }


class EPLightningModule(_Classifier):
    """Trains a convergent network by the gradient estimator that it carries.

    Automatic optimization: the nudged phases run inside `loss.backward()`, so clipping,
    accumulation, schedulers and precision are Lightning's own. Logs loss, accuracy, spikes a neuron
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
    it had. A checkpoint keeps the encoder, what is observed, the feedback and the number of steps: a
    model with another encoder or feedback, or with fewer steps, is another network on the same
    weights, and loading it warns.

    Raises:
        ValueError, TypeError: an unknown loss or schedule, an `lr` that is not above 0, no ConvergentNetwork.
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
        here = _settings(self.model)
        saved = checkpoint.get("ep_plugin", here)
        differing = [k for k, v in here.items() if (v < saved[k] if k == "steps" else v != saved[k])]
        if differing:
            told = "; ".join(f"{k} was {saved[k]} and is {here[k]}" for k in differing)
            warnings.warn(
                f"the checkpoint's network had other settings, so that its weights may do worse here: {told}. "
                "Give ep.convert the same options if that is not meant",
                stacklevel=2,
            )

    def outcome(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        output, equilibrium = self.model.infer(x)
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
        loss, lr, optimizer, schedule: as in `EPLightningModule`.

    Raises:
        ValueError, TypeError: a setting out of its range, or a neuron without `init_hidden=True`.
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
