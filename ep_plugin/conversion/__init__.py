"""Existing models in, convergent networks out."""

import warnings
from collections.abc import Sequence

from torch import nn

from ep_plugin.checks import chosen
from ep_plugin.connections import Connection
from ep_plugin.conversion import blocks, snntorch
from ep_plugin.encoders import Encoder
from ep_plugin.gradients.estimator import GradientEstimator
from ep_plugin.network import ConvergentNetwork, Layer
from ep_plugin.neurons.activations import Activation, Elementwise
from ep_plugin.relaxation import Relaxation


class ConversionWarning(UserWarning):
    """What a converted model no longer shares with the original."""


def convert(
    net: nn.Sequential,
    *,
    encoder: str | Encoder = "predictive",
    activation: str | Activation | Elementwise = "hard_sigmoid",
    observe: str = "membrane",
    feedback: float | Sequence[float] = 0.15,
    relaxation: Relaxation | None = None,
    gradient: GradientEstimator | None = None,
    pooling: str = "error",
    time_first: bool = False,
) -> ConvergentNetwork:
    """A snnTorch model as a convergent network that shares its parameters.

    Everything before the first neuron becomes the stem, everything between two neurons a connection
    and everything after the last the readout. The original's weights and thresholds are used as they
    are, so its `state_dict` sees the training. What becomes different (leak, reset, the output
    neuron) is told once, by a `ConversionWarning`.

    Args:
        net: an `nn.Sequential`, nested if you like, with `snn.Leaky`, `snn.Lapicque` or
            `ConvergentLeaky` neurons and linear modules between them.
        encoder, observe, feedback, relaxation, gradient, time_first: see `ConvergentNetwork`.
        activation: of every layer; a `ConvergentLeaky` keeps its own.
        pooling: what becomes of max pooling between neurons, whose adjoint does not match for
            spikes: "error" refuses it, "average" puts average pooling in its place with a warning,
            "keep" keeps it.

    Raises:
        TypeError: `net` is not an `nn.Sequential`.
        ValueError: a module cannot be converted (with its name, the reason and the way out), the
            model has no neuron, or a neuron has no weights before it.
    """
    chosen("pooling", pooling, blocks.POOLING)
    found = blocks.split(net, pooling)
    layers = [Layer(neuron.threshold, snntorch.activation_of(neuron, activation)) for neuron in found.neurons]
    connections = [Connection(nn.Sequential(*modules), l, l + 1) for l, modules in enumerate(found.between)]
    model = ConvergentNetwork(
        nn.Sequential(*found.before),
        layers,
        connections,
        nn.Sequential(*found.after) if found.after else None,
        encoder=encoder,
        observe=observe,
        feedback=feedback,
        relaxation=relaxation,
        gradient=gradient,
        time_first=time_first,
    )
    notes = [*found.notes, *snntorch.differences(found.neurons, has_readout=bool(found.after))]
    if notes:
        warnings.warn("converted: " + "; ".join(notes), ConversionWarning, stacklevel=2)
    return model
