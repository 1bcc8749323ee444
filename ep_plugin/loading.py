"""A net that the command line is pointed at, and a batch for it."""

import sys
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from ep_plugin.analysis.influence import batch_axis
from ep_plugin.network import ConvergentNetwork


def load_net(path: str) -> nn.Module:
    """The module that `package.module:name` names, or that the function of that name returns.

    Raises:
        ValueError: there is no such module or name.
        TypeError: it is no `nn.Module`, and does not return one.
    """
    place, _, name = path.partition(":")
    if not place or not name:
        raise ValueError(f"the net is {path!r}; expected path.to.module:net")
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` has it
    try:
        module = import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise  # a module that theirs imports
        raise ValueError(
            f"there is no module {error.name!r}; expected path.to.module:net, to be found from this directory"
        ) from error
    if not hasattr(module, name):
        raise ValueError(f"the module {place!r} has no {name!r}; expected a net, or a function that returns one")
    net = getattr(module, name)
    if not isinstance(net, nn.Module) and callable(net):
        net = net()
    if not isinstance(net, nn.Module):
        raise TypeError(
            f"{path} is of the type {type(net).__name__}; expected an nn.Module, or a function that returns one"
        )
    return net


def random_batch(model: ConvergentNetwork, shape: tuple[int, ...], batch_size: int) -> tuple[Tensor, Tensor]:
    """Inputs in [0, 1], `[B, *shape]`, and classes `[B]`, from PyTorch's global generator.

    Where steps of time come first in the input, they do in the shape, and the batch is second.

    Raises:
        ValueError: the network's output is not `[B, classes]`.
    """
    like = next(model.parameters())
    x = torch.rand(batch_size, *shape, dtype=like.dtype, device=like.device)
    if batch_axis(model, x.dim()) == 1:
        x = x.transpose(0, 1)
    with torch.no_grad():
        output = model(x)
    if not isinstance(output, Tensor) or output.dim() != 2:
        shown = list(output.shape) if isinstance(output, Tensor) else [list(o.shape) for o in output]
        raise ValueError(f"the output has the shape {shown}; expected [batch, classes]")
    return x, torch.randint(output.shape[1], (batch_size,), device=like.device)
