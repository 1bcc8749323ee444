"""Trained networks as plain spiking nets of snnTorch or Norse, whose loop over steps runs forward only.

With the weak feedback that networks are trained with, their settled states are the rates of integrate-and-fire
neurons in a forward loop with:

- neurons with leak 1, whose threshold is subtracted after a spike, so that no charge is lost;
- membranes that start at half the threshold, so that a rate is rounded to the nearest number of spikes, and
  not down;
- a readout that sees the mean of the spikes.

A strong feedback, recurrent weights, or weights that have grown in a long training change the settled states. With
`feedback=True` the net has the feedback too, through separate modules (transposed linear layers and convolutions) from
the last step's spikes. Its readout then sees the mean without the first quarter of the steps, in which the feedback
arrives.

The loop of the original model has another leak and another reset, and the trained weights are not made for it. Test
errors of `pretrained` nets at 8 steps, all images (`examples/results/deployment.csv`):

| network | settled | this loop | with feedback | the original's (leak .5) |
|---|---|---|---|---|
| MNIST, average pooling | 0.67 % | 0.70 % | 0.69 % | 52 % |
| MNIST, max pooling | 0.63 % | 0.70 % | not possible | 6.7 % |
| FashionMNIST, average pooling | 8.47 % | 9.52 % | 8.73 % | 90 % |
| FashionMNIST, max pooling | 8.41 % | 8.40 % | not possible | 64 % |

The result is a `torch.fx.GraphModule`: modules of PyTorch and of the library, and the loop written out step by step
(`print(net.code)`). It needs nothing of this package, and neither does the file that `torch.save(net)` writes.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ep_plugin.deployment.copies import without_weight_hooks
from ep_plugin.deployment.loop import Loop, Neuron, Tracer, edges
from ep_plugin.dynamics.layer import Layer
from ep_plugin.extras import needed_by
from ep_plugin.network import ConvergentNetwork
from ep_plugin.validation import count
from ep_plugin.validation import input_shape as input_shape_of

# Feedback from which on the settled states are noticeably other ones than forward rates: a warning.
_STRONG = 0.1

# Norse's neurons leak: this is the share of the membrane that they lose in a step, and the unit of the membrane.
_NORSE_LEAK = 2.0**-20


def to_snntorch(
    model: ConvergentNetwork,
    num_steps: int = 16,
    spikes: bool = False,
    feedback: bool = False,
    input_shape: Sequence[int] | None = None,
) -> fx.GraphModule:
    """Writes the network as a plain snnTorch net that runs forward for `num_steps` steps.

    Its neurons are `snn.Leaky(beta=1.0)`, which reset by subtraction; their membranes start at half the threshold.
    Everything is a copy, in evaluation mode and float32. Max pooling (and any other module between neurons that is only
    piecewise linear) sees the running mean of its input, so that its winners are those of the rates. Concatenations are
    sums, as in the network.

    Args:
        model: the network.
        num_steps: how many steps the loop takes, 1 or more. If `model.time_varying`, the number of frames; each step
            sees one of them, and the net refuses any other number.
        spikes: the net also returns the spikes.
        feedback: the net has the network's feedback too, one step late. It needs more modules and more steps.
        input_shape: of one input, without the batch. The feedback's modules need it if the first module does not
            determine it.

    Returns:
        A module: input `[B, ...]` (or frames, along `model.time_axis`) -> output `[B, ...]`, the readout of the
        spikes' mean over the steps. With `spikes` a pair: the output, and the spikes of each layer
        `[num_steps, B, ...]`. It runs, saves and exports without this package. To train it further give its
        neurons a surrogate: `lif.spike_grad = snntorch.surrogate.atan()`, with which they do not pickle.

    Raises:
        ValueError: a layer or connection has no counterpart in a forward loop; the message gives the reason and the
            way out.
        TypeError: `model` is not a `ConvergentNetwork`, or `num_steps` is not a whole number.

    Example:
        >>> forward_net = ep.to_snntorch(model, num_steps=8)
        >>> torch.save(forward_net, "net.pt")
    """
    import snntorch as snn
    from snntorch import surrogate

    def neuron(threshold: Tensor) -> nn.Module:
        # (Surrogates with a slope are closures, which do not pickle.) The subtraction comes a step late in the
        # membrane and in time for the spikes; with reset_delay=False a membrane that is still above the threshold
        # after it needs twice the threshold to fire.
        return snn.Leaky(beta=1.0, threshold=threshold, spike_grad=surrogate.Heaviside.apply)

    return _written_out(
        model, num_steps, spikes, _shapes(model, spikes, feedback, input_shape), neuron, charged_by_hand=True
    )


def to_norse(
    model: ConvergentNetwork,
    num_steps: int = 16,
    spikes: bool = False,
    feedback: bool = False,
    input_shape: Sequence[int] | None = None,
) -> fx.GraphModule:
    """Writes the network as a plain Norse net that runs forward for `num_steps` steps.

    Its neurons are `LIFBoxCell` with the subtract reset. Norse has no neuron without a leak, so the leak is 2^-20 of
    the membrane per step, which is also the unit of the thresholds: `dt * tau_mem_inv` is both the leak and the gain
    of the input. `v_leak`, at which Norse starts membranes, is half the threshold. The rest is as in
    `to_snntorch`.

    Args:
        model: the network.
        num_steps: as in `to_snntorch`.
        spikes: as in `to_snntorch`.
        feedback: as in `to_snntorch`.
        input_shape: as in `to_snntorch`.

    Returns:
        A module, as in `to_snntorch`.

    Raises:
        ValueError: as `to_snntorch`.
        TypeError: as `to_snntorch`.
        ModuleNotFoundError: Norse is not installed.

    Example:
        >>> forward_net = ep.to_norse(model, num_steps=8)
    """
    with needed_by("to_norse"):
        import norse.torch as norse
        from norse.torch.functional.reset import reset_subtract

    def neuron(threshold: Tensor) -> nn.Module:
        # A module in place of LIFBoxParameters, as SNNCell allows: those do not pickle, nor do they follow the
        # net to another device.
        dt, unit, p = 0.001, threshold * _NORSE_LEAK, nn.Module()
        constants = {"tau_mem_inv": torch.tensor(_NORSE_LEAK / dt), "v_th": unit, "v_leak": unit / 2}
        constants["v_reset"] = torch.zeros(())  # without effect, as the reset subtracts the threshold
        for name, value in constants.items():
            p.register_buffer(name, value)
        p.method, p.alpha, p.reset_method = "super", 100.0 / _NORSE_LEAK, reset_subtract  # type: ignore[assignment]
        return norse.LIFBoxCell(p, dt)

    return _written_out(
        model, num_steps, spikes, _shapes(model, spikes, feedback, input_shape), neuron, charged_by_hand=False
    )


def _shapes(
    model: ConvergentNetwork, spikes: bool, feedback: bool, given: Sequence[int] | None
) -> Sequence[Sequence[int]] | None:
    """Every layer's shape, where there is a feedback to be written out; after a look at what was given."""
    if not isinstance(model, ConvergentNetwork):
        raise TypeError(f"a {type(model).__name__} was given; expected a ConvergentNetwork, such as ep.convert(net)")
    if not isinstance(spikes, bool):
        raise TypeError(f"spikes is {spikes!r}; expected True or False")
    if not isinstance(feedback, bool):
        raise TypeError(f"feedback is {feedback!r}; expected True or False")
    if not feedback:
        return None
    shape = input_shape_of(model.stem, given, "to_snntorch(model, feedback=True, input_shape=(1, 28, 28))")
    like = next(model.parameters())
    with torch.no_grad():
        constant = model.variant(time_varying=False)
        return constant.system(torch.zeros(1, *shape, dtype=like.dtype, device=like.device)).shapes


def _written_out(
    model: ConvergentNetwork,
    num_steps: int,
    spikes: bool,
    shapes: Sequence[Sequence[int]] | None,
    neuron: Neuron,
    charged_by_hand: bool,
) -> fx.GraphModule:
    num_steps = count("num_steps", num_steps)
    require_forward(model, shapes is not None)
    model = without_weight_hooks(model)
    with torch.no_grad():
        loop = Loop(model, num_steps, spikes, shapes, neuron, charged_by_hand)
        try:
            graph: Any = Tracer().trace(loop)
            graph._tracer_cls = None  # files would ask for it
        except (fx.proxy.TraceError, RuntimeError, TypeError) as error:
            raise ValueError(
                "the network cannot be written out: what stands before the first neuron or behind the last one, or "
                f"between neurons, asks for the sizes or values of its input ({error}). Put that into a module of its "
                "own (nn.Module) in the model before you convert it"
            ) from error
    net = fx.GraphModule(loop, graph, "SpikingNet")
    net.graph.eliminate_dead_code()
    net.recompile()
    return net.eval()


def require_forward(model: ConvergentNetwork, feedback: bool = False) -> None:
    """Refuses what a forward loop cannot run, and warns of a feedback that it would miss.

    Raises:
        ValueError: a layer or connection has no counterpart in a forward loop, with the reason and the way out.
    """
    layers: list[Layer] = list(model.layers)  # type: ignore[arg-type]
    for l, layer in enumerate(layers):
        projection = layer.activation.projection
        if projection is None or projection[0] != 0 or not projection[1] < float("inf"):
            raise ValueError(
                f"layer {l} has no counterpart in a forward loop: the rate of an integrate-and-fire neuron is the hard "
                'sigmoid of its drive (or relu6), and not its activation. Convert with activation="hard_sigmoid", and '
                "train with it"
            )
    if feedback:
        return
    for c in edges(model):
        if model.levels[c.target] <= model.levels[c.source]:
            raise ValueError(
                f"the connection {c.source} -> {c.target} has no counterpart in a forward loop: its layers stand on "
                "one level or it leads back, so that it acts in both directions at full strength, and the settled "
                "states are not forward rates. Write both directions out, by feedback=True; or leave the recurrent "
                "weights out (snn.Leaky in place of snn.RLeaky) and train without them"
            )
    strengths = model.settings.between(max(model.levels))
    if strengths and max(strengths) > _STRONG:
        warnings.warn(
            f"the network's feedback is {max(strengths):g}, and a forward loop has none: its rates are not the states "
            f"that the network settles at. Write it out too, by feedback=True, or train with a feedback of {_STRONG:g} "
            "or less (the default is 0.02)",
            stacklevel=4,
        )
