"""Existing models in, convergent networks out."""

import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ep_plugin.conversion import adapters, outputs, sequence, tracer, tracing
from ep_plugin.conversion.adapters import LearnableLeak, Neuron
from ep_plugin.conversion.blocks import blocks, reachable_neurons
from ep_plugin.conversion.faithfulness import compare
from ep_plugin.conversion.keeping import require_nothing_kept
from ep_plugin.conversion.origin import Origin
from ep_plugin.dynamics.activations import Activation, ActivationName, Elementwise, as_activation
from ep_plugin.dynamics.encoders import Encoder, EncoderName
from ep_plugin.dynamics.layer import Layer
from ep_plugin.dynamics.relaxation import Observed, Relaxation
from ep_plugin.estimators.estimator import GradientEstimator
from ep_plugin.linear.connection import Connection
from ep_plugin.linear.separate import separated
from ep_plugin.network import ConvergentNetwork
from ep_plugin.validation import chosen

MAX_POOLING = {"keep": "keep it", "average": "average pooling in its place"}
FEEDBACK_WEIGHTS = {"tied": "the forward weights", "separate": "weights of their own"}
LEARNABLE_LEAK = {"refuse": "an error", "freeze": "they stay as they are"}


class ConversionWarning(UserWarning):
    """Says what a converted model no longer shares with the original.

    Example:
        >>> import warnings
        >>> warnings.simplefilter("ignore", ep.ConversionWarning)
    """


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
    """Converts a snnTorch or Norse model to a convergent network that shares its parameters.

    What is computed from the input alone becomes the stem, everything between neurons becomes the connections, and
    what the output computes from the neurons' spikes becomes the readout. The input may drive any neurons, and the
    output may read any. One `ConversionWarning` lists what becomes different (leak, reset, the output neuron).

    The network shares the model's parameters: after training, `net.state_dict()` holds the trained values under the
    original names, and what `net.load_state_dict` loads is used here too. The converted model's own `state_dict` has
    other names (`stem.0.weight`), and the original does not load it.

    A model with its own `forward` is traced: a loop over steps becomes the relaxation, membranes that are passed by
    hand are left out (a leak or a reset by hand too; what else is done to them is refused), and sums of signals
    become skip connections (in the energy, so they feed back too). A record over time is the same signal at every
    step, so reducing, slicing or permuting the record gives that signal. A model that reads its input step by step
    (`x[t]`, `x[:, t]`, `for x_t in x.unbind(1)`) takes the input of one step, `[B, ...]`. With `time_varying=True`
    it takes all steps, along the axis where the model has them.

    If the model has several outputs, the network returns the first of those that depend on the most neurons; `output`
    chooses another. The model itself is not changed. Only what `net(x)` calls is converted.

    Modules between neurons must be linear or piecewise linear (max pooling, ReLU, ReLU6, LeakyReLU, Hardtanh). Batch
    normalization between neurons is the fixed affine map of its running statistics, and its weight and bias are
    trained; dropout between neurons draws one mask per batch. In stem and readout both work as usual.

    Args:
        net: an `nn.Sequential`, a Norse `SequentialState`, or any module that calls neurons of these libraries with
            linear modules between them. The neurons, and how their constants are converted:
            `help("ep_plugin.conversion.snntorch")` and `help("ep_plugin.conversion.norse")`.
        encoder: what neurons send; see `ConvergentNetwork`.
        activation: of every layer; `ConvergentLeaky` and `ConvergentLIFBoxCell` keep their own.
        observe: what readout and contrasts see of a neuron; see `ConvergentNetwork`.
        feedback: strength of the feedback from a level to the one below; see `ConvergentNetwork`.
        relaxation: how the free phase settles.
        estimator: how a loss becomes gradients; `EquilibriumPropagation()` by default.
        max_pooling: what happens to max pooling between neurons. "keep" keeps it (it picks the winners of the free
            phase, so it is linear near a state); "average" puts average pooling in its place, with a warning.
        learnable_leak: "refuse" gives an error for learnable leaks; "freeze" leaves them as they are. The equilibrium
            does not depend on them.
        time_varying: the input changes over time, `[T, B, ...]`; see `ConvergentNetwork`.
        feedback_weights: "tied": the feedback uses the transposed forward weights. "separate": it uses separate
            weights, which start at random and learn by the same contrast (`ep_plugin.linear.separate`).
        example_input: an input of the model. Without it the sizes are unknown, and a `forward` that needs more sizes
            than a loop over all steps does is refused. Such a loop is then read for 37 and for 41 steps, so that what
            begins later is not seen.
        output: which of several outputs: an index, a key, or a tuple of these as a path.

    Returns:
        The network, in the modes (training or evaluation) of the model and its modules; `net.eval()` and `net.train()`
        count for it from its next call on. What is changed in the original later counts here too, or the network
        refuses to run and says what it does not follow: a module or parameter replaced, a neuron's new threshold, a
        hook on what it does not call.

    Raises:
        TypeError: `net` is not an `nn.Module`, or `example_input` is not a tensor of floating point numbers.
        ValueError: something cannot be converted (the message gives its name, the reason and the way out), the model
            has no neuron, or a neuron has no weights before it.

    Example:
        >>> net = nn.Sequential(nn.Linear(64, 32), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(32, 10))
        >>> model = ep.convert(net)
        >>> model(torch.rand(5, 64)).shape
        torch.Size([5, 10])
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
    while (wrapped := tracer.inside_wrapper(net)) is not None:
        net = wrapped
    if scripted := next((name for name, m in net.named_modules() if isinstance(m, torch.jit.ScriptModule)), None):
        raise ValueError(f"module {scripted!r} {_SCRIPTED}")
    if isinstance(net, torch.jit.ScriptModule):
        raise ValueError(f"the model {_SCRIPTED}")
    if any(p.is_complex() for p in (*net.parameters(), *net.buffers())):
        raise TypeError("the model's weights are complex, and neurons have real states; expected real weights")
    found = [(name, m, a) for name, m in net.named_modules() if (a := adapters.find_adapter(m)) is not None]
    if not found:
        raise ValueError(
            "the model has no neuron that is known; expected at least one of snnTorch's or Norse's, such as snn.Leaky, "
            "or one of your own, told of by ep_plugin.register_neuron"
        )
    for name, module, adapter in found:
        if is_parametrized(module) and type(module) not in adapters.REGISTERED:
            names = ", ".join(module.parametrizations)
            raise ValueError(
                f"{adapters.place_of(name, module)} has a parametrization ({names}), which no converted neuron has. "
                "Take it off (torch.nn.utils.parametrize.remove_parametrizations) and convert. A learnable threshold "
                "can be parametrized afterwards, in its layer i: "
                'register_parametrization(model.layers[i], "threshold", ...)'
            )
        adapter.check(adapters.place_of(name, module), module)
    plan = (
        sequence.read(net) if sequence.is_sequence(net) and output is None else tracing.read(net, example_input, output)
    )
    require_nothing_kept(plan)
    originals = {name: plan.neurons[name] for name in reachable_neurons(plan)}
    describing = {name: _describing(name, module, learnable_leak) for name, module in originals.items()}
    described = {name: describe() for name, describe in describing.items()}
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
        if module not in of_the_original:
            module.training = net.training
    model.origin = Origin(net, model, {name: (module, describing[name]) for name, module in originals.items()}, plan)
    notes = [*parts.notes, *adapters.differences(originals)]
    if (
        example_input is not None
        and max_pooling == "keep"
        and (where := _misread(model, net, example_input, over_time))
    ):
        notes.append(
            f"WRONGLY, as it seems: the original with its neurons at their rates gives something else, {where}. Write "
            "what is unusual there in plain steps or as a module of its own, and report it"
        )
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


def _describing(name: str, module: nn.Module, learnable_leak: LearnableLeak) -> Callable[[], Neuron]:
    """What tells, at any time, what a layer takes over of a neuron."""
    adapter = adapters.adapter_for(module)
    return lambda: adapter.described(adapters.place_of(name, module), module, learnable_leak)


def _misread(model: ConvergentNetwork, net: nn.Module, example: Tensor, over_time: bool) -> str | None:
    if over_time:
        example = example.select(model.time_axis, 0)
    another_batch = torch.cat([example, example[:1]])  # whose size has to make no difference
    return compare(model, net, another_batch).difference


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
    # What warnings advise to read: help("ep_plugin.conversion.snntorch") has the gain of every neuron.
    if name in adapters.LIBRARIES:
        return import_module(f"{__name__}.adapters.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
