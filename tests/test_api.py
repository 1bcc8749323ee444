"""Docstrings say what a name takes, returns and raises."""

import dataclasses
import inspect
import re

import pytest
from reference import documented

from ep_plugin import validation

CHECKS = [name for name, f in vars(validation).items() if inspect.isfunction(f)]
DOCUMENTED = documented()
FUNCTIONS = [name for name, value in DOCUMENTED.items() if inspect.isroutine(value)]


def made_by(value):
    """The source of a function, or of what makes an object of a class."""
    if not inspect.isclass(value):
        return inspect.getsource(value)
    name = "__post_init__" if dataclasses.is_dataclass(value) else "__init__"
    made = getattr(value, name, None)
    return inspect.getsource(made) if inspect.isfunction(made) and made.__module__.startswith("ep_plugin") else ""


def taken_by(value):
    """The names of what is given in a call."""
    without = inspect.isclass(value) and (issubclass(value, Warning) or getattr(value, "_is_protocol", False))
    if without or isinstance(value, property):
        return []
    parameters = inspect.signature(value).parameters
    return [p for p in parameters if p not in ("self", "cls", "args", "kwargs")]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_arguments_and_errors_are_documented(name):
    """Each parameter has its line under Args (or Attributes); what raises, or checks its arguments, has Raises."""
    value = DOCUMENTED[name]
    doc, taken = inspect.getdoc(value), taken_by(value)
    described = re.split(r"^(?:Args|Attributes):$", doc, maxsplit=1, flags=re.MULTILINE)
    if taken:
        assert len(described) == 2, f"{name} takes {taken}, and its docstring has no Args"
        assert [p for p in taken if not re.search(rf"^ +{p}: ", described[1], flags=re.MULTILINE)] == []
    source = "" if isinstance(value, property) else made_by(value)
    source = source.replace("raise NotImplementedError", "")
    if re.search(rf"\braise |\b(?:{'|'.join(CHECKS)})\(", source):
        assert re.search(r"^Raises:$", doc, flags=re.MULTILINE), f"{name} raises, and its docstring has no Raises"
    assert not re.search(r"^ +\w+(, \w+)+: ", doc, flags=re.MULTILINE)  # tools read one name a line


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_functions_return_is_documented(name):
    value = DOCUMENTED[name]
    if inspect.signature(value).return_annotation is not None:
        assert re.search(r"^Returns:$", inspect.getdoc(value), re.MULTILINE), f"{name} has no Returns"
