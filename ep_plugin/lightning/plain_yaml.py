"""YAML that says everything once, and ends."""

from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

MODE = "plain_yaml"  # of a parser
_DEEPEST, _MOST = 50, 100_000  # levels and values, far above those of any configuration


def _load(text: str) -> Any:
    if root := yaml.compose(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        _size(root, {}, [])
    return get_loader("yaml")(text)


def _size(node: yaml.Node, known: dict[int, int], above: list[int]) -> int:
    """How many values a node has in full, each as often as it is named: a few lines may name themselves for ever."""
    if id(node) in above:
        raise yaml.YAMLError(f"line {node.start_mark.line + 1} contains itself")
    if len(above) > _DEEPEST:
        raise yaml.YAMLError(f"it has more than {_DEEPEST} levels")
    if id(node) not in known:
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _require_once(node)
            inner = [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        known[id(node)] = 1 + sum(_size(value, known, [*above, id(node)]) for value in inner)
        if known[id(node)] > _MOST:
            raise yaml.YAMLError(f"it has more than {_MOST:,} values")
    return known[id(node)]


def _require_once(node: yaml.MappingNode) -> None:
    """Of a key that is given twice YAML would take the last."""
    seen = set()
    for key, _ in node.value:
        name = str(key.value)
        if name in seen and name != "<<":
            raise yaml.YAMLError(f"line {key.start_mark.line + 1} gives {name!r} a second time")
        seen.add(name)


set_loader(MODE, _load, exceptions=(yaml.YAMLError,))
