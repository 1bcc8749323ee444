"""A model as it was before its forward was traced: attributes, buffers, containers, modes, hooks."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


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
    else:
        return
    for value in list(inside):
        _keep(value, undo, seen)


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
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(values)

    return restore_values


def _same(found: list[tuple[Any, Any]], kept: list[tuple[Any, Any]]) -> bool:
    return len(found) == len(kept) and all(a is c and b is d for (a, b), (c, d) in zip(found, kept, strict=True))
