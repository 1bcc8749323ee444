"""Existing models in, convergent networks out."""

import warnings
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor, nn

from ep_plugin.conversion import adapters, outputs, sequence, trace, tracing
from ep_plugin.conversion.adapters import LearnableLeak
from ep_plugin.conversion.blocks import blocks, reachable_neurons
from ep_plugin.conversion.origin import Origin
from ep_plugin.dynamics.activations import Activation, ActivationName, Elementwise, as_activation
from ep_plugin.dynamics.encoders import Encoder, EncoderName
from ep_plugin.dynamics.layer import Layer
from ep_plugin.dynamics.relaxation import Observed, Relaxation
from ep_plugin.estimators.estimator import GradientEstimator
from ep_plugin.linear.connection import Connection
from ep_plugin.linear.modules import SharedDropout
from ep_plugin.linear.separate import separated
from ep_plugin.network import ConvergentNetwork
from ep_plugin.validation import chosen

MAX_POOLING = {"keep": "keep it", "average": "average pooling in its place"}
FEEDBACK_WEIGHTS = {"tied": "the forward weights", "separate": "weights of their own"}
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
    feedback_weights: Literal["tied", "separate"] = "tied",
    example_input: Tensor | None = None,
    output: int | str | tuple[int | str, ...] | None = None,
) -> ConvergentNetwork:
    """A snnTorch or Norse model as a convergent network that shares its parameters.

    What is made of the input alone becomes the stem, everything between neurons the connections, and
    what the output makes of their spikes the readout. The input may drive any neurons, and the output
    read any. What becomes different (leak, reset, the output neuron) is told once, by a `ConversionWarning`.

    The original's parameters are shared: `net.state_dict()` holds what was trained, under the original's
    names, and what `net.load_state_dict` loads counts here too. The converted model's own `state_dict` has
    names of its own (`stem.0.weight`), and the original does not load it.

    A model with a forward of its own is traced: a loop over steps becomes the relaxation, membranes
    that are passed by hand fall away, sums of signals become skip connections (in the energy, so
    they feed back too). A record over time is the same signal at every step, so what reduces, slices or
    permutes it is that signal. A model that reads its input step by step (`x[t]`, `x[:, t]`,
    `for x_t in x.unbind(1)`) takes that of one step, `[B, ...]`, or all of them with
    `time_varying=True`, with the steps along the axis where the model has them.

    Of several outputs it returns the first of those that depend on the most neurons; `output` chooses
    another. The model itself stays as it is. What counts is what `net(x)` calls.

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
        feedback_weights: "tied": what goes down passes the transposed weights. "separate": it passes weights of its
            own, which start at random and learn by the same contrast (`ep_plugin.linear.separate`).
        example_input: an input of the model. Without one its sizes are unknown, and a forward that asks for
            more of them than a loop over all steps does is refused.
        output: which of several outputs: an index, a key, or a tuple of them as a path.

    Returns:
        The network, in the modes (training or evaluation) of the model and its modules. It refuses to run once a
        module of the original that it shares has been replaced there.

    Raises:
        TypeError: `net` is not an `nn.Module`, or `example_input` not a tensor of floating point numbers.
        ValueError: something cannot be converted (with its name, the reason and the way out), the
            model has no neuron, or a neuron has no weights before it.
    """
    chosen("max_pooling", max_pooling, MAX_POOLING)
    chosen("learnable_leak", learnable_leak, LEARNABLE_LEAK)
    chosen("feedback_weights", feedback_weights, FEEDBACK_WEIGHTS)
    if not isinstance(net, nn.Module):
        raise TypeError(f"convert was given a {type(net).__name__}; expected an nn.Module, such as an nn.Sequential")
    outputs.checked(output)
    _check_example(example_input)
    if isinstance(net, ConvergentNetwork):
        raise ValueError("the model is a ConvergentNetwork already; for other settings use model.variant(...)")
    while (wrapped := trace.inside_wrapper(net)) is not None:
        net = wrapped
    if scripted := next((name for name, m in net.named_modules() if isinstance(m, torch.jit.ScriptModule)), None):
        raise ValueError(f"module {scripted!r} {_SCRIPTED}")
    if isinstance(net, torch.jit.ScriptModule):
        raise ValueError(f"the model {_SCRIPTED}")
    found = [(name, m, a) for name, m in net.named_modules() if (a := adapters.find_adapter(m)) is not None]
    if not found:
        raise ValueError(
            "the model has no neuron that is known; expected at least one of snnTorch's or Norse's, such as snn.Leaky, "
            "or one of your own, told of by ep_plugin.register_neuron"
        )
    for name, module, adapter in found:
        adapter.check(adapters.place_of(name, module), module)
    plan = (
        sequence.read(net) if sequence.is_sequence(net) and output is None else tracing.read(net, example_input, output)
    )
    originals = {name: plan.neurons[name] for name in reachable_neurons(plan)}
    described = {
        name: adapters.adapter_for(module).described(adapters.place_of(name, module), module, learnable_leak)
        for name, module in originals.items()
    }
    parts = blocks(plan, list(originals), described, max_pooling)
    if feedback_weights == "separate":
        parts.connections[:] = [Connection(separated(c.module), c.source, c.target) for c in parts.connections]
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
        time_axis=parts.time_axis,
        driven=parts.driven,
        read=parts.read,
    )
    of_the_original = set(net.modules())
    over_time = plan.steps is not None or any(adapters.adapter_for(m).runs_over_time(m) for m in originals.values())
    if example_input is not None and model.stem not in of_the_original:
        model.stem.axes = example_input.dim() - 1 - over_time  # type: ignore[assignment]
    for module in model.modules():
        if module not in of_the_original and not isinstance(module, SharedDropout):  # which has its dropout's mode
            module.training = net.training
    model.register_forward_pre_hook(Origin(net, model))
    notes = [*parts.notes, *adapters.differences(originals)]
    if over_time and not time_varying:
        axis = f" (axis {parts.time_axis} of the model's)" if parts.time_axis else ""
        notes.append(f"the input is that of one step, [batch, ...], with no time axis{axis} (unless time_varying=True)")
    if any(c.source == c.target for c in parts.connections):
        notes.append(
            "no feedback weakens a loop within a layer, so that recurrent layers settle slowly, the more so the longer "
            "they train, and the gradient is lost where they do not: watch the residual (EquilibriumMonitor, "
            "ep-plugin check) and give more steps, Relaxation(steps=...)"
        )
    if parts.readout is None:
        notes.append("the output is the last neuron's equilibrium, one tensor [batch, ...], and not spikes over time")
    if notes:
        warnings.warn("converted: " + "; ".join(notes), ConversionWarning, stacklevel=2)
    return model


_SCRIPTED = "is a ScriptModule, whose Python code is gone; convert the module that it was made of"


def _check_example(example: Tensor | None) -> None:
    """Refuses what cannot be an input."""
    if example is None:
        return
    if not isinstance(example, Tensor):
        raise TypeError(f"example_input is a {type(example).__name__}; expected a tensor")
    if not example.is_floating_point():
        raise TypeError(f"example_input has the type {example.dtype}; expected floating point (x.float())")
    if example.dim() < 2 or example.numel() == 0:
        raise ValueError(
            f"example_input has the shape {list(example.shape)}; expected one or more samples, as the model takes them"
        )


def __getattr__(name: str) -> ModuleType:
    # What warnings advise to read: help(ep_plugin.conversion.snntorch) has the gain of every neuron.
    if name in adapters.LIBRARIES:
        return import_module(f"{__name__}.adapters.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
