"""Copies of a network's modules that need nothing of this package."""

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ep_plugin.conversion.concatenation import Measuring
from ep_plugin.linear.base import follow
from ep_plugin.linear.concatenation import Placement
from ep_plugin.linear.dense import FlattenedTo
from ep_plugin.linear.modules import FixedNormalization, SharedDropout
from ep_plugin.linear.read_noise import ReadNoise
from ep_plugin.linear.separate import SeparateFeedback
from ep_plugin.network import ConvergentNetwork


class Copies:
    """Copies of modules with nothing in them that only training needs. What shares weights still does."""

    def __init__(self) -> None:
        self._memo: dict[int, Any] = {}

    def __call__(self, module: nn.Module) -> nn.Module:
        # A connection's fixed normalization is the ordinary one in evaluation, its dropout is none.
        copied = _replaced(copy.deepcopy(module, self._memo))
        for m in copied.modules():
            if parametrize.is_parametrized(_original(m)):
                _settle_parametrizations(_original(m))
            follow(m)
        return copied.eval().float()


def without_weight_hooks(model: ConvergentNetwork) -> ConvergentNetwork:
    """The network with the weights that pruning and the old weight_norm and spectral_norm make in hooks, as ordinary
    parameters: a copy, or itself if it has none of these."""
    owners = {owner for m in model.modules() for owner in (m, _original(m))}
    if not any(map(_weight_hooks, owners)):
        return model
    if model.origin is not None:
        model.origin.check(model)  # the copy has none
    # What a hook has made is no leaf, and no deepcopy takes it.
    made = (v for owner in owners for v in vars(owner).values() if isinstance(v, Tensor))
    memo: dict[int, Any] = {id(model.origin): None, **{id(v): v.detach().clone() for v in made}}
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        _settle_hooks(_original(module))
        follow(module)
    return copied


def _original(module: nn.Module) -> Any:
    """What a `linear_copy` follows; any other module itself."""
    return vars(module).get("copied_from", (module,))[0]


def _weight_hooks(module: nn.Module) -> list[Any]:
    kinds = (prune.BasePruningMethod, WeightNorm, SpectralNorm)
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, kinds)]


def _settle_hooks(module: nn.Module) -> None:
    """Weights as hooks have made them, as ordinary parameters."""
    for hook in _weight_hooks(module):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)
        elif isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        else:
            remove_spectral_norm(module, hook.name)


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
    if isinstance(module, FlattenedTo):  # whose look at the size is no module
        return nn.Flatten()
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
