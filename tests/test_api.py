"""The API page follows the docstrings, and these say what a name takes and raises."""

import dataclasses
import inspect
import re
import runpy
from pathlib import Path

import pytest

import ep_plugin
from ep_plugin import checks

EXAMPLES = Path(__file__).parents[1] / "examples"
CHECKS = [name for name, f in vars(checks).items() if inspect.isfunction(f)]


def test_the_committed_page_is_what_the_script_prints():
    page = runpy.run_path(str(EXAMPLES / "api.py"))["page"]()
    assert (EXAMPLES / "API.md").read_text() == page, "run `python examples/api.py > examples/API.md`"
    assert not re.search(r" at 0x|<function|site-packages", page)


def made_by(value):
    """The source of a function, or of what makes an object of a class."""
    if not inspect.isclass(value):
        return inspect.getsource(value)
    name = "__post_init__" if dataclasses.is_dataclass(value) else "__init__"
    made = getattr(value, name, None)
    return inspect.getsource(made) if inspect.isfunction(made) and made.__module__.startswith("ep_plugin") else ""


@pytest.mark.parametrize("name", sorted(ep_plugin._HOME))
def test_arguments_and_errors_are_documented(name):
    """Each parameter stands under Args (or Attributes); what raises, or checks its arguments, has Raises."""
    value = getattr(ep_plugin, name)
    doc = inspect.getdoc(value)
    taken = [p for p in inspect.signature(value).parameters if p != "self"]
    described = re.split(r"^(?:Args|Attributes):$", doc, maxsplit=1, flags=re.MULTILINE)
    if taken:
        assert len(described) == 2, f"{name} takes {taken}, and its docstring has no Args"
        assert [p for p in taken if not re.search(rf"\b{p}\b", described[1])] == []
    if re.search(rf"\braise |\b(?:{'|'.join(CHECKS)})\(", made_by(value)):
        assert re.search(r"^Raises:$", doc, flags=re.MULTILINE), f"{name} raises, and its docstring has no Raises"
