"""A net and data that the command line is pointed at, and a batch for the net."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ep_plugin.analysis.influence import batch_axis
from ep_plugin.network import ConvergentNetwork
from ep_plugin.validation import chosen

if TYPE_CHECKING:
    from lightning import LightningDataModule


def load_net(path: str) -> nn.Module:
    """The module that `package.module:name` names, or that the function of that name returns.

    Raises:
        ValueError: there is no such module or name.
        TypeError: it is no `nn.Module`, and does not return one.
    """
    net = _loaded(path, "the net", "path.to.module:net", "a net")
    if not isinstance(net, nn.Module) and callable(net):
        net = net()
    if not isinstance(net, nn.Module):
        raise TypeError(
            f"{path} is of the type {type(net).__name__}; expected an nn.Module, or a function that returns one"
        )
    return net


def load_data(name: str, data_dir: Path, batch_size: int, seed: int) -> "LightningDataModule":
    """The data module of a set that the package has, or that `package.module:name` names or returns.

    Args:
        name: "digits", "mnist" or "fashion-mnist", or a path. What it names may be a class or a function.
        data_dir: where mnist and fashion-mnist lie.
        batch_size: of the package's own.
        seed: of the package's own.

    Raises:
        ValueError: there are no such data.
        TypeError: it is no data module, and does not return one.
    """
    from lightning import LightningDataModule

    from ep_plugin.comparison.settings import DATA
    from ep_plugin.lightning import data

    if ":" not in name:
        kind = getattr(data, chosen("data", name, DATA | {"path.to.module:data": ""}))
        return kind(**({} if name == "digits" else {"data_dir": data_dir}), batch_size=batch_size, seed=seed)
    found = _loaded(name, "data", "path.to.module:data", "data module")
    found = found() if callable(found) else found
    if not isinstance(found, LightningDataModule):
        raise TypeError(
            f"{name} is of the type {type(found).__name__}; expected a LightningDataModule, or a class or function "
            "that gives one"
        )
    return found


def find_from_here() -> None:
    """Lets modules in this directory be imported."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)


def _loaded(path: str, what: str, expected: str, thing: str) -> Any:
    """What a module calls so, found as `python -m` finds it."""
    place, _, name = path.partition(":")
    if not place or not name:
        raise ValueError(f"{what} is {path!r}; expected {expected}")
    find_from_here()
    try:
        module = import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise  # a module that theirs imports
        raise ValueError(
            f"there is no module {error.name!r}; expected {expected}, to be found from this directory"
        ) from error
    if not hasattr(module, name):
        raise ValueError(f"the module {place!r} has no {name!r}; expected {thing}, or a function that returns one")
    return getattr(module, name)


def data_batch(model: ConvergentNetwork, data: "LightningDataModule", batch_size: int) -> tuple[Tensor, Any]:
    """The first training images, `batch_size` of them or as many as a batch has, and their targets.

    Raises:
        TypeError: a batch is no `(x, y)`.
    """
    from ep_plugin.lightning.batches import pair

    data.prepare_data()
    data.setup("fit")
    batch = data.on_before_batch_transfer(next(iter(data.train_dataloader())), 0)
    x, y = pair(data.on_after_batch_transfer(batch, 0))
    like = next(model.parameters())
    x = x.to(like.device, like.dtype if x.is_floating_point() else None)
    axis = batch_axis(model, x.dim())
    x = x.narrow(axis, 0, min(batch_size, x.shape[axis]))
    return x, tree_map(lambda t: t[:batch_size].to(like.device) if isinstance(t, Tensor) else t, y)


def random_batch(
    model: ConvergentNetwork, shape: tuple[int, ...], batch_size: int, classes: int = 1
) -> tuple[Tensor, Tensor]:
    """Inputs in [0, 1], `[B, *shape]`, and classes `[B]`, from PyTorch's global generator.

    Where steps of time come first in the input, they do in the shape, and the batch is second.

    Raises:
        ValueError: the network's output is not `[B, classes]`, or there are fewer than these `classes`.
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
    if output.shape[1] < classes:
        raise ValueError(
            f"the output has the shape {list(output.shape)}; expected [batch, classes] with two or more classes: of "
            "one the loss is the same whatever the output is, so that there is no gradient"
        )
    return x, torch.randint(output.shape[1], (batch_size,), device=like.device)
