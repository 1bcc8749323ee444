"""`import ep_plugin` is light, and every public name loads."""

import subprocess
import sys

import pytest

import ep_plugin


def test_import_loads_nothing_heavy():
    heavy = ["norse", "lightning", "matplotlib", "sklearn", "pandas", "torchvision", "snntorch"]
    code = f"import sys, ep_plugin; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("name", sorted(ep_plugin._HOME))
def test_public_names_load(name):
    assert name in dir(ep_plugin)
    assert getattr(ep_plugin, name).__doc__


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'conv'"):
        ep_plugin.conv  # noqa: B018
