"""Concatenations among signals: found in a plan, and measured at the first input of a shape."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ep_plugin.conversion.computation import Computation
from ep_plugin.conversion.functions import Function, Slot
from ep_plugin.conversion.plan import Applied, Combination, Input, Joined, Plan, Signal, Spikes, combine, parts
from ep_plugin.linear.concatenation import Concatenation
from ep_plugin.linear.connection import evaluate

_CAT = (torch.cat, torch.concat, torch.concatenate)
_MEANS = (torch.mean, Tensor.mean)
_OVER = (torch.sum, Tensor.sum, *_MEANS)
_ELEMENTWISE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, nn.Dropout)
_A_CHANNEL = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)


def simplified(signal: Signal) -> Signal:
    """The signal with its last step told in other words, where there are some that a sum can be made of:

    a stack that is summed up is a sum, another stack a concatenation, and what is done to each channel of a
    concatenation is done to each part.
    """
    if not isinstance(signal, (Applied, Joined)):
        return signal
    if (found := stacked(signal)) is not None and found[1] != 0:
        members, dim = found
        lifted = Function(torch.unsqueeze, (Slot(0), dim), {})
        cat = Function(torch.cat, ([Slot(i) for i in range(len(members))], dim), {})
        return Joined("stack", cat, tuple(Applied("stack", lifted, member) for member in members))
    if not isinstance(signal, Applied):
        return signal
    if (total := _sum_of_a_stack(signal)) is not None:
        return total
    inner = simplified(signal.signal)
    joined = concatenated(inner)
    if joined is not None and _acts_on_each(signal.module, joined[1]):
        members = tuple(Applied(signal.name, signal.module, member) for member in joined[0])
        cat = Function(torch.cat, ([Slot(i) for i in range(len(members))], joined[1]), {})
        return Joined(inner.name, cat, members)  # type: ignore[union-attr]
    return signal


def concatenated(signal: Signal) -> tuple[tuple[Signal, ...], int] | None:
    """The parts of a concatenation and the dimension along which they are joined; None for other signals."""
    return _members(signal, _CAT)


def stacked(signal: Signal) -> tuple[tuple[Signal, ...], int] | None:
    """The members of a stack and the dimension that it makes; None for other signals."""
    return _members(signal, (torch.stack,))


def _members(signal: Signal, functions: Sequence[Callable[..., Any]]) -> tuple[tuple[Signal, ...], int] | None:
    """The signals that one of these functions takes as a sequence, and its dimension."""
    if not isinstance(signal, (Applied, Joined)) or not isinstance(signal.module, Function):
        return None
    function, given = signal.module, parts(signal)
    if function.function not in functions or not function.args or not isinstance(function.args[0], (tuple, list)):
        return None
    dim = function.args[1] if len(function.args) > 1 else function.options.get("dim", function.options.get("axis", 0))
    if not isinstance(dim, int) or not all(isinstance(slot, Slot) for slot in function.args[0]):
        return None
    return tuple(given[slot.number] for slot in function.args[0]), dim


def _sum_of_a_stack(signal: Applied) -> Signal | None:
    """A stack of signals, summed up (or their mean taken) over the dimension that it has made."""
    function, found = signal.module, stacked(signal.signal)
    if found is None or not isinstance(function, Function):
        return None
    members, dim = found
    over = (*function.args[1:], *function.options.values())
    if function.function not in _OVER or over not in ((dim,), ((dim,),), ([dim],)):
        return None
    return combine([(member, 1 / len(members) if function.function in _MEANS else 1.0) for member in members])


def _acts_on_each(module: nn.Module, dim: int) -> bool:
    """Whether what a module does to a concatenation is what it does to each part."""
    kind = type(module)
    if kind in _ELEMENTWISE:
        return True
    return kind in _A_CHANNEL and dim in (1, -1 - int(kind.__name__[-2]))


class Measurement:
    """The shapes of all parts of a plan's concatenations, for an input.

    Args:
        plan: what the model computes.
        given: the input.
        weights: of a neuron, what its input passes in the neuron itself.
        concatenations: with the parts of each.
    """

    def __init__(
        self,
        plan: Plan,
        given: Input,
        weights: dict[str, nn.Module],
        concatenations: Sequence[tuple[Concatenation, tuple[Signal, ...]]],
    ) -> None:
        self.concatenations = [(concatenation, len(members)) for concatenation, members in concatenations]
        shaped = _Shaped(plan, weights)
        self.computation = Computation([shaped(m) for _, members in concatenations for m in members], [given])
        self.seen: set[tuple[int, ...]] = set()

    @torch.no_grad()
    def __call__(self, x: Tensor) -> None:
        if x.shape[1:] in self.seen:
            return
        modes = [(module, module.training) for module in self.computation.modules()]
        try:
            for module, _ in modes:
                module.training = False  # so that no statistics are taken of this
            made = self.computation(x[:1])
        finally:
            for module, mode in modes:
                module.training = mode
        values = list(made) if isinstance(made, tuple) else [made]
        for concatenation, count in self.concatenations:
            concatenation.measured([tuple(v.shape[1:]) for v in values[:count]])
            values = values[count:]
        self.seen.add(x.shape[1:])


class _Shaped:
    """Signals in which a neuron's spikes are what it receives: they have the same shape."""

    def __init__(self, plan: Plan, weights: dict[str, nn.Module]) -> None:
        self.plan, self.weights = plan, weights
        self.known: dict[Signal, Signal] = {}

    def __call__(self, signal: Signal) -> Signal:
        if signal not in self.known:
            self.known[signal] = self._made(signal)
        return self.known[signal]

    def _made(self, signal: Signal) -> Signal:
        if isinstance(signal, Spikes):
            received = self(self.plan.received[signal.neuron])
            weights = self.weights.get(signal.neuron)
            return received if weights is None else Applied(signal.neuron, weights, received)
        if isinstance(signal, Applied):
            return Applied(signal.name, signal.module, self(signal.signal))
        if isinstance(signal, Joined):
            return Joined(signal.name, signal.module, tuple(self(part) for part in signal.signals))
        if isinstance(signal, Combination):
            return Combination(tuple((self(part), factor) for part, factor in signal.terms))
        return signal


class Measuring(nn.Sequential):
    """A stem that has concatenations measured before an input of a new shape goes through it."""

    def __init__(self, stem: nn.Module, measurement: Measurement) -> None:
        super().__init__(stem)
        self.measurement = measurement

    def forward(self, x: Tensor) -> Tensor:
        self.measurement(x)
        return evaluate(self[0], x)
