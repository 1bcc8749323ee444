"""Modules that a conversion puts between neurons. Each is its own map: linear (or affine) in the states."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ep_plugin.linear.base import LinearMap, Tensors, register_all
from ep_plugin.tensors import writings


class Scale(LinearMap, nn.Module):
    """The input times a fixed number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = float(factor)

    def extra_repr(self) -> str:
        return f"{self.factor:g}"

    def affine(self, tensors: Tensors, x: Tensor) -> Tensor:
        return x * self.factor

    linear = affine

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        return y * self.factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class FixedNormalization(LinearMap, nn.Module):
    """A batch normalization as the affine map that it is in evaluation, always:

        y = weight * (x - running_mean) / sqrt(running_var + eps) + bias

    Its statistics stay what they are, also in training: the batch's own would couple the samples
    and change with every step of a relaxation, and there is no energy of that. Its weight and bias
    are shared, and trained.

    Args:
        norm: the batch normalization, of any number of dimensions.
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
        self._looked_at: tuple[Any, ...] = ()
        self._was_reset = _is_reset(norm)
        self.register_load_state_dict_post_hook(_counts_as_given)

    def tensors(self) -> Tensors:
        """The factor and, if there is one, the offset of every channel, `[C]`.

        Raises:
            ValueError: something has set the statistics back.
        """
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        self._require_statistics()
        factor = (norm.running_var + norm.eps).rsqrt()
        if norm.weight is not None:
            factor = factor * norm.weight
        if not self.offset:
            return (factor,)
        shift = -norm.running_mean * factor
        return factor, shift if norm.bias is None else shift + norm.bias

    def affine(self, tensors: Tensors, x: Tensor) -> Tensor:
        shaped = [_a_channel(t, x) for t in tensors]
        return x * shaped[0] if len(shaped) == 1 else torch.addcmul(shaped[1], x, shaped[0])

    def linear(self, tensors: Tensors, x: Tensor) -> Tensor:
        return x * _a_channel(tensors[0], x)

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        return y * _a_channel(tensors[0], y)

    def folded(self, weight_and_bias: Tensors) -> Tensors:
        """Weight and bias of a convolution with this behind it."""
        weight, *bias = weight_and_bias
        factor, *offset = self.tensors()
        terms = [b * factor for b in bias] + offset
        shift = [torch.stack(terms).sum(0)] if terms else []
        return (weight * factor.view(-1, *[1] * (weight.dim() - 1)), *shift)

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(self.tensors(), x)

    def _require_statistics(self) -> None:
        """A look at them after something was written into them; only then is a device asked."""
        mean = self.norm.running_mean
        assert mean is not None
        if self._looked_at and self._looked_at[0] is mean and self._looked_at[1] == writings(mean):
            return
        if not self._was_reset and _is_reset(self.norm):
            raise ValueError(
                "the running statistics of a batch normalization between neurons were set back to 0 and 1, as "
                "torch.optim.swa_utils.update_bn and Lightning's StochasticWeightAveraging do. Between neurons they "
                "are fixed, and no batch fills them again. Load them again, and average without these two (Lightning's "
                "WeightAveraging leaves them), or for what stands before the first neuron alone: "
                "update_bn(batches, model.stem). If 0 and 1 are meant, convert the model again"
            )
        self._looked_at = (mean, writings(mean))


def _is_reset(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    """Whether the statistics are those of a new one."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    return not mean.is_meta and bool((mean == 0).all() and (var == 1).all())


def _counts_as_given(module: Any, _: Any) -> None:
    """After a state dict was loaded: what it holds is meant."""
    module._was_reset = _is_reset(module.norm)


def _a_channel(t: Tensor, like: Tensor) -> Tensor:
    return t.view(-1, *[1] * (like.dim() - 2))


class SharedDropout(LinearMap, nn.Module):
    """Dropout between neurons: one mask for a forward pass, shared by all samples of the batch.

    All steps and phases that belong to the pass see the same network, so it has an energy. The mask
    is a tensor of the map that is drawn with each forward pass.

    Args:
        dropout: an `nn.Dropout`, or `nn.Dropout1d`, `2d` or `3d`, which drop whole channels. Its probability
            and mode are those of the moment.
    """

    def __init__(self, dropout: nn.modules.dropout._DropoutNd) -> None:
        super().__init__()
        self.dropout, self.training = dropout, dropout.training
        self.channels = not isinstance(dropout, nn.Dropout)

    @property
    def p(self) -> float:
        """The share that is dropped."""
        return self.dropout.p

    def extra_repr(self) -> str:
        return f"p={self.p}, channels={self.channels}"

    def tensors(self) -> Tensors:
        return (torch.ones(()),)

    def drawn(self, shape: Sequence[int], like: Tensor) -> Tensors:
        """0 or 1 / (1 - p), to be multiplied with states of `shape` (without the batch); ones in evaluation."""
        if not self.dropout.training:
            return (like.new_ones(()),)
        own = (shape[0], *[1] * (len(shape) - 1)) if self.channels else tuple(shape)
        return (F.dropout(torch.ones(1, *own, dtype=like.dtype, device=like.device), self.p),)

    def affine(self, tensors: Tensors, x: Tensor) -> Tensor:
        return x * tensors[0]

    linear = affine

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        return y * tensors[0]

    def pullback(self, tensors: Tensors, x: Tensor, y: Tensor, offset: bool = True) -> list[Tensor | None]:
        return [None]  # a mask is drawn, not learned

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(self.drawn(x.shape[1:], x), x)


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


def _itself(module: Any) -> LinearMap:
    return module


register_all((Scale, FixedNormalization, SharedDropout), _itself)
