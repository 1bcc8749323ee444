"""The neurons that conversion knows, behind one interface: an adapter a library, a row a neuron.

A converted neuron settles where r = activation(gain * drive / threshold), so it has the weights and
the threshold of the original, per neuron where they are. `snntorch` and `norse` list the gains;
`registered` has the neurons of one's own.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Literal, Protocol, cast

from torch import Tensor, nn

from ep_plugin.dynamics.activations import Activation

LearnableLeak = Literal["refuse", "freeze"]

LIBRARIES = ("snntorch", "norse")


@dataclass
class Neuron:
    """What a layer takes over from a library's neuron.

    `input_weights` stand before it and `lateral` among its own neurons (its symmetric part counts),
    where the library keeps them in the neuron.
    """

    threshold: Tensor | float
    gain: Tensor | float
    activation: Activation | None = None
    input_weights: nn.Module | None = None
    lateral: nn.Module | None = None


@dataclass(frozen=True)
class States:
    """The states that a neuron is handed.

    Args:
        names: in the order of the arguments of a call, behind the input.
        free: those on which nothing depends that a converted neuron takes over.
        packed: whether they are one argument, a tuple.
    """

    names: tuple[str, ...]
    free: frozenset[str] = frozenset()
    packed: bool = False


class Adapter(Protocol):
    """What the module of a library knows of its neurons."""

    def is_neuron(self, module: nn.Module) -> bool:
        """Any neuron of the library, also one that cannot be converted."""

    def check(self, place: str, module: nn.Module) -> None:
        """Raises a ValueError with `place` and the reason for what has no convergent counterpart."""

    def outputs(self, module: nn.Module) -> int:
        """How many values a call returns, spikes first; 0 for one that is not in a tuple."""

    def states(self, module: nn.Module) -> States:
        """The states that a call is handed."""

    def integrator(self, module: nn.Module) -> list[nn.Module] | None:
        """What a neuron that never spikes does to a steady input; None for those that do spike."""

    def steady_membrane(self, place: str, module: nn.Module) -> nn.Module:
        """The membrane over a steady input; a ValueError where there is none."""

    def described(self, place: str, module: nn.Module, learnable_leak: LearnableLeak) -> Neuron:
        """What the layer takes over; a ValueError for settings without a counterpart."""

    def runs_over_time(self, module: nn.Module) -> bool:
        """Whether a call of the neuron takes all time steps of its input."""

    def differences(self, neurons: dict[str, nn.Module]) -> list[str]:
        """In words: what the converted neurons do not share with the originals."""


REGISTERED: dict[type[nn.Module], Adapter] = {}
"""Neurons of one's own -> their adapter."""


def find_adapter(module: nn.Module) -> Adapter | None:
    """The adapter of the neuron that this is; None for other modules. Imports only what the model uses."""
    if type(module) in REGISTERED:
        return REGISTERED[type(module)]
    homes = {base.__module__.split(".")[0] for base in type(module).__mro__}
    for name in LIBRARIES:
        if name in homes:
            found = cast(Adapter, import_module(f"{__name__}.{name}"))
            return found if found.is_neuron(module) else None
    return None


def adapter_for(module: nn.Module) -> Adapter:
    """The adapter of a module that is a neuron."""
    found = find_adapter(module)
    assert found is not None
    return found


def runs_over_time(module: nn.Module) -> bool:
    """Whether it is a neuron that takes all time steps in one call."""
    found = find_adapter(module)
    return found is not None and found.runs_over_time(module)


def lifted(module: nn.Module) -> nn.Module | None:
    """What `norse.Lift` calls at every step; None for other modules."""
    inner = module
    while type(inner).__name__ == "Lift" and type(inner).__module__ == "norse.torch.module.lift":
        inner = inner.get_submodule("lifted_module")
    return None if inner is module else inner


def place_of(name: str, module: nn.Module) -> str:
    return f"module {name!r} ({type(module).__name__})"


def differences(originals: dict[str, nn.Module]) -> list[str]:
    """In words, library by library: what the converted neurons do not share with the originals."""
    adapters = dict.fromkeys(adapter_for(module) for module in originals.values())
    return [
        note
        for adapter in adapters
        for note in adapter.differences({n: m for n, m in originals.items() if adapter_for(m) is adapter})
    ]
