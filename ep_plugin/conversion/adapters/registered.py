"""Neurons of one's own: what `register_neuron` is told of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ep_plugin.conversion.adapters import REGISTERED, LearnableLeak, Neuron, States
from ep_plugin.dynamics.activations import Activation, ActivationName, Elementwise, as_activation
from ep_plugin.validation import count

Constant = str | float | Tensor | Callable[[Any], Any]
"""An attribute's name, a number or tensor, or a function of the neuron."""


def register_neuron(
    module_type: type[nn.Module],
    *,
    threshold: Constant = "threshold",
    gain: Constant = 1.0,
    outputs: int = 1,
    activation: ActivationName | Activation | Elementwise | None = None,
) -> None:
    """Makes your own neuron class known to `convert`, which then treats it like the neurons of snnTorch and Norse.

    The converted neuron settles where r = activation(gain * drive / threshold). The gain says how large a steady input
    has become when it meets the threshold: 1 for a neuron that adds up its input, 1 / (1 - alpha) for one whose
    synapse decays by alpha per step. What the neuron does over time (leak, reset) has no effect on the equilibrium.

    Args:
        module_type: the neuron's class. It is called with its drive first (states may follow) and returns its
            spikes, in the drive's shape. Subclasses must be registered separately.
        threshold: the name of the neuron's attribute, a number, a tensor that broadcasts against the drive
            `[B, ...]`, or a function of the neuron that returns one of these. An `nn.Parameter` is trained.
        gain: the same choices as for `threshold`; it is not trained.
        outputs: how many values a call returns, spikes first: 1 for the spikes alone (not in a tuple), 2 for
            `spikes, state`. Only the spikes can be read.
        activation: of the layers that are made from this class; by default the one that `convert` is given.

    Raises:
        TypeError: `module_type` is not a subclass of `nn.Module`, or an argument has a wrong type.
        ValueError: a number is out of its range, or the activation is unknown.

    Example:
        >>> class Integrator(nn.Module):
        ...     def __init__(self, threshold):
        ...         super().__init__()
        ...         self.theta = nn.Parameter(torch.tensor(threshold))
        ...
        ...     def forward(self, current, membrane=None):
        ...         membrane = current if membrane is None else membrane + current
        ...         spikes = (membrane >= self.theta).to(current.dtype)
        ...         return spikes, membrane - spikes * self.theta
        >>> ep.register_neuron(Integrator, threshold="theta", outputs=2)
        >>> model = ep.convert(nn.Sequential(nn.Linear(4, 3), Integrator(0.8), nn.Linear(3, 2)))
        >>> model(torch.rand(5, 4)).shape
        torch.Size([5, 2])
    """
    if not (isinstance(module_type, type) and issubclass(module_type, nn.Module)):
        raise TypeError(f"register_neuron was given {module_type!r}; expected a subclass of nn.Module")
    for what, constant in (("threshold", threshold), ("gain", gain)):
        if isinstance(constant, bool) or not (isinstance(constant, (str, int, float, Tensor)) or callable(constant)):
            raise TypeError(
                f"{what} is {constant!r}; expected the name of an attribute, a number, a tensor or a function of the "
                "neuron"
            )
        if isinstance(constant, (int, float, Tensor)):
            _positive(what, constant)
    REGISTERED[module_type] = RegisteredNeuron(
        threshold, gain, count("outputs", outputs), None if activation is None else as_activation(activation)
    )


@dataclass(frozen=True, eq=False)
class RegisteredNeuron:
    """The adapter of one type of neurons."""

    threshold: Constant
    gain: Constant
    returned: int
    activation: Activation | None

    def is_neuron(self, module: nn.Module) -> bool:
        return True

    def check(self, place: str, module: nn.Module) -> None:
        """The one who registers it has said that it has an equilibrium."""

    def outputs(self, module: nn.Module) -> int:
        return 0 if self.returned == 1 else self.returned

    def states(self, module: nn.Module) -> States:
        """What it does over time has no effect, as the one who registers it has said."""
        names = tuple(f"state {i}" for i in range(1, self.returned))
        return States(names, frozenset(names))

    def integrator(self, module: nn.Module) -> None:
        """It spikes."""

    def steady_membrane(self, place: str, module: nn.Module) -> nn.Module:
        raise ValueError(
            f"{place} is read by its state, of which ep_plugin.register_neuron says nothing; expected its spikes to "
            "be read"
        )

    def described(self, place: str, module: nn.Module, learnable_leak: LearnableLeak) -> Neuron:
        threshold = _value(place, "threshold", self.threshold, module)
        gain = _value(place, "gain", self.gain, module)
        return Neuron(threshold, gain.detach() if isinstance(gain, Tensor) else gain, self.activation)

    def runs_over_time(self, module: nn.Module) -> bool:
        return False

    def differences(self, neurons: dict[str, nn.Module]) -> list[str]:
        kinds = " and ".join(sorted({type(n).__name__ for n in neurons.values()}))
        return [
            f"{len(neurons)} {kinds} neuron layers settle at rate = activation(gain * drive / threshold), with the "
            "gain and threshold that they were registered with; what else they do in time is left out"
        ]


def _value(place: str, what: str, constant: Constant, module: nn.Module) -> Tensor | float:
    """A constant of one neuron."""
    if isinstance(constant, str):
        if not hasattr(module, constant):
            raise ValueError(
                f"{place} has no attribute {constant!r}, which it was registered with as its {what}; expected "
                f"ep_plugin.register_neuron({type(module).__name__}, {what}=...) with a name that it has, a number, "
                "or a function of it"
            )
        value = getattr(module, constant)
    else:
        value = constant(module) if callable(constant) else constant
    if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
        raise TypeError(f"the {what} of {place} is {value!r}; expected a number or a tensor")
    if isinstance(value, Tensor) and value.requires_grad and not isinstance(value, nn.Parameter) and what != "gain":
        raise ValueError(
            f"the {what} of {place} is computed from parameters, which would not be trained, since it is read once; "
            "expected an nn.Parameter as it is, or detached values, to leave them as they are"
        )
    return _positive(f"the {what} of {place}", value)


def _positive(what: str, value: Tensor | float) -> Tensor | float:
    number = torch.as_tensor(value).detach()
    if not bool(((number > 0) & number.isfinite()).all()):
        raise ValueError(f"{what} is {number.tolist()}; expected finite numbers above 0")
    return value
