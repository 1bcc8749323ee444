"""What the guide's reference page documents."""

import inspect
import re
from importlib import import_module
from pathlib import Path

PAGE = Path(__file__).parent.parent / "examples" / "guide" / "api.md"


def documented():
    """Name, without the package's, -> class, function, method or property. (Another test looks for missing names.)"""
    found, entry = {}, r"^::: (ep_plugin[\w.]*)\.(\w+)$(?:\n +options:\n +members: \[(.*)\]$)?"
    for home, name, members in re.findall(entry, PAGE.read_text(), re.M):
        value, full = getattr(import_module(home), name), f"{home}.{name}".removeprefix("ep_plugin.")
        found[full] = value
        found |= {f"{full}.{member}": getattr(value, member) for member in members.split(", ") if member}
    return {name: v for name, v in found.items() if inspect.isroutine(v) or isinstance(v, (type, property))}
