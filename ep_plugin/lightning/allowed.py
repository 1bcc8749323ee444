"""What a configuration may name.

A configuration names classes and functions, and the command line calls them with the arguments that stand beside. The
parser takes any function where one is expected, `os.system` too. So before anything is called, every name is looked at.
Allowed are

- classes of what a training is made of: modules, optimizers, schedules, losses, data, and Lightning's own parts;
- classes that this package makes public, transforms of torchvision, and encoders and estimators of one's own;
- classes whose calls are annotated to return a tensor;
- functions that are annotated to return a tensor or one of these classes, such as `-> nn.Module`, and those of
  `torch.nn.functional`.

So a net, a loss or a transform of a user's own is allowed where its annotation says what it returns. The standard
library's functions have no annotations, and none of its classes is one of these.
"""

import inspect
from collections.abc import Iterator
from importlib import import_module
from typing import Any, get_type_hints

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import CheckpointIO, ClusterEnvironment, LayerSync, Precision
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from snntorch.functional.loss import LossFunctions
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset

import ep_plugin

_KINDS = (
    *(nn.Module, Optimizer, LRScheduler, LossFunctions, Dataset),
    *(L.LightningDataModule, L.Callback, Logger, Profiler, Strategy, Accelerator),
    *(Precision, CheckpointIO, ClusterEnvironment, LayerSync),
)
_METHODS = ({"start", "encode", "for_deviations"}, {"solve"})  # of an encoder, and of an estimator
_EXPECTED = (
    "expected a module, optimizer, loss, data module, callback or another part of a training, or a function that is "
    "annotated to return one, such as `def net() -> nn.Module`"
)


def require_allowed(config: Any) -> None:
    """Stops where a configuration names what it may not.

    Args:
        config: as it was parsed, before anything in it is called.

    Raises:
        ValueError: the message says where, and which name.
    """
    for place, value in _named(config, ""):
        if not _is_allowed(_found(value) if isinstance(value, str) else value):
            name = value if isinstance(value, str) else _path(value)
            raise ValueError(f"{place} names {name}, which a configuration may not: {_EXPECTED}")


def _named(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """The places of all names, each with the path of what is to be called, or with what the parser found by one."""
    if isinstance(value, (Namespace, dict)):
        items = vars(value) if isinstance(value, Namespace) else value
        if "class_path" in items:
            yield place, str(items["class_path"])
        for key, inner in items.items():
            yield from _named(inner, place if key == "init_args" else f"{place}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple, set, frozenset)):
        for inner in value:
            yield from _named(inner, place)
    elif callable(value) and not type(value).__module__.startswith("jsonargparse"):  # its own paths
        yield place, value


def _found(path: str) -> Any:
    """As the parser finds it; None where there is nothing."""
    head, _, name = path.rpartition(".")
    try:
        try:
            return getattr(import_module(head), name)
        except ModuleNotFoundError:  # a method
            head, _, owner = head.rpartition(".")
            return getattr(getattr(import_module(head), owner), name)
    except (ImportError, AttributeError, ValueError):
        return None


def _is_allowed(named: Any) -> bool:
    if inspect.isclass(named):
        return _is_of_a_training(named) or _returns_one(named.__call__)
    if not inspect.isroutine(named):
        return _is_of_a_training(type(named)) or _returns_one(type(named).__call__)  # made by an import, not by a call
    of_torch = getattr(functional, getattr(named, "__name__", ""), None) is named
    return of_torch or (_returns_one(named) and not _is_hidden(named))


def _is_of_a_training(kind: type) -> bool:
    """Whether a class is a part of a training."""
    return (
        issubclass(kind, _KINDS)
        or kind.__module__.startswith("torchvision.transforms.")
        or any(_is_public(base) or _path(base) == "tonic.dataset.Dataset" for base in kind.__mro__)
        or any(all(callable(getattr(kind, name, None)) for name in names) for names in _METHODS)
    )


def _is_public(kind: type) -> bool:
    return kind.__module__.startswith("ep_plugin.") and kind.__name__ in ep_plugin.__all__


def _is_hidden(function: Any) -> bool:
    """Whether it is this package's own and not public: some of those call what they are given by its name."""
    place = str(getattr(function, "__module__", ""))
    public = (*ep_plugin.__all__, *ep_plugin.models.__all__)
    return place.startswith("ep_plugin.") and getattr(function, "__name__", "") not in public


def _returns_one(function: Any) -> bool:
    """Whether its annotation says that it returns a tensor or a part of a training."""
    try:
        given = get_type_hints(function).get("return")
    except Exception:  # whatever the text of an annotation leads to
        return False
    return inspect.isclass(given) and (issubclass(given, Tensor) or _is_of_a_training(given))


def _path(named: Any) -> str:
    return f"{getattr(named, '__module__', '')}.{getattr(named, '__qualname__', type(named).__name__)}"
