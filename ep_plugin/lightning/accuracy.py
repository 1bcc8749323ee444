"""Accuracy, where output and target make it one."""

from typing import Any

from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from ep_plugin.lightning.losses import are_classes


def accuracy(output: Any, target: Any, ignored: int = -100) -> tuple[Tensor, int] | None:
    """The share of targets, whole numbers `[B, ...]`, that are the largest of the outputs `[B, classes, ...]`.

    Args:
        output: of a network.
        target: what its loss takes beside it.
        ignored: a target that does not count.

    Returns:
        The share, and of how many targets it is; None where they are no classes, or none counts.
    """
    if not are_classes(target, output):
        return None
    classes = output.shape[1]
    share = multiclass_accuracy(output, target, classes, average="micro", ignore_index=ignored, validate_args=False)
    counted = int((target != ignored).sum())
    return (share, counted) if counted else None


def summed(output: Any, classes: int) -> Tensor:
    """Each class's sum over its population of outputs: `[B, classes]` from `[B, classes * size]`, as snnTorch's.

    Raises:
        ValueError: the outputs are no whole number a class.
    """
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] % classes:
        what = f"shape {list(output.shape)}" if isinstance(output, Tensor) else f"the type {type(output).__name__}"
        raise ValueError(
            f"an output of {what} has no populations of {classes} classes; expected [batch, n], "
            f"with n a multiple of {classes}"
        )
    return output.unflatten(1, (classes, -1)).sum(-1)
