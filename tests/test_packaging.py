"""What is built from this tree is whole, and its core needs none of the optional packages."""

import os
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import metadata
from pathlib import Path

import pytest

import ep_plugin

ROOT = Path(ep_plugin.__file__).parents[1]
OPTIONAL = ("norse", "nir", "nirtorch", "pandas", "tonic")


def run(*command, place, path=None):
    """What the command prints, run in `place`, with `path` (else `place`) before what is installed."""
    environment = {**os.environ, "PYTHONPATH": str(path or place)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The directory of an sdist and of the wheel that is built from it."""
    place = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place), str(ROOT), place=place)
    return place


def test_the_wheel_has_the_package_with_its_weights_and_no_tests(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    own = {
        p.relative_to(ROOT).as_posix() for p in (ROOT / "ep_plugin").rglob("*") if p.suffix in {".py", ".pt", ".typed"}
    }
    assert own <= set(names)
    assert "ep_plugin/py.typed" in names
    assert any(name.startswith("ep_plugin/weights/") for name in names)
    assert {name.split("/")[0] for name in names} == {"ep_plugin", f"ep_plugin-{ep_plugin.__version__}.dist-info"}


def test_the_sdist_has_what_the_wheel_is_built_from(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        tops = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert {"ep_plugin", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"} <= tops
    assert not tops & {"tests", "examples", ".ci"}


def test_the_installed_wheel_runs(built, tmp_path):
    """Away from the tree: its version, its weights, its command."""
    (wheel,) = built.glob("*.whl")
    place = tmp_path / "site"
    install = ("-m", "pip", "install", "--no-deps", "--quiet", "--target", str(place), str(wheel))
    run(sys.executable, *install, place=tmp_path)
    code = (
        "import ep_plugin as ep; size = sum(p.numel() for p in ep.pretrained('mnist-2c2fc').parameters()); "
        "print(ep.__file__, ep.__version__, size)"
    )
    file, number, parameters = run(sys.executable, "-c", code, place=place).split()
    assert Path(file).is_relative_to(place)
    assert number == ep_plugin.__version__
    assert int(parameters) > 100_000
    assert "compare" in run(sys.executable, str(place / "bin" / "ep-plugin"), "--help", place=place)


def test_required_packages_are_those_of_the_core():
    required = [line for line in metadata("ep-plugin").get_all("Requires-Dist") if "extra ==" not in line]
    assert not [line for line in required if line.startswith(OPTIONAL)]


@pytest.fixture
def without(tmp_path):
    """A directory that hides the optional packages from an interpreter that has it on its path."""
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "found = PathFinder.find_spec\n"
        f"hidden = {OPTIONAL!r}\n"
        "PathFinder.find_spec = lambda name, *rest: None if name.split('.')[0] in hidden else found(name, *rest)\n"
    )
    return tmp_path


CORE = """
import sys, torch, snntorch as snn
import ep_plugin as ep
from ep_plugin import *
assert "ConvergentLIFBoxCell" not in ep.__all__ and not {"to_nir", "nir"} & set(dir(ep))
net = torch.nn.Sequential(torch.nn.Linear(64, 20), snn.Leaky(beta=.9, init_hidden=True), torch.nn.Linear(20, 10))
model = ep.convert(net)
model(torch.rand(2, 64)).sum().backward()
print(ep.to_snntorch(model, num_steps=4)(torch.rand(2, 64)).shape)
for ask in (lambda: ep.to_nir, lambda: ep.nir, lambda: ep.ConvergentLIFBoxCell, lambda: ep.to_norse(model)):
    try:
        ask()
    except ModuleNotFoundError as error:
        print(error)
"""


def test_the_core_alone_converts_trains_and_names_what_is_missing(without):
    told = run(sys.executable, "-c", CORE, place=without, path=f"{without}{os.pathsep}{ROOT}").splitlines()
    assert told[0] == "torch.Size([2, 10])"
    assert [line.split(" or ")[0] for line in told[1:]] == [
        "ep_plugin.to_nir needs nir, which is not installed: pip install nir,",
        "ep_plugin.nir needs nir, which is not installed: pip install nir,",
        "ep_plugin.ConvergentLIFBoxCell needs norse, which is not installed: pip install norse,",
        "to_norse needs norse, which is not installed: pip install norse,",
    ]


@pytest.mark.parametrize("command", ["compare --epochs 1", "fit --help", "count --help"])
def test_the_core_alone_runs_the_commands(without, command):
    code = "from ep_plugin.cli import main; main()"
    run(sys.executable, "-c", code, *command.split(), place=without, path=f"{without}{os.pathsep}{ROOT}")
