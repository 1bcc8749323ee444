"""The loop over steps as one would write it by hand, to be written out by a tracer."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ep_plugin.deployment.copies import Copies
from ep_plugin.deployment.transposed import transposed
from ep_plugin.dynamics.layer import Layer
from ep_plugin.linear.connection import Connection
from ep_plugin.network import ConvergentNetwork

Neuron = Callable[[Tensor], nn.Module]
"""From a threshold to the library's neuron."""


class Loop(nn.Module):
    """The loop as one would write it by hand, of copies of the network's modules."""

    def __init__(
        self,
        model: ConvergentNetwork,
        num_steps: int,
        spikes: bool,
        shapes: Sequence[Sequence[int]] | None,
        neuron: Neuron,
        charged_by_hand: bool,
    ) -> None:
        super().__init__()
        plain = Copies()
        layers: list[Layer] = list(model.layers)  # type: ignore[arg-type]
        self.num_steps, self.spikes, self.charged_by_hand = num_steps, spikes, charged_by_hand
        self.frames = model.time_axis if model.time_varying else None
        self.driven, self.read = model.driven, model.read
        self.upward = sorted(range(len(layers)), key=lambda l: (model.levels[l], l))
        # A spike stands for the largest state, which a neuron has if it fires in every step.
        self.most = [layer.activation.maximum for layer in layers]
        self.ends = [(c.source, c.target) for c in edges(model)]
        self.stem = plain(model.stem)
        self.layers = nn.ModuleList(
            neuron(layer.theta.detach().float().clone() * most) for layer, most in zip(layers, self.most, strict=True)
        )
        parts = [_split(c.module) for c in edges(model)]
        self.connections = nn.ModuleList(plain(nn.Sequential(*linear)) for linear, _ in parts)
        # What is linear only piece by piece, and what follows it.
        self.pieces = nn.ModuleList(plain(nn.Sequential(*rest)) for _, rest in parts)
        self.readout = plain(model.readout)
        self.feedback = nn.ModuleList()
        self.unread = 0 if shapes is None else num_steps // 4
        if shapes is not None:
            self.feedback.extend(plain(transposed(c, shapes[c.source])) for c in edges(model))
            strengths = model.settings.between(max(model.levels))
            # c_j / c_i
            self.ratios = [_strength(strengths, model.levels[i], model.levels[j]) for i, j in self.ends]

    def forward(self, x: Any) -> Any:
        drives = self._drives(x) if self.frames is None else []
        # It raises where there are more or fewer frames.
        frames = () if self.frames is None else torch.split(x, [1] * self.num_steps, self.frames)
        layers = range(len(self.layers))
        memory: list[Any] = [None for _ in layers]
        fired: list[list[Any]] = [[] for _ in layers]
        running: list[Any] = [None for _ in self.ends]
        given: list[Any] = [None for _ in self.ends]
        for step in range(1, self.num_steps + 1):
            if self.frames is not None:
                drives = self._drives(frames[step - 1].squeeze(self.frames))
            for l in self.upward:
                terms = [drive for at, drive in zip(self.driven, drives, strict=True) if at == l]
                for c, (source, target) in enumerate(self.ends):
                    if target == l and fired[source]:
                        sent = self.connections[c](self._state(source, fired[source][-1]))
                        if len(self.pieces[c]):  # type: ignore[arg-type]
                            running[c] = sent if running[c] is None else running[c] + sent
                            total = self.pieces[c](running[c] / step) * step
                            sent, given[c] = total if given[c] is None else total - given[c], total
                        terms.append(sent)
                    if source == l and fired[target] and len(self.feedback):
                        down = self.feedback[c](self._state(target, fired[target][-1]))
                        terms.append(down * self.ratios[c])
                current = _sum(terms)
                if memory[l] is None and self.charged_by_hand:
                    neuron: Any = self.layers[l]
                    memory[l] = torch.ones_like(current) * (neuron.threshold / 2)
                spike, memory[l] = self.layers[l](current, memory[l])
                fired[l].append(spike)
        read = self.num_steps - self.unread
        output = self.readout(*(self._state(l, _sum(fired[l][self.unread :]) / read) for l in self.read))
        return (output, tuple(torch.stack(own) for own in fired)) if self.spikes else output

    def _drives(self, x: Any) -> list[Any]:
        made = self.stem(x)
        return [made] if len(self.driven) == 1 else [made[k] for k in range(len(self.driven))]

    def _state(self, l: int, spikes: Any) -> Any:
        return spikes if self.most[l] == 1 else spikes * self.most[l]


def _strength(feedback: Sequence[float], lower: int, upper: int) -> float:
    """How strongly a layer on a level feeds back to one on another."""
    if upper < lower:
        return 1 / _strength(feedback, upper, lower)
    return math.prod(feedback[lower:upper])


def _sum(terms: Sequence[Any]) -> Any:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _split(module: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """A connection's modules up to the first that is linear only piece by piece, and the others."""
    found = _flat(module)
    linear = [Connection(m, 0, 0).is_linear for m in found]
    at = linear.index(False) if False in linear else len(found)
    return found[:at], found[at:]


def _flat(module: nn.Module) -> list[nn.Module]:
    return [leaf for child in module for leaf in _flat(child)] if type(module) is nn.Sequential else [module]


def edges(model: ConvergentNetwork) -> list[Connection]:
    return list(model.connections)  # type: ignore[arg-type]


class Tracer(fx.Tracer):
    """Modules of PyTorch, of the libraries and of the user stay modules; those of this package become what they do."""

    proxy_buffer_attributes = True  # a threshold stays the neuron's own

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(type(inner).__module__.startswith("ep_plugin.") for inner in m.modules())
