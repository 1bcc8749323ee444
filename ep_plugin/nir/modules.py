"""The modules that nodes of NIR become: modules of PyTorch, and integrate-and-fire neurons of snnTorch.

A neuron settles at the rate clip(gain * drive / (v_threshold - rest), 0, 1), without its leak and its reset:

| node | rest | gain |
|---|---|---|
| IF | v_reset | r |
| LIF | v_leak | r, its steady membrane's |
| CubaLIF | v_leak | w_in r |

The value that a library writes as r depends on how it counts time. snnTorch and Lava add the input to the membrane in
every step of dt = 1e-4, and write r = tau / dt: there the gain is r dt / tau = 1 instead of r, as it is for the
same net in `convert`. If you give a `dt`, the gain is always r dt / tau.
"""

from typing import Any

import nir
import numpy as np
import snntorch as snn
import torch
from torch import Tensor, nn

from ep_plugin.linear.base import register_linear
from ep_plugin.nir.feedback import numbers
from ep_plugin.nir.flat import NEURONS

_STEP = 1e-4  # of snnTorch and Lava
_INTEGRATORS = (nir.LI, nir.CubaLI)

_REFUSED: dict[type[nir.NIRNode], str] = {
    nir.Threshold: "it is a step, which has no slope to settle on, and no reset that would make it a rate. Use an IF "
    "or LIF node in its place",
    nir.Delay: "it moves spikes in time, and a network that settles has rates, which do not depend on it. Leave it out",
    nir.I: "it never settles, since nothing leaks from it; only behind the last neurons it may stand, where it gives "
    "what it grows by in a step. Use an LI node in its place",
}


class Elementwise(nn.Module):
    """The input times a number for each entry, plus another one.

    Args:
        scale: broadcasts against the input, `[B, ...]`.
        offset: the same.
        learned: the numbers are parameters.
    """

    scale: Tensor
    offset: Tensor | None

    def __init__(self, scale: Tensor, offset: Tensor | None = None, learned: bool = False) -> None:
        super().__init__()
        for name, value in (("scale", scale), ("offset", offset)):
            if learned and value is not None:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale if self.offset is None else x * self.scale + self.offset


register_linear(Elementwise)


def module_for(place: str, node: Any, dt: float | None, is_readout: bool) -> nn.Module:
    """The module of a node that is no neuron.

    Raises:
        ValueError: there is none, with the place, the reason and a way out.
    """
    if isinstance(node, nir.I) and is_readout:
        return _elementwise(place, node.r, 0.0)
    if type(node) in _REFUSED:
        raise ValueError(f"{place} cannot be converted: {_REFUSED[type(node)]}")
    try:
        if isinstance(node, (nir.Affine, nir.Linear)):
            return _dense(node)
        if isinstance(node, nir.Conv1d):
            return _convolution(nn.Conv1d, node)
        if isinstance(node, nir.Conv2d):
            return _convolution(nn.Conv2d, node)
        if isinstance(node, (nir.SumPool2d, nir.AvgPool2d)):
            kernel, stride, padding = (_sizes(v, 2) for v in (node.kernel_size, node.stride, node.padding))
            divisor = 1 if isinstance(node, nir.SumPool2d) else None
            return nn.AvgPool2d(kernel, stride, padding, divisor_override=divisor)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"{place} cannot be converted: {error}") from error
    if isinstance(node, nir.Flatten):  # which does not count the batch
        start, end = (int(d) + (int(d) >= 0) for d in (node.start_dim, node.end_dim))
        return nn.Flatten(start, end)
    if isinstance(node, nir.Scale):
        return Elementwise(tensor(node.scale), learned=True)
    if isinstance(node, _INTEGRATORS):
        return _elementwise(place, _gain(node, dt), node.v_leak)
    raise ValueError(
        f"{place} cannot be converted: its kind is not known. Expected IF, LIF, CubaLIF, LI, CubaLI, I, Affine, "
        "Linear, Conv1d, Conv2d, SumPool2d, AvgPool2d, Flatten, Scale, and graphs of them"
    )


def neuron_for(place: str, node: Any, dt: float | None, recurrent: nn.Module | None) -> nn.Module:
    """The neuron of a node, with the gain in its threshold.

    Raises:
        ValueError: it would never fire, or always.
    """
    gain = _gain(node, dt)
    rest = node.v_reset if isinstance(node, nir.IF) else node.v_leak
    threshold = numbers(node.v_threshold) - numbers(rest)
    name = "v_reset" if isinstance(node, nir.IF) else "v_leak"
    _positive(place, f"v_threshold - {name}", threshold)
    _positive(place, "a gain (of r, tau and w_in)", gain)
    constants: dict[str, Any] = {"beta": 1.0, "threshold": tensor(threshold / gain), "init_hidden": True}
    if recurrent is None:
        return snn.Leaky(**constants)
    neuron = snn.RLeaky(all_to_all=True, linear_features=1, **constants)
    neuron.recurrent = recurrent
    return neuron


def is_leaky(node: nir.NIRNode) -> bool:
    """Whether it has a leak, which a convergent neuron has not."""
    return isinstance(node, NEURONS) and not isinstance(node, nir.IF)


def tensor(value: object) -> Tensor:
    """A copy, in PyTorch's default type."""
    return torch.from_numpy(np.array(numbers(value))).to(torch.get_default_dtype())


def _gain(node: Any, dt: float | None) -> np.ndarray:
    """What a steady input is multiplied with before it meets the threshold."""
    r = numbers(node.r).astype(np.float64)
    if isinstance(node, (nir.IF, nir.I)):
        return r
    tau = numbers(node.tau if isinstance(node, (nir.LIF, nir.LI)) else node.tau_mem)
    with np.errstate(all="ignore"):  # what is not finite is refused later
        a_step = r * (_STEP if dt is None else dt) / tau
    a_step = np.where(np.isclose(a_step, 1, rtol=1e-4), 1.0, a_step)
    gain = r if dt is None and not bool((a_step == 1).all()) else a_step
    return gain if isinstance(node, (nir.LIF, nir.LI)) else gain * numbers(node.w_in)


def _elementwise(place: str, gain: object, rest: object) -> nn.Module:
    scale, offset = tensor(gain), tensor(rest)
    _positive(place, "a gain (of r, tau and w_in)", numbers(gain))
    if bool((scale == 1).all()) and not bool(offset.any()):
        return nn.Identity()
    return Elementwise(scale, offset if bool(offset.any()) else None)


def _dense(node: Any) -> nn.Module:
    weight = tensor(node.weight)
    if weight.dim() != 2:
        raise ValueError(f"its weight has the shape {list(weight.shape)}; expected [outputs, inputs]")
    bias = tensor(node.bias) if isinstance(node, nir.Affine) else None
    return _filled(nn.Linear(weight.shape[1], weight.shape[0], bias is not None), weight, bias)


def _convolution(kind: Any, node: Any) -> nn.Module:
    weight, bias = tensor(node.weight), None if node.bias is None else tensor(node.bias)
    axes, groups = weight.dim() - 2, int(node.groups)
    stride, padding, dilation = (_sizes(v, axes) for v in (node.stride, node.padding, node.dilation))
    channels = (weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]))
    return _filled(kind(*channels, stride, padding, dilation, groups, bias is not None), weight, bias)


def _filled(module: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    for name, value in (("weight", weight), ("bias", bias)):
        own = getattr(module, name)
        if value is None:
            continue
        if own.shape != value.shape:
            raise ValueError(f"its {name} has the shape {list(value.shape)}; expected {list(own.shape)}")
        own.data = value
    return module


def _sizes(value: object, axes: int) -> Any:
    """A size as libraries write it: a number, one an axis, or a word."""
    if isinstance(value, (str, bytes)):
        return value.decode() if isinstance(value, bytes) else value
    found = [int(n) for n in numbers(value).ravel()]
    return tuple(found * axes if len(found) == 1 else found)


def _positive(place: str, what: str, values: np.ndarray) -> None:
    wrong = values[~(np.isfinite(values) & (values > 0))]
    if wrong.size:
        raise ValueError(
            f"{place} cannot be converted: {what} is {wrong.ravel()[0]:g}; expected finite numbers above 0"
        )
