"""A loss that does not look at its targets: it has the same value for all of them."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

_BATCHES = 3  # that are looked at


class IgnoredTargets:
    """Tries other targets on the first batches, and warns once if the loss is the same to the last bit.

    So it is where targets are rounded away: of a record of one step, 0.8 and 0.2 spikes are both none.

    Args:
        loss: what it is called.
    """

    def __init__(self, loss: str) -> None:
        self.loss, self.left = loss, _BATCHES

    def look(self, loss: Callable[[Any, Any], Tensor], seen: Any, y: Any, value: Tensor) -> None:
        """After a batch's loss has been found.

        Args:
            loss: of what it sees and targets.
            seen: what the loss has seen.
            y: the targets, which stay as they are.
            value: of the loss.
        """
        others = _others(y)
        if not others:
            return
        self.left -= 1
        with torch.no_grad():
            seen = tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, seen)
            if any(bool(loss(seen, other) != value) for other in others):
                self.left = 0
                return
        if not self.left:
            warnings.warn(
                f"the loss {self.loss} does not depend on the targets: in the first {_BATCHES} batches it had exactly "
                "the same value for others. Does it round them away? snnTorch's losses of counts do so with a record "
                "of few steps; give such a loss itself, loss=SF.mse_count_loss(0.8, 0.2), which is then given enough",
                stacklevel=2,
            )


def _others(y: Any) -> list[Any]:
    """The batch's targets one sample further, and the first one's for all; none where all are alike."""
    changed = [tree_map(_rolled, y), tree_map(_first, y)]
    return [other for other in changed if not _same(other, y)]


def _rolled(t: Any) -> Any:
    return t.roll(1, 0) if isinstance(t, Tensor) and t.dim() else t


def _first(t: Any) -> Any:
    return t[:1].expand_as(t).clone() if isinstance(t, Tensor) and t.dim() else t


def _same(a: Any, b: Any) -> bool:
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(torch.equal(s, t) for s, t in pairs if isinstance(s, Tensor))
