"""Docstrings say what a name takes and raises."""

import dataclasses
import inspect
import re

import pytest

import ep_plugin
from ep_plugin import validation

CHECKS = [name for name, f in vars(validation).items() if inspect.isfunction(f)]


def made_by(value):
    """The source of a function, or of what makes an object of a class."""
    if not inspect.isclass(value):
        return inspect.getsource(value)
    name = "__post_init__" if dataclasses.is_dataclass(value) else "__init__"
    made = getattr(value, name, None)
    return inspect.getsource(made) if inspect.isfunction(made) and made.__module__.startswith("ep_plugin") else ""


@pytest.mark.parametrize("name", sorted(ep_plugin.__all__))
def test_arguments_and_errors_are_documented(name):
    """Each parameter has its line under Args (or Attributes); what raises, or checks its arguments, has Raises."""
    value = getattr(ep_plugin, name)
    doc = inspect.getdoc(value)
    is_warning = inspect.isclass(value) and issubclass(value, Warning)
    taken = [] if is_warning else [p for p in inspect.signature(value).parameters if p != "self"]
    described = re.split(r"^(?:Args|Attributes):$", doc, maxsplit=1, flags=re.MULTILINE)
    if taken:
        assert len(described) == 2, f"{name} takes {taken}, and its docstring has no Args"
        assert [p for p in taken if not re.search(rf"^ +{p}: ", described[1], flags=re.MULTILINE)] == []
    if re.search(rf"\braise |\b(?:{'|'.join(CHECKS)})\(", made_by(value)):
        assert re.search(r"^Raises:$", doc, flags=re.MULTILINE), f"{name} raises, and its docstring has no Raises"
    assert not re.search(r"^ +\w+(, \w+)+: ", doc, flags=re.MULTILINE)  # tools read one name a line


@pytest.mark.parametrize("home", [ep_plugin, ep_plugin.models, ep_plugin.plots], ids=lambda home: home.__name__)
def test_what_functions_return_is_documented(home):
    functions = {name: f for name in home.__all__ if inspect.isfunction(f := getattr(home, name))}
    returning = {name: f for name, f in functions.items() if inspect.signature(f).return_annotation is not None}
    assert returning
    assert [n for n, f in returning.items() if not re.search(r"^Returns:$", inspect.getdoc(f), re.MULTILINE)] == []
