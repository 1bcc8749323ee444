"""Which modules draw random numbers in evaluation mode: two inferences of one input then differ."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ep_plugin.network import ConvergentNetwork
from ep_plugin.unnoticed import random_numbers_as_before


class _Call(NamedTuple):
    given: list[Tensor]
    gave: list[Tensor]
    drew: bool  # from PyTorch's generator


def random_modules(model: ConvergentNetwork, x: Tensor, original: nn.Module | None = None) -> list[str]:
    """The innermost modules that draw from PyTorch's generator, or give other outputs for the same inputs.

    Args:
        model: in evaluation mode. Its spikes, which may be random by their encoder, have no part in this.
        x: a batch.
        original: what the model was converted from, whose names are told.

    Returns:
        Their names; operations outside of modules are told by the network's own parts: "stem", "readout". None if
        two inferences agree.
    """
    graded = model.variant(encoder="graded")
    (first, calls), (second, others) = _recorded(graded, x, 0), _recorded(graded, x, 1)
    if _same(first, second):
        return []
    names = {id(m): name for net in (model, original) if net is not None for name, m in net.named_modules() if name}
    modules = dict(model.named_modules())
    drawing = [name for name in calls if any(map(_draws, calls[name], others[name]))]
    inner = [n for n in drawing if not any(other.startswith(f"{n}.") for other in drawing)]
    return [names[id(modules[n])] for n in inner] or ["connections"]


@contextmanager
def seeded(seed: int, like: Tensor) -> Iterator[None]:
    """Random numbers of a seed, after which the generators go on as if nothing had been."""
    with random_numbers_as_before(like.device):
        torch.manual_seed(seed)
        yield


def _recorded(model: ConvergentNetwork, x: Tensor, seed: int) -> tuple[list[Tensor], dict[str, list[_Call]]]:
    """The output, and what every module was given and gave."""
    calls: dict[str, list[_Call]] = {}
    with ExitStack() as hooks, torch.no_grad(), seeded(seed, x):
        for name, module in _watched(model):
            before: list[Tensor] = []

            def start(*_: Any, before: list[Tensor] = before) -> None:
                before.append(_generator(x))

            def end(_: nn.Module, given: Any, gave: Any, name: str = name, before: list[Tensor] = before) -> None:
                drew = not torch.equal(before.pop(), _generator(x))
                calls.setdefault(name, []).append(_Call(_tensors(given), _tensors(gave), drew))

            hooks.callback(module.register_forward_pre_hook(start).remove)
            hooks.callback(module.register_forward_hook(end).remove)
        return _tensors(model(x)), calls


def _draws(first: _Call, second: _Call) -> bool:
    return first.drew or (_same(first.given, second.given) and not _same(first.gave, second.gave))


def _generator(like: Tensor) -> Tensor:
    return torch.cuda.get_rng_state(like.device) if like.device.type == "cuda" else torch.get_rng_state()


def _watched(model: ConvergentNetwork) -> Iterator[tuple[str, nn.Module]]:
    return ((n, m) for n, m in model.named_modules() if n.split(".")[0] in ("stem", "readout"))


def _tensors(tree: Any) -> list[Tensor]:
    return [t.detach().clone() for t in tree_leaves(tree) if isinstance(t, Tensor)]


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(s, t) for s, t in zip(a, b, strict=True))
