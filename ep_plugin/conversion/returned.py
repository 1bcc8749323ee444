"""What a forward returns: tensors in tuples, dictionaries and the like, each with its place."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, fx

Path = tuple[Any, ...]
"""Where an output stands in what forward returns: indices, keys, names of fields."""


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Tensors in a structure, with their places."""
    if isinstance(value, (fx.Proxy, Tensor)):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for name in value._fields:
            yield from leaves(getattr(value, name), (*path, name))
    elif isinstance(value, (tuple, list)):
        for i, inner in enumerate(value):
            yield from leaves(inner, (*path, i))
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from leaves(getattr(value, f.name), (*path, f.name))
