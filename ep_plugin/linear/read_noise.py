"""Noise in what neurons read of their synapses."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ep_plugin.linear.base import LinearMap, Tensors, register_linear
from ep_plugin.validation import chosen, not_negative


class ReadNoise(LinearMap, nn.Module):
    """Noise on what neurons read from their synapses: the sum, times 1 + std * N(0, 1), drawn again in every read.

    It acts in both phases, in training and in inference. What a weight learns from, the traces of its two neurons, has
    no noise.

    Args:
        std: of the factor; 0 or more.
        direction: "up" for what the target reads; the module then is the last of a connection. "down" for what the
            source reads of the feedback; the module then is the first.

    Raises:
        ValueError: std is below 0, or the direction is unknown.
        TypeError: std is not a number.

    Example:
        >>> up, down = ep.chips.ReadNoise(0.05, "up"), ep.chips.ReadNoise(0.05, "down")
        >>> noisy = ep.Connection(nn.Sequential(down, nn.Linear(32, 16), up), source=0, target=1)
    """

    def __init__(self, std: float, direction: Literal["up", "down"] = "up") -> None:
        super().__init__()
        self.std = not_negative("std", std)
        self.direction = chosen("direction", direction, {"up": "up", "down": "down"})

    def extra_repr(self) -> str:
        return f"std={self.std}, {self.direction}"

    def forward(self, x: Tensor) -> Tensor:
        return self._read(x) if self.direction == "up" else x

    def affine(self, tensors: Tensors, x: Tensor) -> Tensor:
        return self(x)

    def linear(self, tensors: Tensors, x: Tensor) -> Tensor:
        return self(x)

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        return self._read(y) if self.direction == "down" else y

    def pullback(self, tensors: Tensors, x: Tensor, y: Tensor, offset: bool = True) -> list[Tensor | None]:
        return []

    def _read(self, sums: Tensor) -> Tensor:
        return sums * torch.randn_like(sums).mul_(self.std).add_(1)


def _itself(module: ReadNoise) -> ReadNoise:
    return module


register_linear(ReadNoise, _itself)
