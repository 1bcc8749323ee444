"""`import ep_plugin` is light, and every public name loads."""

import ast
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import ep_plugin


def test_import_loads_nothing_heavy():
    heavy = ["norse", "lightning", "matplotlib", "sklearn", "pandas", "torchvision", "snntorch", "tonic", "h5py"]
    code = f"import sys, ep_plugin; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_event_data_is_read_by_tonic_alone_and_only_where_it_is_asked_for():
    code = "import sys, ep_plugin as ep; ep.EventDataModule, ep.SaccadeMNISTDataModule; ep.DigitsDataModule()"
    code += "; print([m for m in ('tonic', 'h5py') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_to_install_is_told_where_tonic_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tonic", None)
    with pytest.raises(ValueError, match="needs tonic, which is not installed: pip install tonic"):
        ep_plugin.EventDataModule("nmnist")


NAMES = sorted(ep_plugin.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_public_names_load(name):
    assert getattr(ep_plugin, name).__doc__


def for_type_checkers():
    """Name -> the module that it is imported from under TYPE_CHECKING."""
    tree = ast.parse(Path(ep_plugin.__file__).read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name  # a re-export, to type checkers
            found[alias.name] = node.module
    return found


def test_type_checkers_see_the_same_names_from_the_same_places():
    places = for_type_checkers()
    assert sorted(places) == NAMES
    for name, place in places.items():
        assert getattr(ep_plugin, name) is getattr(import_module(place), name)


def test_no_public_name_is_a_submodule():
    """Importing a submodule binds its name in the package, over a public name that is the same."""
    submodules = {module.name for module in pkgutil.iter_modules(ep_plugin.__path__)}
    assert not submodules & set(NAMES)


def test_every_public_name_is_listed_and_nothing_else_is():
    """By `dir` (and so by what completes names) before anything has been loaded, and by `import *`."""
    code = "import ep_plugin; print(*[n for n in dir(ep_plugin) if n[0] != '_'])"
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    own = {"TYPE_CHECKING", "import_module"}
    submodules = set(listed) - set(NAMES) - own
    assert set(NAMES) <= set(listed)
    assert all(isinstance(getattr(ep_plugin, name), ModuleType) for name in submodules)
    space = {}
    exec("from ep_plugin import *", space)
    assert sorted(set(space) - {"__builtins__"}) == NAMES


def test_modules_that_the_guide_names_are_there_after_the_import():
    """`help(ep_plugin.nir.modules)` and the like, before anything else was asked for."""
    code = "import ep_plugin as ep; print(ep.nir.modules, ep.deployment, ep.comparison.CONTENDERS, ep.analysis.LOIHI)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'conv'"):
        ep_plugin.conv  # noqa: B018
