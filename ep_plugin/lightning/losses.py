"""Losses by name, or as callables; those of `snntorch.functional` are in `ep_plugin.lightning.spike_losses`."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from snntorch.functional.loss import LossFunctions
from torch import Tensor, nn

from ep_plugin.validation import chosen

# snnTorch's losses are callables like any other; the command line makes them of a configuration by their base class.
Loss: TypeAlias = nn.Module | LossFunctions | Callable[[Any, Any], Tensor]


def _cross_entropy(output: Any, target: Any) -> Tensor:
    _require_one("cross_entropy", output, target)
    return F.cross_entropy(output, target)


def _mse(output: Any, target: Any) -> Tensor:
    """Against targets of the output's shape, or against classes `[B, ...]` as one-hot ones of `[B, classes, ...]`."""
    _require_one("mse", output, target)
    if output.shape == (*target.shape, 1):
        target = target.unsqueeze(-1)
    elif are_classes(target, output):
        target = F.one_hot(target.long(), output.shape[1]).movedim(-1, 1)
    if output.shape != target.shape:
        raise ValueError(
            f'the loss "mse" was given an output of shape {list(output.shape)} and a target of shape '
            f"{list(target.shape)} and type {target.dtype}; expected a target of the output's shape, or classes "
            f"(whole numbers) of shape {[*output.shape[:1], *output.shape[2:]]}"
        )
    return F.mse_loss(output, target.to(output.dtype))


def _require_one(name: str, output: Any, target: Any) -> None:
    for what, found in (("an output", output), ("a target", target)):
        if not isinstance(found, Tensor):
            raise ValueError(
                f'the loss "{name}" was given {what} of the type {type(found).__name__}; expected a tensor. For '
                "several outputs or targets use a callable: loss=lambda outputs, targets: ..."
            )


_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
LOSSES: dict[str, Loss] = {"cross_entropy": _cross_entropy, "mse": _mse}


def are_classes(target: Any, output: Any) -> bool:
    """Whether the target is a class of the output's, whole numbers `[B, ...]` for `[B, classes, ...]`."""
    return (
        isinstance(output, Tensor)
        and isinstance(target, Tensor)
        and output.dim() >= 2
        and output.shape[1] >= 2
        and target.shape == (output.shape[0], *output.shape[2:])
        and target.dtype in _WHOLE
    )


def as_loss(loss: str | Loss) -> Loss:
    """A loss of (output, target) from its name, or the callable that was given."""
    if isinstance(loss, type):
        raise TypeError(f"loss is the class {loss.__name__}; expected an instance of it: {loss.__name__}()")
    if isinstance(loss, str) and "." in loss:
        raise ValueError(
            f"loss is the text {loss!r}; expected one of {', '.join(map(repr, LOSSES))}, or in a configuration "
            f"`loss: {{class_path: {loss}}}` (--model.init_args.loss.class_path {loss})"
        )
    return loss if callable(loss) else chosen("loss", cast(str, loss), LOSSES)


def is_mean_of_targets(loss: Loss) -> bool:
    """Whether it is the mean over the targets that count, each with the same weight."""
    if isinstance(loss, nn.CrossEntropyLoss):
        return loss.weight is None and loss.reduction == "mean"
    given = _of_function(loss)
    return given is not None and given.get("weight") is None and given.get("reduction", "mean") == "mean"


def ignored_by(loss: Loss) -> int:
    """The target that a loss leaves out; PyTorch's default where it does not say."""
    return (_of_function(loss) or {}).get("ignore_index", getattr(loss, "ignore_index", -100))


def _of_function(loss: Loss) -> dict[str, Any] | None:
    """The keywords that PyTorch's cross entropy, as a function, is given; None where it is another loss."""
    if isinstance(loss, partial) and not loss.args and not {"size_average", "reduce"} & loss.keywords.keys():
        return loss.keywords if loss.func is F.cross_entropy else None
    return {} if loss is _cross_entropy or loss is F.cross_entropy else None


def named(loss: Loss) -> str:
    """What a loss is called in messages."""
    return (getattr(loss, "__name__", None) or type(loss).__name__).lstrip("_")
