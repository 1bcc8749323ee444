"""Existing models in, convergent networks out."""

import warnings
from collections.abc import Sequence

from torch import nn

from ep_plugin.checks import chosen
from ep_plugin.conversion import neurons, sequence, tracing
from ep_plugin.conversion.blocks import POOLING, blocks, used
from ep_plugin.encoders import Encoder
from ep_plugin.gradients.estimator import GradientEstimator
from ep_plugin.network import ConvergentNetwork
from ep_plugin.neurons.activations import Activation, Elementwise, as_activation
from ep_plugin.neurons.layer import Layer
from ep_plugin.relaxation import Relaxation


class ConversionWarning(UserWarning):
    """What a converted model no longer shares with the original."""


def convert(
    net: nn.Module,
    *,
    encoder: str | Encoder = "predictive",
    activation: str | Activation | Elementwise = "hard_sigmoid",
    observe: str = "membrane",
    feedback: float | Sequence[float] | None = None,
    relaxation: Relaxation | None = None,
    gradient: GradientEstimator | None = None,
    pooling: str = "error",
    freeze_leak: bool = False,
    time_first: bool = False,
) -> ConvergentNetwork:
    """A snnTorch or Norse model as a convergent network that shares its parameters.

    Everything before the first neuron becomes the stem, everything between neurons the connections
    and everything after the last the readout. The original's weights and thresholds are used as they
    are, so its `state_dict` sees the training. What becomes different (leak, reset, the output
    neuron) is told once, by a `ConversionWarning`.

    A model with a forward of its own is traced: a loop over steps becomes the relaxation, membranes
    that are passed by hand fall away, sums of signals become skip connections (in the energy, so
    they feed back too). Of several outputs it returns the first. A model that reads its input step by
    step takes that of one step, `[B, ...]`, or all of them with `time_first=True`.

    Between neurons, batch normalisation is the fixed affine map of its running statistics, with its
    weight and bias trained; dropout draws one mask a batch. In stem and readout they are ordinary.

    Args:
        net: an `nn.Sequential`, a Norse `SequentialState` or any module that calls neurons of these
            libraries and linear modules between them. Which neurons, and what becomes of their
            constants: `ep_plugin.conversion.snntorch` and `.norse`.
        encoder, observe, feedback, relaxation, gradient, time_first: see `ConvergentNetwork`.
        activation: of every layer; `ConvergentLeaky` and `ConvergentLIFBoxCell` keep their own.
        pooling: what becomes of max pooling between neurons, whose adjoint does not match for
            spikes: "error" refuses it, "average" puts average pooling in its place with a warning,
            "keep" keeps it.
        freeze_leak: leave learnable leaks as they are. The equilibrium does not depend on them, so
            they are refused otherwise.

    Raises:
        TypeError: `net` is not an `nn.Module`.
        ValueError: something cannot be converted (with its name, the reason and the way out), the
            model has no neuron, or a neuron has no weights before it.
    """
    chosen("pooling", pooling, POOLING)
    if not isinstance(net, nn.Module):
        raise TypeError(f"convert was given a {type(net).__name__}; expected an nn.Module, such as an nn.Sequential")
    found = [(name, m, library) for name, m in net.named_modules() if (library := neurons.library(m)) is not None]
    if not found:
        raise ValueError("the model has no neuron; expected at least one of snnTorch's or Norse's, such as snn.Leaky")
    for name, module, library in found:
        library.check(neurons.place_of(name, module), module)
    plan = sequence.read(net) if sequence.is_sequence(net) else tracing.read(net)
    originals = {name: plan.neurons[name] for name in used(plan)}
    described = {
        name: neurons.of(module).described(neurons.place_of(name, module), module, freeze_leak)
        for name, module in originals.items()
    }
    parts = blocks(plan, list(originals), described, pooling)
    model = ConvergentNetwork(
        parts.stem,
        [Layer(n.threshold, n.activation or as_activation(activation), gain=n.gain) for n in described.values()],
        parts.connections,
        parts.readout,
        encoder=encoder,
        observe=observe,
        feedback=feedback,
        relaxation=relaxation,
        gradient=gradient,
        time_first=time_first,
    )
    notes = [*parts.notes, *neurons.differences(originals)]
    if time_first:
        notes = [note for note in notes if note != neurons.NO_TIME]
    if parts.readout is None:
        notes.append("the output is the last neuron's equilibrium, one tensor [batch, ...], and not spikes over time")
    if notes:
        warnings.warn("converted: " + "; ".join(notes), ConversionWarning, stacklevel=2)
    return model
