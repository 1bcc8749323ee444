"""The optimizer that a task is given, and what a checkpoint tells of the one that it was trained with."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ep_plugin.validation import number

Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

_NOT_SETTINGS = ("params", "param_names", "initial_lr")


def as_optimizer(given: Optimizer | None) -> Optimizer | None:
    """The function of the parameters that was given.

    Raises:
        TypeError: it is an optimizer itself, or cannot be called.
    """
    if given is None or callable(given):
        return given
    what = repr(given) if isinstance(given, str) else f"a {type(given).__name__}"
    example, rate = "torch.optim.SGD", 0.1
    if isinstance(given, torch.optim.Optimizer):
        kind, rate = type(given).__name__, number(given.defaults.get("lr", rate))
        what, example = f"an instance of {kind}", f"torch.optim.{kind}" if hasattr(torch.optim, kind) else kind
    raise TypeError(
        f"optimizer is {what}; expected a function of the parameters: lambda parameters: "
        f"{example}(parameters, lr={rate})"
    )


def described(optimizers: Sequence[torch.optim.Optimizer]) -> list[dict[str, Any]]:
    """Their types and the settings of their groups, as plain data."""
    return [{"type": type(own).__name__, "groups": [_settings(g) for g in own.param_groups]} for own in optimizers]


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """Without what a schedule has made of the learning rate."""
    own = {**group, "lr": group.get("initial_lr", group.get("lr"))}
    return {name: _plain(value) for name, value in own.items() if name not in _NOT_SETTINGS}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    value = number(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else type(value).__name__


def compare(saved: list[dict[str, Any]], here: list[dict[str, Any]], task: str) -> None:
    """Warns of settings that the checkpoint's take the place of.

    Args:
        saved: what the checkpoint's were before their first step, by `described`.
        here: what this training's are.
        task: the name of its class.

    Raises:
        ValueError: they are of other types, whose states mean nothing to these.
    """
    there, own = ([each["type"] for each in optimizers] for optimizers in (saved, here))
    if there != own:
        raise ValueError(
            f"the checkpoint's optimizer is {', '.join(there)}, and this training's is {', '.join(own)}, which cannot "
            "go on from its state. Give the same as before; or begin a new training of its weights: "
            f"{task}.load_from_checkpoint(...)"
        )
    if told := _changed(saved, here):
        warnings.warn(
            f"the checkpoint's optimizer had other settings: {'; '.join(told)}. A training that goes on "
            "keeps the checkpoint's. For others begin a new training of its weights: "
            f"{task}.load_from_checkpoint(...)",
            stacklevel=2,
        )


def _changed(saved: list[dict[str, Any]], here: list[dict[str, Any]]) -> list[str]:
    """Each change once, where several groups have it."""
    pairs = [pair for a, b in zip(saved, here, strict=True) for pair in zip(a["groups"], b["groups"], strict=False)]
    both = [(name, a[name], b[name]) for a, b in pairs for name in a if name in b]
    return list(dict.fromkeys(f"{name} was {old!r} and is {new!r}" for name, old, new in both if old != new))
