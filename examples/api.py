"""Prints examples/API.md, every public name with its docstring: `python examples/api.py > examples/API.md`."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from itertools import groupby

import ep_plugin

_WIDTH = 100  # of a signature on one line


class _Named:
    """A default value that is a function, shown by its name and not by its address."""

    def __init__(self, function: object) -> None:
        self.name = getattr(function, "__name__", type(function).__name__)

    def __repr__(self) -> str:
        return self.name


def signature(name: str, value: object) -> str:
    """`name(parameters)` with their defaults; the types are the docstrings' business."""
    found = inspect.signature(value)
    parameters = [
        p.replace(annotation=p.empty, default=_Named(p.default) if inspect.isroutine(p.default) else p.default)
        for p in found.parameters.values()
        if p.name != "self"
    ]
    line = f"{name}{found.replace(parameters=parameters, return_annotation=found.empty)}"
    if len(line) <= _WIDTH:
        return line
    star = "*" if "(*," in line or ", *," in line else ""
    shown = [str(p) for p in parameters]
    if star:
        shown.insert(next(n for n, p in enumerate(parameters) if p.kind is p.KEYWORD_ONLY), star)
    return "\n".join([f"{name}(", *(f"    {p}," for p in shown), ")"])


def methods(value: object) -> Iterator[tuple[str, object]]:
    """A class's own public methods that say what they do."""
    if inspect.isclass(value):
        for name, method in vars(value).items():
            if not name.startswith("_") and inspect.isfunction(method) and method.__doc__:
                yield name, method


def entry(title: str, shown: str, value: object) -> str:
    return f"{title}\n\n```text\n{shown}\n\n{inspect.getdoc(value)}\n```\n"


def page() -> str:
    parts = [
        "# API\n",
        "Every public name, `ep_plugin.NAME`, with its docstring. Printed by `python examples/api.py`; what is to be\n"
        "changed is changed in the docstrings.\n",
    ]
    by_module = sorted(ep_plugin._HOME.items(), key=lambda item: (item[1], item[0]))
    for module, names in groupby(by_module, key=lambda item: item[1]):
        about = (import_module(f"ep_plugin.{module}").__doc__ or "").strip().partition("\n\n")[0]
        parts.append(f"## ep_plugin.{module}\n\n{about}\n")
        for name, _ in names:
            value = getattr(ep_plugin, name)
            parts.append(entry(f"### {name}", signature(name, value), value))
            parts += [entry(f"#### {name}.{own}", signature(own, method), method) for own, method in methods(value)]
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
