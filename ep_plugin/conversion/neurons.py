"""The neurons of snnTorch and Norse, behind one interface.

A converted neuron settles where r = activation(gain * drive / threshold), so it has the weights and
the threshold of the original, per neuron where they are. `snntorch` and `norse` list the gains.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

from torch import Tensor, nn

from ep_plugin.neurons.activations import Activation

NO_TIME = "the input is that of one step, [batch, ...], with no time axis (unless time_first=True)"


@dataclass
class Neuron:
    """What a layer takes over from a library's neuron.

    `input_weights` stand before it and `lateral` among its own neurons (its symmetric part counts),
    where the library keeps them in the neuron.
    """

    threshold: Tensor
    gain: Tensor | float
    activation: Activation | None = None
    input_weights: nn.Module | None = None
    lateral: nn.Module | None = None


class Library(Protocol):
    """What `ep_plugin.conversion.snntorch` and `.norse` know of their neurons."""

    def is_neuron(self, module: nn.Module) -> bool:
        """Any neuron of the library, also one that cannot be converted."""

    def check(self, place: str, module: nn.Module) -> None:
        """Raises a ValueError with `place` and the reason for what has no convergent counterpart."""

    def outputs(self, module: nn.Module) -> int:
        """How many values a call returns, spikes first; 0 for one that is not in a tuple."""

    def integrator(self, module: nn.Module) -> list[nn.Module] | None:
        """What a neuron that never spikes does to a steady input; None for those that do spike."""

    def steady_membrane(self, place: str, module: nn.Module) -> nn.Module:
        """The membrane over a steady input; a ValueError where there is none."""

    def described(self, place: str, module: nn.Module, freeze_leak: bool) -> Neuron:
        """What the layer takes over; a ValueError for settings without a counterpart."""

    def differences(self, neurons: dict[str, nn.Module]) -> list[str]:
        """In words: what the converted neurons do not share with the originals."""


def library(module: nn.Module) -> Library | None:
    """The library whose neuron this is; None for other modules. Imports only what the model uses."""
    homes = {base.__module__.split(".")[0] for base in type(module).__mro__}
    for name in ("snntorch", "norse"):
        if name in homes:
            found = cast(Library, import_module(f"ep_plugin.conversion.{name}"))
            return found if found.is_neuron(module) else None
    return None


def of(module: nn.Module) -> Library:
    """The library of a module that is a neuron."""
    found = library(module)
    assert found is not None
    return found


def place_of(name: str, module: nn.Module) -> str:
    return f"module {name!r} ({type(module).__name__})"


def differences(originals: dict[str, nn.Module]) -> list[str]:
    """In words, library by library: what the converted neurons do not share with the originals."""
    libraries = dict.fromkeys(of(module) for module in originals.values())
    return [
        note
        for found in libraries
        for note in found.differences({n: m for n, m in originals.items() if of(m) is found})
    ]
