"""Modules that a conversion puts between neurons: each is linear (or affine) in the states."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Scale(nn.Module):
    """The input times a fixed number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = float(factor)

    def extra_repr(self) -> str:
        return f"{self.factor:g}"

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class FixedNormalisation(nn.Module):
    """A batch normalisation as the affine map that it is in evaluation, always:

        y = weight * (x - running_mean) / sqrt(running_var + eps) + bias

    Its statistics stay what they are, also in training: the batch's own would couple the samples
    and change with every step of a relaxation, and there is no energy of that. Its weight and bias
    are shared, and trained.

    Args:
        norm: the batch normalisation, of any number of dimensions.
        offset: False leaves out what does not depend on x.

    Raises:
        ValueError: `norm` keeps no running statistics.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, offset: bool = True) -> None:
        super().__init__()
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError(
                f"{type(norm).__name__} has no running statistics, so that it is not a fixed map; expected "
                "track_running_stats=True"
            )
        self.norm, self.offset = norm, offset

    def effective(self) -> tuple[Tensor, ...]:
        """The factor and, if there is one, the offset of every channel, `[C]`."""
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = (norm.running_var + norm.eps).rsqrt()
        if norm.weight is not None:
            factor = factor * norm.weight
        if not self.offset:
            return (factor,)
        shift = -norm.running_mean * factor
        return factor, shift if norm.bias is None else shift + norm.bias

    def forward(self, x: Tensor) -> Tensor:
        return channelwise(self.effective(), x)


def channelwise(factor_and_offset: tuple[Tensor, ...], x: Tensor) -> Tensor:
    """x times a factor a channel, plus an offset a channel if there is one; x is `[B, C, ...]`."""
    shaped = [t.view(-1, *[1] * (x.dim() - 2)) for t in factor_and_offset]
    return x * shaped[0] if len(shaped) == 1 else torch.addcmul(shaped[1], x, shaped[0])


class SharedDropout(nn.Module):
    """Dropout between neurons: one mask for a forward pass, shared by all samples of the batch.

    All steps and phases that belong to the pass see the same network, so it has an energy.

    Args:
        dropout: an `nn.Dropout`, or `nn.Dropout1d`, `2d` or `3d`, which drop whole channels.
    """

    def __init__(self, dropout: nn.modules.dropout._DropoutNd) -> None:
        super().__init__()
        self.p = dropout.p
        self.channels = not isinstance(dropout, nn.Dropout)

    def extra_repr(self) -> str:
        return f"p={self.p}, channels={self.channels}"

    def mask(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """0 or 1 / (1 - p), to be multiplied with states of `shape` (without the batch)."""
        if not self.training:
            return like.new_ones(())
        own = (shape[0], *[1] * (len(shape) - 1)) if self.channels else tuple(shape)
        return F.dropout(torch.ones(1, *own, dtype=like.dtype, device=like.device), self.p)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask(x.shape[1:], x)


class SteadyMembrane(nn.Module):
    """What the membrane of a leaky integrator settles at: a gain times its input, plus an offset.

    Args:
        gain: a function of the constants, in their order.
        constants: tensors by their names. Parameters among them, and the offset if it is one, are
            shared, and trained.
        offset: where the membrane rests without input.
    """

    offset: Tensor | None

    def __init__(self, gain: Callable[..., Tensor], constants: dict[str, Tensor], offset: Tensor | None = None) -> None:
        super().__init__()
        self.function, self.names = gain, tuple(constants)
        for name, value in {**constants, "offset": offset}.items():
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        membrane = x * self.function(*(getattr(self, name) for name in self.names))
        return membrane if self.offset is None else membrane + self.offset
