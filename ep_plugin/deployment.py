"""Trained networks as plain spiking nets of snnTorch or Norse, whose loop over steps runs forward only.

With the weak feedback that networks are trained with, the states that they settle at are the rates of
integrate-and-fire neurons in a forward loop:

- neurons with leak 1, whose threshold is subtracted after a spike, so that no charge is lost;
- membranes that start at half the threshold, so that a rate is rounded to the nearest number of spikes, and
  not down;
- a readout that sees the mean of the spikes.

The loop that the original model came with has another leak and another reset, and the trained weights are not
made for it.

What is built is a `torch.fx.GraphModule`: modules of PyTorch and of the library, and the loop written out step
by step (`print(net.code)`). It needs nothing of this package, nor does the file that `torch.save(net)` writes.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ep_plugin.conversion.concatenation import Measuring
from ep_plugin.dynamics.layer import Layer
from ep_plugin.linear.concatenation import Placement
from ep_plugin.linear.connection import Connection
from ep_plugin.linear.modules import FixedNormalization, SharedDropout
from ep_plugin.network import ConvergentNetwork
from ep_plugin.validation import count

# Feedback from which on the settled states are noticeably other ones than forward rates: a warning.
_STRONG = 0.1

# Norse's neurons leak: this is the share of the membrane that they lose in a step, and the unit of the membrane.
_NORSE_LEAK = 2.0**-20

Neuron = Callable[[Tensor], nn.Module]


def to_snntorch(model: ConvergentNetwork, num_steps: int = 16, spikes: bool = False) -> fx.GraphModule:
    """The network as a plain snnTorch net that runs forward for `num_steps` steps.

    Its neurons are `snn.Leaky(beta=1.0)`, which reset by subtraction; their membranes start at half the
    threshold. Everything is a copy, in evaluation mode and float32. Max pooling (and any other module between
    neurons that is linear only piece by piece) sees the running mean of what it is given, so that its winners are
    those of the rates. Concatenations are sums, as in the network.

    Args:
        model: the network.
        num_steps: how many steps the loop takes, 1 or more. If `model.time_varying`, the number of frames, of
            which each step sees one.
        spikes: the net also returns the spikes.

    Returns:
        A module: input `[B, ...]` (or frames, along `model.time_axis`) -> output `[B, ...]`, the readout of the
        spikes' mean over the steps. With `spikes` a pair: the output, and of each layer its spikes
        `[num_steps, B, ...]`. It runs, saves and exports without this package. To train it further give its
        neurons a surrogate: `lif.spike_grad = snntorch.surrogate.atan()`, with which they do not pickle.

    Raises:
        ValueError: a layer or connection has no counterpart in a forward loop, with the reason and the way out.
        TypeError: `model` is no `ConvergentNetwork`, or `num_steps` no whole number.

    Example:
        >>> net = to_snntorch(model, num_steps=8)
        >>> torch.save(net, "net.pt")
    """
    import snntorch as snn
    from snntorch import surrogate

    def neuron(threshold: Tensor) -> nn.Module:
        # (Surrogates with a slope are closures, which do not pickle.) The subtraction comes a step late in the
        # membrane and in time for the spikes; with reset_delay=False a membrane that is still above the threshold
        # after it needs twice the threshold to fire.
        return snn.Leaky(beta=1.0, threshold=threshold, spike_grad=surrogate.Heaviside.apply)

    return _written_out(model, num_steps, spikes, neuron, charged_by_hand=True)


def to_norse(model: ConvergentNetwork, num_steps: int = 16, spikes: bool = False) -> fx.GraphModule:
    """The network as a plain Norse net that runs forward for `num_steps` steps.

    Its neurons are `LIFBoxCell` with the subtract reset. Norse has no neuron without a leak, so theirs is 2^-20 of
    the membrane in a step, which is also the unit of their thresholds: `dt * tau_mem_inv` is both the leak and the
    gain of the input. Their `v_leak`, at which Norse has membranes start, is half the threshold. All else is
    as in `to_snntorch`.

    Args:
        model: the network.
        num_steps: as in `to_snntorch`.
        spikes: as in `to_snntorch`.

    Returns:
        A module, as in `to_snntorch`.

    Raises:
        ValueError: as `to_snntorch`.
        TypeError: as `to_snntorch`.

    Example:
        >>> net = to_norse(model, num_steps=8)
    """
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

    return _written_out(model, num_steps, spikes, neuron, charged_by_hand=False)


def _written_out(
    model: ConvergentNetwork, num_steps: int, spikes: bool, neuron: Neuron, charged_by_hand: bool
) -> fx.GraphModule:
    if not isinstance(model, ConvergentNetwork):
        raise TypeError(f"a {type(model).__name__} was given; expected a ConvergentNetwork, such as ep.convert(net)")
    count("num_steps", num_steps)
    _check(model)
    with torch.no_grad():
        loop = _Loop(model, num_steps, spikes, neuron, charged_by_hand)
        try:
            graph: Any = _Tracer().trace(loop)
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


def _check(model: ConvergentNetwork) -> None:
    layers: list[Layer] = list(model.layers)  # type: ignore[arg-type]
    for l, layer in enumerate(layers):
        projection = layer.activation.projection
        if projection is None or projection[0] != 0 or not projection[1] < float("inf"):
            raise ValueError(
                f"layer {l} has no counterpart in a forward loop: the rate of an integrate-and-fire neuron is the hard "
                'sigmoid of its drive (or relu6), and not its activation. Convert with activation="hard_sigmoid", and '
                "train with it"
            )
    for c in _edges(model):
        if model.levels[c.target] <= model.levels[c.source]:
            raise ValueError(
                f"the connection {c.source} -> {c.target} has no counterpart in a forward loop: its layers stand on "
                "one level or it leads back, so that it acts in both directions at full strength, and the settled "
                "states are not forward rates. ep_plugin.to_nir(model) writes both directions; or leave the recurrent "
                "weights out (snn.Leaky in place of snn.RLeaky) and train without them"
            )
    feedback = model.settings.between(max(model.levels))
    if feedback and max(feedback) > _STRONG:
        warnings.warn(
            f"the network's feedback is {max(feedback):g}, and a forward loop has none: its rates are not the states "
            f"that the network settles at. Train with a feedback of {_STRONG:g} or less (the default is 0.02), and "
            "compare the outputs",
            stacklevel=4,
        )


def _edges(model: ConvergentNetwork) -> list[Connection]:
    return list(model.connections)  # type: ignore[arg-type]


class _Loop(nn.Module):
    """The loop as one would write it by hand, of copies of the network's modules."""

    def __init__(
        self, model: ConvergentNetwork, num_steps: int, spikes: bool, neuron: Neuron, charged_by_hand: bool
    ) -> None:
        super().__init__()
        plain = _Plain()
        layers: list[Layer] = list(model.layers)  # type: ignore[arg-type]
        self.num_steps, self.spikes, self.charged_by_hand = num_steps, spikes, charged_by_hand
        self.frames = model.time_axis if model.time_varying else None
        self.driven, self.read = model.driven, model.read
        self.upward = sorted(range(len(layers)), key=lambda l: (model.levels[l], l))
        # A spike stands for the largest state, which a neuron has if it fires in every step.
        self.most = [layer.activation.maximum for layer in layers]
        self.ends = [(c.source, c.target) for c in _edges(model)]
        self.stem = plain(model.stem)
        self.layers = nn.ModuleList(
            neuron(layer.theta.detach().float().clone() * most) for layer, most in zip(layers, self.most, strict=True)
        )
        parts = [_split(c.module) for c in _edges(model)]
        self.connections = nn.ModuleList(plain(nn.Sequential(*linear)) for linear, _ in parts)
        # What is linear only piece by piece, and what follows it.
        self.pieces = nn.ModuleList(plain(nn.Sequential(*rest)) for _, rest in parts)
        self.readout = plain(model.readout)

    def forward(self, x: Any) -> Any:
        drives = self._drives(x) if self.frames is None else []
        layers = range(len(self.layers))
        memory: list[Any] = [None for _ in layers]
        fired: list[list[Any]] = [[] for _ in layers]
        running: list[Any] = [None for _ in self.ends]
        given: list[Any] = [None for _ in self.ends]
        for step in range(1, self.num_steps + 1):
            if self.frames is not None:
                drives = self._drives(x.select(self.frames, step - 1))
            for l in self.upward:
                terms = [drive for at, drive in zip(self.driven, drives, strict=True) if at == l]
                for c, (source, target) in enumerate(self.ends):
                    if target == l:
                        sent = self.connections[c](self._state(source, fired[source][-1]))
                        if len(self.pieces[c]):  # type: ignore[arg-type]
                            running[c] = sent if running[c] is None else running[c] + sent
                            total = self.pieces[c](running[c] / step) * step
                            sent, given[c] = total if given[c] is None else total - given[c], total
                        terms.append(sent)
                current = _sum(terms)
                if memory[l] is None and self.charged_by_hand:
                    neuron: Any = self.layers[l]
                    memory[l] = torch.ones_like(current) * (neuron.threshold / 2)
                spike, memory[l] = self.layers[l](current, memory[l])
                fired[l].append(spike)
        output = self.readout(*(self._state(l, _sum(fired[l]) / self.num_steps) for l in self.read))
        return (output, tuple(torch.stack(own) for own in fired)) if self.spikes else output

    def _drives(self, x: Any) -> list[Any]:
        made = self.stem(x)
        return [made] if len(self.driven) == 1 else [made[k] for k in range(len(self.driven))]

    def _state(self, l: int, spikes: Any) -> Any:
        return spikes if self.most[l] == 1 else spikes * self.most[l]


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


class _Plain:
    """Copies of modules with nothing in them that only training needs. What shares weights still does."""

    def __init__(self) -> None:
        self._memo: dict[int, Any] = {}

    def __call__(self, module: nn.Module) -> nn.Module:
        # A connection's fixed normalization is the ordinary one in evaluation, its dropout is none.
        copied = _replaced(copy.deepcopy(module, self._memo))
        for m in copied.modules():
            if parametrize.is_parametrized(m):
                _settle_parametrizations(m)
        return copied.eval().float()


def _settle_parametrizations(module: Any) -> None:
    """Weights as they have become, as ordinary parameters.

    (`remove_parametrizations` would change the class, which the copy shares with the original.)
    """
    made = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in made.items():
        module.register_parameter(name, nn.Parameter(value))


def _replaced(module: nn.Module) -> nn.Module:
    if isinstance(module, SharedDropout):
        return nn.Identity()
    if isinstance(module, FixedNormalization):
        return module.norm if module.offset else _without_offset(module.norm)
    if isinstance(module, Measuring):
        return _replaced(module[0])
    if isinstance(module, Placement):
        return _padding(module)
    for name, child in list(module.named_children()):
        setattr(module, name, _replaced(child))
    return module


def _without_offset(norm: Any) -> nn.Module:
    """A batch normalization that only multiplies."""
    norm = copy.deepcopy(norm)
    norm.running_mean.zero_()
    if norm.bias is not None:
        norm.bias.zero_()
    return norm


def _padding(placement: Placement) -> nn.Module:
    """Zeros around one part of a concatenation, where the others are."""
    joined = placement.concatenation
    found = {(len(shape), joined.axis(shape), *place) for shape, place in joined._margins[placement.part].items()}
    if len(found) != 1:
        raise ValueError(
            f"{joined.name} cannot be written out: the sizes of what it joins are not known, or have changed from one "
            "input to the next. Convert the model, call it once (model(x)) with an input of the size that it is for, "
            "and write it out then"
        )
    dimensions, axis, before, after = found.pop()
    behind = 2 * (dimensions - 1 - axis)
    kinds: list[Any] = [nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d]
    if behind > 4:
        raise ValueError(f"{joined.name} cannot be written out: it joins channels of three-dimensional images")
    return kinds[behind // 2]((*[0] * behind, before, after), 0.0)


class _Tracer(fx.Tracer):
    """Modules of PyTorch, of the libraries and of the user stay modules; those of this package become what they do."""

    proxy_buffer_attributes = True  # a threshold stays the neuron's own

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(type(inner).__module__.startswith("ep_plugin.") for inner in m.modules())
