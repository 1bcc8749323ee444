"""A layer of neurons."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ep_plugin.dynamics.activations import Activation, as_activation
from ep_plugin.spelling import refuse_misspelled
from ep_plugin.tensors import writings
from ep_plugin.validation import count, positive


class Layer(nn.Module):
    """Neurons of one kind that settle where r = activation(gain * drive / threshold).

    Args:
        threshold: a number, or a tensor that broadcasts against the layer's state `[B, ...]`; an `nn.Parameter` is
            trained.
        activation: "hard_sigmoid", "sigmoid", "relu6", an `Activation`, or a callable.
        level: how many feedback steps the layer is above the input; by default its place in the list. Layers of the
            same level feed back to each other at full strength.
        gain: how large a steady input has become when it meets the threshold (more than 1 where a synapse sums up its
            input). A number above 0, or a tensor that broadcasts like the threshold. It is not trained.

    Each of them can also be set later, a threshold or gain by a number too.

    Raises:
        ValueError: a threshold or gain is not above 0, or requires a gradient and is no `nn.Parameter`, or the
            activation's name is unknown.
        TypeError: a level is not a whole number, or a threshold or gain is no number and no tensor.

    Example:
        >>> layer = ep.Layer(threshold=nn.Parameter(torch.ones(10)), activation="sigmoid")
        >>> model = ep.ConvergentNetwork(nn.Linear(64, 10), [layer], [])
        >>> model(torch.rand(5, 64)).shape
        torch.Size([5, 10])
    """

    threshold: Tensor
    gain: Tensor | None

    def __init__(
        self,
        threshold: float | Tensor = 1.0,
        activation: str | Activation | Callable[[Tensor], Tensor] = "hard_sigmoid",
        level: int | None = None,
        gain: float | Tensor = 1.0,
    ) -> None:
        super().__init__()
        gain = _numbers("gain", gain).detach()
        if not bool(((gain > 0) & gain.isfinite()).all()):
            raise ValueError(f"gain is {gain.tolist()}; expected finite numbers above 0")
        self.register_buffer("gain", None if bool((gain == 1).all()) else gain, persistent=False)
        self._positive: dict[str, tuple[Tensor, int]] = {}  # as they were when last asked
        self.activation: Activation = as_activation(activation)
        self.level = level
        if isinstance(threshold, nn.Parameter):
            self.threshold = threshold
        else:
            self.register_buffer("threshold", _numbers("threshold", threshold))
        if not bool((self.threshold > 0).all()):
            raise ValueError(f"threshold is {threshold!r}; expected numbers above 0")

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_misspelled(self, "a layer has no attribute", name, ("threshold", "activation", "level", "gain"))
        if name == "activation":
            value = as_activation(value)
        elif name == "level":
            value = None if value is None else count("level", value, least=-sys.maxsize)
        elif name in ("threshold", "gain") and isinstance(value, Tensor):
            _require_parameter(name, value)
            if name == "gain" and not value.is_meta and not bool(_in_range(name, value).all()):
                raise ValueError(f"gain is {value.tolist()}; expected finite numbers above 0")
        elif name in vars(self).get("_buffers", {}) and (value is not None or name == "threshold"):
            value = torch.as_tensor(positive(name, value)).to(self.threshold)
        elif name == "threshold" and name in vars(self).get("_parameters", {}):
            with torch.no_grad():
                self.threshold.fill_(positive(name, value))
            return
        super().__setattr__(name, value)

    @property
    def theta(self) -> Tensor:
        """The drive at which the state is 1, on the graph of a learnable threshold."""
        return self.threshold if self.gain is None else self.threshold / self.gain

    def not_positive(self) -> tuple[str, float] | None:
        """A threshold or gain that is not above 0, or a gain that is not finite, and its value.

        Learnable thresholds are not looked at. A device is asked only after something was written into the tensor.
        """
        if not self.threshold.requires_grad and not self._known("threshold", self.threshold):
            return "threshold", self.threshold.min().item()
        if self.gain is not None and not self._known("gain", self.gain):
            return "gain", self.gain[~_in_range("gain", self.gain)].min().item()
        return None

    def _known(self, name: str, value: Tensor) -> bool:
        if value.is_meta:
            return True
        if value.device.type == "cpu":
            return bool(_in_range(name, value).all())
        seen, times = self._positive.get(name, (None, 0))
        if seen is not value or times != writings(value):
            if not bool(_in_range(name, value).all()):
                return False
            self._positive[name] = (value, writings(value))
        return True


def _in_range(name: str, value: Tensor) -> Tensor:
    return value > 0 if name == "threshold" else (value > 0) & value.isfinite()


def _numbers(what: str, value: Any) -> Tensor:
    """As a tensor of PyTorch's default type, or of a wider one that was given."""
    if isinstance(value, Tensor):
        _require_parameter(what, value)
        return value.to(torch.promote_types(value.dtype, torch.get_default_dtype()))
    try:
        return torch.as_tensor(value, dtype=torch.get_default_dtype())
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{what} is {value!r}; expected a number above 0, or a tensor of such numbers") from error


def _require_parameter(what: str, value: Tensor) -> None:
    if value.requires_grad and not isinstance(value, nn.Parameter):
        raise ValueError(
            f"the {what} is a tensor that requires a gradient and is no nn.Parameter, so no optimizer would know it; "
            "expected nn.Parameter(...), or one that torch.nn.utils.parametrize computes from another"
        )
