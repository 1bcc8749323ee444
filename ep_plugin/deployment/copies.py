"""Copies of a network's modules that need nothing of this package."""

import copy
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from ep_plugin.conversion.concatenation import Measuring
from ep_plugin.linear.concatenation import Placement
from ep_plugin.linear.modules import FixedNormalization, SharedDropout
from ep_plugin.linear.read_noise import ReadNoise
from ep_plugin.linear.separate import SeparateFeedback


class Copies:
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
    if isinstance(module, (SharedDropout, ReadNoise)):
        return nn.Identity()
    if isinstance(module, SeparateFeedback):
        return _replaced(module.module)
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
