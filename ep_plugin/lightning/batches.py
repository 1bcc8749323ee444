"""What a step takes from a loader: an input and its target."""

from typing import Any

from torch import Tensor

Batch = Any

_WAY_OUT = (
    "return that from on_before_batch_transfer(batch, dataloader_idx), a method of your module or data module; what a "
    "loss needs beside the target can be part of it: (x, (y, weight))"
)


def pair(batch: Batch) -> tuple[Tensor, Any]:
    """Input and target of a batch `(x, y)`.

    Raises:
        TypeError: the batch is none.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[0], Tensor):
        return batch[0], batch[1]
    raise TypeError(f"a batch is {_described(batch)}; expected (x, y), an input and its target: {_WAY_OUT}")


def inputs(batch: Batch) -> Tensor:
    """The input of a batch: `x`, or the first of `(x, ...)`.

    Raises:
        TypeError: that is no tensor.
    """
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if isinstance(first, Tensor):
        return first
    raise TypeError(f"a batch is {_described(batch)}; expected an input x, or (x, ...): {_WAY_OUT}")


def _described(batch: Batch) -> str:
    if isinstance(batch, dict):
        return f"a dict of {', '.join(map(repr, batch))}"
    if isinstance(batch, Tensor):
        return f"a single tensor of shape {list(batch.shape)}"
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} ({', '.join(type(part).__name__ for part in batch)})"
    return f"a {type(batch).__name__}"
