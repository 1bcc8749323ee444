"""The model that a network was made of: whether it still has the modules that the network shares."""

from typing import Any

from torch import nn


class Origin:
    """A hook before a network's forward that refuses to run once the original has other modules.

    A copy of the network has modules of its own, so that it has no original.

    Args:
        net: the original.
        network: what was made of it.
    """

    def __init__(self, net: nn.Module, network: nn.Module) -> None:
        modules, parameters = set(network.modules()), set(network.parameters())
        self.places = [
            (f"{parent}.{name}".lstrip("."), holder, name, module)
            for parent, holder in net.named_modules()
            for name, module in holder.named_children()
            if module in modules or parameters.intersection(module.parameters(recurse=False))
        ]
        self.names = {id(p): name for name, p in net.named_parameters() if p in parameters}

    def __call__(self, network: nn.Module, args: tuple[Any, ...]) -> None:
        for place, holder, name, module in self.places:
            if holder._modules.get(name) is not module:
                raise ValueError(
                    f"module {place!r} of the original was replaced after the conversion, and this network still has "
                    "the former one; convert the model again"
                )

    def __reduce__(self) -> tuple[Any, ...]:
        return Origin, (nn.Module(), nn.Module())


def parameter_names(network: nn.Module) -> dict[int, str]:
    """What each of a network's parameters is called by its owner.

    Args:
        network: as `convert` gives it, or built by hand.

    Returns:
        From a parameter's `id` to its name in the original; in the network itself where there is none.

    Example:
        >>> parameter_names(model)[id(model.layers[0].threshold)]
    """
    found = {id(p): name for name, p in network.named_parameters()}
    for hook in network._forward_pre_hooks.values():
        if isinstance(hook, Origin):
            found |= hook.names
    return found
