"""Warnings for a training that comes to nothing: what has gone wrong, where, and what to do."""

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from ep_plugin.analysis.liveness import LIVE, OUTPUTS, live_and_mean
from ep_plugin.conversion.origin import parameter_names
from ep_plugin.dynamics.relaxation import Equilibrium
from ep_plugin.lightning.losses import LOSSES, are_classes
from ep_plugin.network import ConvergentNetwork
from ep_plugin.validation import count

# Where it warns: between what is seen in the trainings of `tests/lightning/trainings.py` that learn and in those that
# do not.
_RESIDUAL = 0.2  # mean over the samples
_NOISE = 3.0  # times the first residual, with spikes whose mean tells a state
_GROWTH = 10.0  # times the size at the start,
_DRIVE = 30.0  # and so large a weight times the square root of its inputs
_SILENT, _SATURATED = 1e-3, 0.9  # mean state of a layer, of 1
_ABOVE = 2.0  # times the cross entropy of chance
_ABOVE_FIRST = 10.0  # times another loss in the first batch, which may be that of a net that was trained before
_FALLING = 0.7  # of the mean loss before: one that falls by so much is on its way. Of that of chance: it learns

_FIRST = 8  # the first batch that is told of: what a large first step has thrown off may come back
_STEP = 0.03  # an Adam step moves every weight by about the learning rate; so much of a weight's size is a good one
_STRONG = 0.1  # feedback, of which 0.02 is the default

_ANEW = "Load them from another checkpoint, or make the model anew"
_TARGETS = "look at the targets, at a loss that can divide by zero, and at outputs that overflow"


@dataclass(frozen=True)
class _Look:
    """What was seen in a batch.

    Attributes:
        batch: its number.
        residual: of the free phase; None where the training step shows no equilibrium.
        layers: of every layer the share of live neurons, and the mean state.
        sizes: root mean square of every trained weight.
        loss: the mean since the look before; None where the training step returns none.
    """

    batch: int
    residual: float | None
    layers: list[tuple[float, float]]
    sizes: dict[str, float]
    loss: float | None


@dataclass(frozen=True)
class _Chance:
    """The loss of a net that has learned nothing: at first, at least, and at most, and what that comes from."""

    first: float
    least: float
    most: float
    words: str


@dataclass(frozen=True)
class _Sign:
    """Of what is wrong: what it is about, a line that tells it, and what to do if the learning rate is not to blame."""

    about: str
    told: str
    way_out: str


class HealthMonitor(L.Callback):
    """Warns if something keeps a network from learning, once for each cause.

    - The states no longer settle: gradients mean little.
    - A weight has grown without bound, or is not finite, before the first step or later.
    - A layer is silent or saturated, or all its neurons are at their bounds, where no gradient passes.
    - The training loss stays far above the loss of chance: log(classes) for a cross entropy, else the first batch's.
    - The loss of a validation or a test, with or without a training, is not finite.

    It looks at what the training step computes anyway, at batches 0, 1, 2, 4 and so on, and then at every n-th. It
    warns of what it sees in two looks, one after the other. It computes nothing twice and draws no random number. With
    several processes the first one looks at its own images.

    `EPLightningModule` adds one by itself; `EPLightningModule(model, health=False)` does not. One among the trainer's
    callbacks takes its place.

    Args:
        every_n_batches: 1 or more.

    Raises:
        ValueError: `every_n_batches` is below 1.
        TypeError: `every_n_batches` is not a whole number. In fitting: the module's `model` is not a
            `ConvergentNetwork`.

    Example:
        >>> trainer = L.Trainer(callbacks=[ep.HealthMonitor(every_n_batches=10)])
    """

    def __init__(self, every_n_batches: int = 50) -> None:
        self.every_n_batches = count("every_n_batches", every_n_batches)
        self._hook: Any = None
        self._forget()

    def _forget(self) -> None:
        self._names: dict[int, str] = {}
        self._batches = 0
        self._lost_at_start = False
        self._told_of_losses = set[str]()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._forget()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        model = getattr(pl_module, "model", None)
        if not isinstance(model, ConvergentNetwork):
            raise TypeError(f"HealthMonitor was given a {type(pl_module).__name__}; expected an EPLightningModule")
        self._names = parameter_names(model)
        self._batches, self._told, self._before = 0, set[str](), set[str]()
        self._warn_of_lost_weights(trainer, pl_module)
        self._start = self._sizes(model)
        self._at_start: set[str] | None = None  # what was wrong before the first step
        self._seen: tuple[Any, Equilibrium] | None = None
        self._sum: Tensor | None = None
        self._summed = 0
        self._chance: _Chance | None = None
        self._classes = False  # each neuron of the last layer is one
        self._first_residual: float | None = None
        self._last_loss = math.inf

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        n, every = self._batches, self.every_n_batches
        early = n < every and n & (n - 1) == 0  # 0 and the powers of two
        if trainer.is_global_zero and (early or n % every == 0):
            self._hook = pl_module.model.register_forward_hook(self._see)  # type: ignore[union-attr]

    def _see(self, model: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, tuple) and isinstance(output[-1], Equilibrium):
            self._seen = output

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            # Lightning gives each batch's part of an accumulated step. The sum stays on the device, so that none waits.
            loss = loss.detach().float().mean() * trainer.accumulate_grad_batches
            self._sum, self._summed = loss if self._sum is None else self._sum + loss, self._summed + 1
        if self._hook is not None:
            self._release()
            self._judge(trainer, pl_module, batch)
        self._batches += 1

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._release()
        # Its message names layers, and not parameters. Outside a training it stands for itself.
        if isinstance(exception, FloatingPointError) and trainer.state.fn == TrainerFn.FITTING:
            self._warn_of_lost_weights(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._warn_of_lost_weights(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:  # the training itself tells of what is wrong before it
            self._warn_of_lost_loss(trainer, pl_module, "val", "validation")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._warn_of_lost_loss(trainer, pl_module, "test", "test")

    def _warn_of_lost_weights(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        lost = self._lost(module)
        if not lost or self._lost_at_start:
            return
        if self._batches == 0:  # the sanity check comes before `on_train_start`
            self._lost_at_start = True
            told = f"weights are not finite before the first step: {lost}. {_ANEW}"
        else:
            rate = _rate(trainer)
            lower = "Lower the learning rate" + ("" if rate is None else f", lr={rate:g}")
            told = f"batch {self._batches}: weights are no longer finite: {lost}. {lower}, or clip the gradients"
        warnings.warn(told, stacklevel=1)

    def _warn_of_lost_loss(self, trainer: L.Trainer, module: L.LightningModule, stage: str, words: str) -> None:
        found = [float(v) for name, v in trainer.callback_metrics.items() if name.startswith(f"{stage}/loss")]
        bad = next((loss for loss in found if not math.isfinite(loss)), None)
        if bad is None or stage in self._told_of_losses:
            return
        self._told_of_losses.add(stage)
        why = f"weights are not finite: {lost}. {_ANEW}" if (lost := self._lost(module)) else _TARGETS
        warnings.warn(f"the {words} loss is {bad}, so that the accuracy beside it means nothing: {why}", stacklevel=1)

    def _lost(self, module: L.LightningModule) -> str:
        """The names of the weights that are not finite."""
        if not self._names and isinstance(model := getattr(module, "model", None), ConvergentNetwork):
            self._names = parameter_names(model)
        return ", ".join(self._name(p) for p in module.parameters() if not bool(p.isfinite().all()))

    def _release(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = None

    def _judge(self, trainer: L.Trainer, module: Any, batch: Any) -> None:
        look = self._look(module.model)
        if self._chance is None and look.loss is not None:
            output = self._seen[0] if self._seen else None
            self._chance = _chance(module, output, look.loss)
            bare = module.population is None and not list(module.model.readout.parameters())
            self._classes = bare and isinstance(batch, (tuple, list)) and are_classes(batch[-1], output)
        if self._first_residual is None:
            self._first_residual = look.residual
        signs = list(self._signs(look, module.model))
        found = {sign.about for sign in signs}
        if self._at_start is None:
            self._at_start = found - {"weights"}  # which a first step has moved already
        for sign in signs:
            if sign.about in self._before and sign.about not in self._told and look.batch >= _FIRST:
                self._told.add(sign.about)
                # No step has done what was there before the first, and a strong feedback keeps any weights unsettled.
                strong = sign.about == "settling" and _feedback(module.model) > _STRONG
                lower = None if strong or sign.about in self._at_start else self._lower_rate(trainer, look)
                warnings.warn(f"batch {look.batch}: {sign.told}. {lower or sign.way_out}", stacklevel=1)
        self._before = found
        self._last_loss = math.inf if look.loss is None else look.loss
        self._seen = None

    @torch.no_grad()
    def _look(self, model: ConvergentNetwork) -> _Look:
        values: list[Tensor] = []
        if self._sum is not None:
            values.append(self._sum / self._summed)
        if self._seen is not None:
            equilibrium = self._seen[1]
            values.append(equilibrium.residual.mean())
            for layer, state in zip(model._layers(), equilibrium.states, strict=True):
                values += live_and_mean(state, layer.activation)
        numbers = torch.stack([v.float() for v in values]).tolist() if values else []  # the one wait for the device
        loss = None if self._sum is None else numbers.pop(0)
        residual = None if self._seen is None else numbers.pop(0)
        self._sum, self._summed = None, 0
        layers = list(zip(numbers[::2], numbers[1::2], strict=True))
        return _Look(self._batches, residual, layers, self._sizes(model), loss)

    @torch.no_grad()
    def _sizes(self, model: ConvergentNetwork) -> dict[str, float]:
        """Of weights alone: biases, which may start at 0, follow them."""
        weights = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
        norms = torch.stack([p.detach().float().norm() for p in weights]).tolist() if weights else []
        return {self._name(p): n / math.sqrt(p.numel()) for p, n in zip(weights, norms, strict=True)}

    def _name(self, parameter: nn.Parameter) -> str:
        return self._names.get(id(parameter), "a weight")  # a strategy may put others in their places

    def _signs(self, look: _Look, model: ConvergentNetwork) -> Iterator[_Sign]:
        bound = _RESIDUAL
        if model.encoder.averages:
            bound = max(bound, _NOISE * (self._first_residual or 0))
        # Under an input that changes over time there is no state to settle in.
        if look.residual is not None and not look.residual <= bound and not model.time_varying:
            yield _Sign(
                "settling",
                f"the states do not settle: after {model.steps[0]} steps of the free phase they are off by "
                f"{look.residual:.2g} from what their drives ask for (mean over the samples; expected {bound:.2g} or "
                "less), so that gradients mean little",
                "Use a smaller feedback, or start with smaller weights (ep_plugin.initialize_)",
            )
        inputs = {self._name(p): p[0].numel() for p in model.parameters() if p.dim() >= 2}
        grown = {name: size / self._start[name] for name, size in look.sizes.items() if self._start.get(name)}
        far = [n for n, times in grown.items() if times > _GROWTH and look.sizes[n] * math.sqrt(inputs[n]) > _DRIVE]
        if far:
            name = max(far, key=grown.__getitem__)
            yield _Sign(
                "weights",
                f"weights grow without bound: {name} is {grown[name]:.3g} times as large as at the start (root mean "
                f"square {look.sizes[name]:.3g})",
                "Clip the gradients",
            )
        chance = self._chance
        # In a net that has learned, outputs that are neurons may all stand at their bounds: they are right.
        learns = look.loss is not None and chance is not None and look.loss < _FALLING * chance.least
        for l, (live, mean) in enumerate(look.layers):
            if live < (OUTPUTS if self._classes and l in model.read else LIVE) and not learns:
                yield self._about_layer(l, live, mean, model)
                break  # those above follow it
        if look.loss is None or chance is None:
            return
        falling = look.loss < min(_FALLING * self._last_loss, chance.first)  # from a start that was too high
        if not look.loss <= chance.most and not falling:
            yield _Sign(
                "loss",
                f"the training loss stays far above {chance.words}: {look.loss:.4g} over the last batches",
                "Start with smaller weights (ep_plugin.initialize_), and inputs of about 1",
            )

    def _about_layer(self, l: int, live: float, mean: float, model: ConvergentNetwork) -> _Sign:
        what, way_out = "is stuck", "Start with smaller weights (ep_plugin.initialize_)"
        if mean < _SILENT:
            what = "is silent"
            way_out = "Start with larger weights and biases of 0 (ep_plugin.initialize_), or a lower threshold"
        elif mean > _SATURATED:
            what, way_out = "is saturated", "Start with smaller weights and biases of 0 (ep_plugin.initialize_)"
        if self._classes and l in model.read:  # `initialize_` puts more of them beyond their bounds
            way_out = "Start with PyTorch's own weights, and a larger nudge, EquilibriumPropagation(beta=0.3)"
        parts: list[nn.Module] = [c for c in model._edges() if c.target == l] or [model.stem]
        weights = [p for part in parts for p in part.parameters() if p.dim() >= 2]
        return _Sign(
            "layers",
            f"layer {l}, driven by {self._name(weights[-1]) if weights else 'the input'}, {what}: {live:.0%} of its "
            f"neurons are between their bounds for any sample, so that no gradient passes (mean state {mean:.2g} of "
            "the largest)",
            way_out,
        )

    def _lower_rate(self, trainer: L.Trainer, look: _Look) -> str | None:
        """The advice to lower the learning rate, unless that is low already."""
        lr, sizes = _rate(trainer), [size for size in self._start.values() if size]
        if lr is None:
            return None
        if "Adam" in type(trainer.optimizers[0]).__name__ and sizes:
            good = float(f"{_STEP * min(sizes):.1g}")
            return f"Lower the learning rate, lr={lr:g}, to {good:g}" if lr > 2 * good else None
        moved = [abs(size / self._start[n] - 1) for n, size in look.sizes.items() if self._start.get(n)]
        if max(moved, default=0) < 1:
            return None
        return f"Lower the learning rate, lr={lr:g}, to {lr / 10:g}, and further if this is told again"


def _rate(trainer: L.Trainer) -> float | None:
    """The largest of the first optimizer; None without one."""
    return max((group["lr"] for optimizer in trainer.optimizers[:1] for group in optimizer.param_groups), default=None)


def _feedback(model: ConvergentNetwork) -> float:
    return max(model.settings.between(max(model.levels)), default=0.0)


def _chance(module: Any, output: Any, first: float) -> _Chance:
    """Of a module, from the first batch's output and loss."""
    loss: Any = module.loss
    whole = isinstance(loss, nn.CrossEntropyLoss) and loss.reduction == "mean"
    if (whole or loss in (LOSSES["cross_entropy"], F.cross_entropy)) and isinstance(output, Tensor):
        classes = module.population or output.shape[1]
        if classes > 1:
            level = math.log(classes)
            return _Chance(first, min(level, first), _ABOVE * level, f"that of chance, log({classes}) = {level:.3g}")
    if first <= 0:  # a loss that may be negative has no bound
        return _Chance(first, -math.inf, math.inf, "")
    return _Chance(first, first, _ABOVE_FIRST * first, f"the first batch's, {first:.3g}")
