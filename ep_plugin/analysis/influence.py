"""Which entries of the input a network's output depends on."""

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ep_plugin.analysis.randomness import seeded
from ep_plugin.estimators.backprop_through_time import BackpropThroughTime
from ep_plugin.network import ConvergentNetwork


def without_influence(model: ConvergentNetwork, x: Tensor, original: nn.Module | None = None) -> list[str]:
    """The parts of the input that change nothing in the output, and do in the original.

    Entries without a gradient are changed, and the output is looked at again. What the original's output has no
    gradient for either, such as pixels beyond the last window of a pooling, is not told.

    Args:
        model: in evaluation mode.
        x: a batch.
        original: what the model was converted from, if it can be run on the batch.

    Returns:
        Slices along an axis of the input, "9 of the 10 slices along axis 1 (1 to 9)"; none if all of it counts.
    """
    graded = model.variant(encoder="graded", estimator=BackpropThroughTime())
    batch = batch_axis(model, x.dim())
    dead = ~_reached(graded, x, batch)
    if not bool(dead.any()):
        return []
    if not _unmoved(graded, x, dead):
        # An operation without a slope (a threshold in the stem): what has no gradient may have an influence.
        dead = _dead_slices(graded, x, dead)
    if bool(dead.any()) and original is not None:
        dead &= _reached_in(original, x, batch)
    return list(_described(dead, batch))


def batch_axis(model: ConvergentNetwork, axes: int) -> int:
    """Of an input with so many axes: steps of time may come first."""
    return 1 if model.time_varying and model.time_axis % axes == 0 else 0


def _reached(net: nn.Module, x: Tensor, batch: int) -> Tensor:
    """Where any sample's output has a gradient, in the shape of a batch of one, whose axis is given."""
    given = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        outputs = [t for t in tree_leaves(net(given)) if isinstance(t, Tensor) and t.requires_grad]
        generator = torch.Generator().manual_seed(0)  # a plain sum is constant where outputs are probabilities
        total = [(t * torch.rand(t.shape, generator=generator).to(t)).sum() for t in outputs]
        gradient = torch.autograd.grad(sum(total), given, allow_unused=True)[0] if total else None  # type: ignore[arg-type]
    if gradient is None:
        return torch.zeros_like(x.narrow(batch, 0, 1), dtype=torch.bool)
    return (gradient != 0).any(batch, keepdim=True)


def _reached_in(original: nn.Module, x: Tensor, batch: int) -> Tensor:
    """The same of the original, by its surrogate gradients; everywhere where these do not tell."""
    everywhere = torch.ones_like(x.narrow(batch, 0, 1), dtype=torch.bool)
    try:
        with seeded(0, x):
            reached = _reached(copy.deepcopy(original).eval(), x, batch)
    except Exception:  # it is a user's forward, which may want other arguments
        return everywhere
    return reached if bool(reached.any()) else everywhere  # none at all: a stem without slopes


def _unmoved(net: nn.Module, x: Tensor, changed: Tensor) -> bool:
    """Whether the output is the same to the last bit with other numbers there."""
    other = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
    found = []
    for given in (x, torch.where(changed, other, x)):
        with torch.no_grad(), seeded(0, x):
            found.append([t for t in tree_leaves(net(given)) if isinstance(t, Tensor)])
    return all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def _dead_slices(net: nn.Module, x: Tensor, dead: Tensor) -> Tensor:
    found = torch.zeros_like(dead)
    for axis in range(dead.dim()):
        for index in _whole_slices(dead, axis):
            part = torch.zeros_like(dead)
            part.select(axis, index).fill_(True)
            if _unmoved(net, x, part):
                found |= part
    return found


def _whole_slices(dead: Tensor, axis: int) -> list[int]:
    """The indices along an axis at which nothing counts; none of an axis of one."""
    if dead.shape[axis] == 1:
        return []
    return dead.movedim(axis, 0).flatten(1).all(1).nonzero().flatten().tolist()


def _described(dead: Tensor, batch: int) -> Iterator[str]:
    if not bool(dead.any()):
        return
    if bool(dead.all()):
        yield "all of its entries"
        return
    told = torch.zeros_like(dead)
    for axis in range(dead.dim()):
        if axis != batch and (indices := _whole_slices(dead, axis)):
            told.index_fill_(axis, torch.tensor(indices, device=dead.device), True)
            yield f"{len(indices)} of the {dead.shape[axis]} slices along axis {axis} ({_ranges(indices)})"
    if rest := int((dead & ~told).sum()):
        yield f"{rest} of {dead.numel()} entries here and there, such as {(dead & ~told).nonzero()[0].tolist()}"


def _ranges(indices: Sequence[int]) -> str:
    """`1 to 4, 7`."""
    starts = [i for i in indices if i - 1 not in indices]
    ends = [i for i in indices if i + 1 not in indices]
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in zip(starts, ends, strict=True))
