"""Training modules: equilibrium propagation, and snnTorch's backpropagation through time."""

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence, Sized
from contextlib import ExitStack
from typing import Any, NamedTuple

import lightning as L
import snntorch as snn
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ep_plugin.lightning import spike_losses
from ep_plugin.lightning.accuracy import accuracy, ignored_by, summed
from ep_plugin.lightning.batches import Batch, inputs, pair
from ep_plugin.lightning.emulated import SLOWER, bfloat16_slowdown
from ep_plugin.lightning.health import HealthMonitor
from ep_plugin.lightning.ignored_targets import IgnoredTargets
from ep_plugin.lightning.losses import Loss, as_loss, named
from ep_plugin.lightning.resuming import Resuming
from ep_plugin.lightning.zero_gradients import ZeroGradients
from ep_plugin.linear.modules import FixedNormalization
from ep_plugin.network import ConvergentNetwork
from ep_plugin.validation import chosen, count, positive

Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

_TASK = "ep_plugin_task"  # its place in a checkpoint
_LOOP = 3  # calls of every neuron; two may be layers that share one
SCHEDULES = {"constant": "lr stays", "cosine": "lr falls to zero along a cosine, step by step"}


class _Logged(NamedTuple):
    """Means over so many samples."""

    values: dict[str, Tensor]
    samples: int


class _Task(L.LightningModule):
    """What both modules share: automatic optimization, what a batch is and what is logged."""

    def __init__(
        self, loss: str | Loss, lr: float, optimizer: Optimizer | None, schedule: str, population: int | None
    ) -> None:
        super().__init__()
        self.loss, self.lr, self.optimizer = as_loss(loss), positive("lr", lr), optimizer
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
        if not loss.requires_grad and any(t.requires_grad for t in _tensors(seen)):
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
        found = [_Logged({"loss": loss.detach(), **others}, len(_tensors(output)[0]))]
        classified = summed(output, self.population) if self.population else output
        if share := accuracy(classified, y, ignored_by(self.loss)):
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
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                self._ignored_targets.look(self.loss_of, seen, y, loss)
        finally:
            self.loss = own

    def _log(self, stage: str, found: Iterable[_Logged], **options: Any) -> None:
        for values, samples in found:
            self.log_dict(
                {f"{stage}/{k}": v for k, v in values.items()},
                on_step=False,
                on_epoch=True,
                batch_size=samples,
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
        here = self._told()
        if self._trainer is None or self._trainer.state.fn != "fit":  # no rate has a part in an evaluation
            here = {name: here[name] for name in ("loss", "population")}
        saved = {name: value for name, value in checkpoint.get(_TASK, {}).items() if name in here}
        if changed := [f"{name} was {v!r} and is {here[name]!r}" for name, v in saved.items() if v != here[name]]:
            warnings.warn(
                f"the checkpoint's task had other settings: {'; '.join(changed)}. Give {type(self).__name__} the same "
                "if that is not meant. (A training that goes on keeps the checkpoint's learning rate in any case)",
                stacklevel=2,
            )

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
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError(
                'schedule="cosine" falls to zero at the end of the training, and this one has no end that is known; '
                'expected Trainer(max_epochs=...) or Trainer(max_steps=...), or schedule="constant"'
            )
        steps = int(steps)
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


class EPLightningModule(_Task):
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
    warned of, and so is another rate or schedule where a training goes on), and give `convert` the same options as
    before. A checkpoint keeps the network's settings as plain data, and the number of steps of both phases. A model
    with another encoder or feedback, or with fewer steps, is another network on the same weights, and loading it warns.

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
        TypeError: `model` is not a `ConvergentNetwork`, or the loss is a class. In a step: the batch is not `(x, y)`.

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


def _tensors(tree: Any) -> list[Tensor]:
    """All tensors of an output: it may be several."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class BPTTLightningModule(_Task):
    """Trains an unchanged snnTorch model by surrogate-gradient backpropagation through time.

    The same input is shown at every step; an input that changes over time is shown frame by frame. The output is the
    mean over time of what the last module returns (spikes, or a final linear module's value).

    Args:
        net: a model whose neurons hold their state (`init_hidden=True`).
        num_steps: time steps, 1 or more.
        loss: as in `EPLightningModule`.
        lr: as in `EPLightningModule`.
        optimizer: as in `EPLightningModule`.
        schedule: as in `EPLightningModule`.
        population: as in `EPLightningModule`.
        time_varying: inputs are `[T, B, ...]`; each frame is shown for `num_steps / T` steps.

    Raises:
        ValueError: a setting is out of its range, or a neuron lacks `init_hidden=True`. In a step: `num_steps` is not a
            multiple of the number of frames.
        TypeError: `num_steps` is not a whole number.

    Example:
        >>> task = ep.BPTTLightningModule(net, num_steps=25)
    """

    def __init__(
        self,
        net: nn.Module,
        num_steps: int = 25,
        loss: str | Loss = "cross_entropy",
        lr: float = 1e-3,
        optimizer: Optimizer | None = None,
        schedule: str = "constant",
        population: int | None = None,
        time_varying: bool = False,
    ) -> None:
        super().__init__(loss, lr, optimizer, schedule, population)
        self.net, self.num_steps, self.time_varying = net, count("num_steps", num_steps), time_varying
        for parameter in net.parameters():
            if parameter.dim() == 4:  # the faster layout for convolutions; `contiguous` would skip one input channel
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
        self.neurons = [m for m in net.modules() if isinstance(m, snn.SpikingNeuron)]
        for neuron in self.neurons:
            if not neuron.init_hidden:
                raise ValueError(f"a {type(neuron).__name__} neuron does not hold its state; expected init_hidden=True")
        self._loop_looked_for = self.num_steps == 1

    def forward(self, x: Tensor) -> Tensor:
        return self.outcome(x)[1]

    def outcome(self, x: Tensor) -> tuple[Any, Any, dict[str, Tensor]]:
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
            first, *others = self._shown(x)
            outputs = [self._first(first), *(self.net(shown) for shown in others)]
        self._rest()  # no state, and no graph, outlives the batch
        record = torch.stack([o[0] if isinstance(o, tuple) else o for o in outputs])
        mean = record.mean(0)
        seen = mean
        if spike_losses.wants_time(self.loss):
            spike_losses.require_classes(self.loss, mean)
            seen = record
        if not counts:
            return seen, mean, {}
        spikes = torch.stack(counts).sum()
        return seen, mean, {"spikes": spikes, "spikes_per_neuron": spikes / sum(sizes.values())}

    def _first(self, x: Tensor) -> Any:
        """The net's first step ever; warns where that is a loop over time already."""
        if self._loop_looked_for:
            return self.net(x)
        self._loop_looked_for, calls = True, [0] * len(self.neurons)

        def count_call(place: int) -> Callable[..., None]:
            def called(*_: Any) -> None:
                calls[place] += 1

            return called

        with ExitStack() as hooks:
            for place, neuron in enumerate(self.neurons):
                hooks.callback(neuron.register_forward_hook(count_call(place)).remove)
            output = self.net(x)
        if calls and calls == [calls[0]] * len(calls) and calls[0] >= _LOOP:
            warnings.warn(
                f"the net runs each of its neurons {calls[0]} times in one call, and num_steps={self.num_steps} calls "
                f"it {self.num_steps} times: {calls[0] * self.num_steps} steps in all. If its forward has a loop over "
                "time, take the loop out, or give num_steps=1",
                stacklevel=2,
            )
        return output

    def _shown(self, x: Tensor) -> Sequence[Tensor]:
        """The input of every step."""
        if not self.time_varying:
            return [x] * self.num_steps
        if x.dim() < 2 or len(x) == 0 or self.num_steps % len(x):
            raise ValueError(
                f"num_steps is {self.num_steps}, and the input has the shape {list(x.shape)}: [frames, batch, ...]; "
                "expected one or more steps for each frame, such as num_steps=frames"
            )
        return [frame for frame in x for _ in range(self.num_steps // len(x))]

    def _rest(self) -> None:
        # snntorch.utils.reset would reset every neuron in the process; these are this net's own.
        for neuron in self.neurons:
            neuron.reset_mem()
            neuron.mem = neuron.mem.new_zeros(0)
