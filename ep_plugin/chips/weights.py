"""Weights of few bits, learned with the rounding in place."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ep_plugin.linear.separate import WEIGHTED
from ep_plugin.validation import count

ROUNDED = (*WEIGHTED, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class QuantizedWeight(nn.Module):
    """A parametrization that rounds a weight to 2^bits - 1 levels, evenly spaced around 0, with one step per module.

        w_q = s * round(w / s),    s = max |w| / (2^(bits - 1) - 1)

    The gradient of w_q is passed to w unchanged (straight through). PyTorch's own fake quantization computes both.

    Args:
        bits: of a weight with its sign; from 2 to 16.

    Raises:
        ValueError: bits is out of its range.
        TypeError: bits is not a whole number.

    Example:
        >>> from torch.nn.utils import parametrize
        >>> layer = nn.Linear(64, 32)
        >>> layer = parametrize.register_parametrization(layer, "weight", ep.chips.QuantizedWeight(8))
    """

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        self.bits = count("bits", bits)
        if not 2 <= self.bits <= 16:
            raise ValueError(f"bits is {self.bits}; expected 2 to 16")
        self.levels = 2 ** (self.bits - 1) - 1

    def extra_repr(self) -> str:
        return f"bits={self.bits}"

    def forward(self, weight: Tensor) -> Tensor:
        largest = weight.detach().abs().amax().float()
        step = torch.where(largest > 0, largest / self.levels, 1.0)
        zero = torch.zeros((), dtype=torch.int32, device=weight.device)
        # No level is out of reach of the largest weight, but its last bit: one more, so that no gradient is cut off.
        return torch.fake_quantize_per_tensor_affine(weight, step, zero, -self.levels - 1, self.levels + 1)


def quantize_weights(net: nn.Module, bits: int = 8) -> nn.Module:
    """Rounds the weights of all linear layers and convolutions, transposed too; biases stay as they are.

    It rounds the effective weights, after other parametrizations. Feedback uses the same rounded weights, and
    optimizers train the full ones. Call it before `convert`, or on a converted network.

    Args:
        net: changed in place.
        bits: of a weight with its sign; from 2 to 16.

    Returns:
        The net.

    Raises:
        ValueError: bits is out of its range, or the weights are quantized already.
        TypeError: bits is not a whole number.

    Example:
        >>> model = ep.convert(ep.chips.quantize_weights(net, bits=8))
    """
    QuantizedWeight(bits)  # its checks come before anything is changed
    for name, module in net.named_modules():
        if isinstance(module, ROUNDED):
            if quantization(module) is not None:
                raise ValueError(f"the weights of {name!r} are quantized already; quantize a net once")
            parametrize.register_parametrization(module, "weight", QuantizedWeight(bits))
    return net


def quantization(module: nn.Module) -> QuantizedWeight | None:
    """How the weight is rounded; None if it is not."""
    if not parametrize.is_parametrized(module, "weight"):
        return None
    own = module.parametrizations["weight"]  # type: ignore[index]
    return next((p for p in own if isinstance(p, QuantizedWeight)), None)
