"""Existing models in, convergent networks out."""

import warnings
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Literal

from torch import nn

from ep_plugin.conversion import adapters, sequence, tracing
from ep_plugin.conversion.adapters import LearnableLeak
from ep_plugin.conversion.blocks import blocks, reachable_neurons
from ep_plugin.dynamics.activations import Activation, ActivationName, Elementwise, as_activation
from ep_plugin.dynamics.encoders import Encoder, EncoderName
from ep_plugin.dynamics.layer import Layer
from ep_plugin.dynamics.relaxation import Observed, Relaxation
from ep_plugin.estimators.estimator import GradientEstimator
from ep_plugin.network import ConvergentNetwork
from ep_plugin.validation import chosen

MAX_POOLING = {"keep": "keep it", "average": "average pooling in its place"}
LEARNABLE_LEAK = {"refuse": "an error", "freeze": "they stay as they are"}


class ConversionWarning(UserWarning):
    """What a converted model no longer shares with the original."""


def convert(
    net: nn.Module,
    *,
    encoder: EncoderName | Encoder = "adaptive_delta",
    activation: ActivationName | Activation | Elementwise = "hard_sigmoid",
    observe: Observed = "trace",
    feedback: float | Sequence[float] | None = None,
    relaxation: Relaxation | None = None,
    estimator: GradientEstimator | None = None,
    max_pooling: Literal["keep", "average"] = "keep",
    learnable_leak: LearnableLeak = "refuse",
    time_varying: bool = False,
) -> ConvergentNetwork:
    """A snnTorch or Norse model as a convergent network that shares its parameters.

    What is made of the input alone becomes the stem, everything between neurons the connections, and
    what the output makes of their spikes the readout. The input may drive any neurons, and the output
    read any. The original's weights and thresholds are used as they are, so its `state_dict` sees the
    training. What becomes different (leak, reset, the output neuron) is told once, by a
    `ConversionWarning`.

    A model with a forward of its own is traced: a loop over steps becomes the relaxation, membranes
    that are passed by hand fall away, sums of signals become skip connections (in the energy, so
    they feed back too). Of several outputs it returns the first. A model that reads its input step by
    step takes that of one step, `[B, ...]`, or all of them with `time_varying=True`.

    Between neurons stand modules that are linear, or piecewise so (max pooling, ReLU, ReLU6, LeakyReLU,
    Hardtanh). Batch normalization is there the fixed affine map of its running statistics, with its
    weight and bias trained; dropout draws one mask a batch. In stem and readout they are ordinary.

    Args:
        net: an `nn.Sequential`, a Norse `SequentialState` or any module that calls neurons of these
            libraries and such modules between them. Which neurons, and what becomes of their
            constants: `ep_plugin.conversion.snntorch` and `.norse`.
        encoder: what neurons send; see `ConvergentNetwork`.
        activation: of every layer; `ConvergentLeaky` and `ConvergentLIFBoxCell` keep their own.
        observe: what readout and contrasts see of a neuron; see `ConvergentNetwork`.
        feedback: its strength from a level to the one below; see `ConvergentNetwork`.
        relaxation: how the free phase settles.
        estimator: how a loss becomes gradients; `EquilibriumPropagation()` by default.
        max_pooling: what becomes of max pooling between neurons: "keep" (near a state it is linear: it picks
            the winners of the free phase), or "average" for average pooling in its place, with a warning.
        learnable_leak: "refuse", or "freeze" to leave learnable leaks as they are. The equilibrium does not
            depend on them.
        time_varying: the input changes over time, `[T, B, ...]`; see `ConvergentNetwork`.

    Returns:
        The network, in the modes (training or evaluation) of the model's modules.

    Raises:
        TypeError: `net` is not an `nn.Module`.
        ValueError: something cannot be converted (with its name, the reason and the way out), the
            model has no neuron, or a neuron has no weights before it.
    """
    chosen("max_pooling", max_pooling, MAX_POOLING)
    chosen("learnable_leak", learnable_leak, LEARNABLE_LEAK)
    if not isinstance(net, nn.Module):
        raise TypeError(f"convert was given a {type(net).__name__}; expected an nn.Module, such as an nn.Sequential")
    found = [(name, m, a) for name, m in net.named_modules() if (a := adapters.find_adapter(m)) is not None]
    if not found:
        raise ValueError("the model has no neuron; expected at least one of snnTorch's or Norse's, such as snn.Leaky")
    for name, module, adapter in found:
        adapter.check(adapters.place_of(name, module), module)
    plan = sequence.read(net) if sequence.is_sequence(net) else tracing.read(net)
    originals = {name: plan.neurons[name] for name in reachable_neurons(plan)}
    described = {
        name: adapters.adapter_for(module).described(adapters.place_of(name, module), module, learnable_leak)
        for name, module in originals.items()
    }
    parts = blocks(plan, list(originals), described, max_pooling)
    model = ConvergentNetwork(
        parts.stem,
        [
            Layer(n.threshold, n.activation or as_activation(activation), level, n.gain)
            for n, level in zip(described.values(), parts.levels, strict=True)
        ],
        parts.connections,
        parts.readout,
        encoder=encoder,
        observe=observe,
        feedback=feedback,
        relaxation=relaxation,
        estimator=estimator,
        time_varying=time_varying,
        driven=parts.driven,
        read=parts.read,
    )
    notes = [*parts.notes, *adapters.differences(originals)]
    over_time = parts.stepwise or any(adapters.adapter_for(m).runs_over_time(m) for m in originals.values())
    if over_time and not time_varying:
        notes.append("the input is that of one step, [batch, ...], with no time axis (unless time_varying=True)")
    if parts.readout is None:
        notes.append("the output is the last neuron's equilibrium, one tensor [batch, ...], and not spikes over time")
    if notes:
        warnings.warn("converted: " + "; ".join(notes), ConversionWarning, stacklevel=2)
    return model


def __getattr__(name: str) -> ModuleType:
    # What warnings advise to read: help(ep_plugin.conversion.snntorch) has the gain of every neuron.
    if name in adapters.LIBRARIES:
        return import_module(f"{__name__}.adapters.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
