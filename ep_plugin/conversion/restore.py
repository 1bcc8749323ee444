"""A model as it was before its forward was traced: attributes, buffers, containers, modes, hooks."""

import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

_LIBRARIES = ("ep_plugin", "lightning", "norse", "numpy", "snntorch", "torch", "torchvision")


@contextmanager
def unchanged(net: nn.Module) -> Iterator[None]:
    """Whatever is done to the model's modules inside is undone at the end, also after an error."""
    undo: list[Callable[[], None]] = []
    seen: set[int] = set()
    for module in net.modules():
        _keep(module.__dict__, undo, seen)
    try:
        yield
    finally:
        for restore in undo:
            restore()


def _keep(container: Any, undo: list[Callable[[], None]], seen: set[int]) -> None:
    """Notes how to restore a container and those in it, however deep."""
    if isinstance(container, tuple):
        inside: Any = container
    elif isinstance(container, (dict, list, set, deque)):
        if id(container) in seen:
            return
        seen.add(id(container))
        undo.append(_restorer(container))
        inside = container.values() if isinstance(container, dict) else container
    elif _is_plain(container):
        _keep(vars(container), undo, seen)
        return
    else:
        return
    for value in list(inside):
        _keep(value, undo, seen)


def _is_plain(value: Any) -> bool:
    """Whether it is an object of the user's own that may hold a state. Libraries' own may lead to all that there is."""
    kind = type(value)
    if not isinstance(getattr(value, "__dict__", None), dict) or isinstance(value, (type, nn.Module, Tensor)):
        return False
    home = kind.__module__.partition(".")[0]
    return kind is SimpleNamespace or (home not in sys.stdlib_module_names and home not in _LIBRARIES)


def _restorer(container: Any) -> Callable[[], None]:
    if isinstance(container, dict):
        items = list(container.items())

        def restore_items() -> None:
            if not _same(list(container.items()), items):
                container.clear()
                container.update(items)

        return restore_items
    values = list(container)

    def restore_values() -> None:
        if len(container) == len(values) and all(a is b for a, b in zip(container, values, strict=True)):
            return  # the lists that a trace leaves cannot be written into
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(values)

    return restore_values


def _same(found: list[tuple[Any, Any]], kept: list[tuple[Any, Any]]) -> bool:
    return len(found) == len(kept) and all(a is c and b is d for (a, b), (c, d) in zip(found, kept, strict=True))
