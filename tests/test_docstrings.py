"""The examples of the reference's docstrings run, and print what they show."""

import doctest
import inspect
import warnings

import pytest
import torch
from PIL import Image
from reference import PAGE, documented
from test_readme import blocks

DOCUMENTED = documented()
NOT_RUN = {"compare": "trains two nets, each in its own process"}


class Shown(doctest.OutputChecker):
    """Compares what is printed where the docstring shows it."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


def examples(value):
    return doctest.DocTestParser().get_examples(inspect.getdoc(value))


@pytest.fixture
def given(tmp_path, monkeypatch):
    """What the page says that examples begin with, in a directory that holds the files that they name."""
    monkeypatch.chdir(tmp_path)
    for part in ("train", "test"):
        for kind in ("cats", "dogs"):
            folder = tmp_path / "photographs" / part / kind
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / "1.png")
    names = {}
    (block,) = blocks(PAGE, "python")
    exec(block, names)
    return names


def test_classes_and_functions_have_examples():
    members = [name for name in DOCUMENTED if name.rpartition(".")[0] in DOCUMENTED]
    assert [n for n, v in DOCUMENTED.items() if not examples(v) and n not in members] == []


@pytest.mark.parametrize("name", [name for name, value in DOCUMENTED.items() if examples(value)])
def test_examples_run(name, given):
    if name in NOT_RUN:
        pytest.skip(NOT_RUN[name])
    if name == "EventDataModule":
        pytest.importorskip("tonic")
    torch.manual_seed(0)
    test = doctest.DocTest(examples(DOCUMENTED[name]), given, name, None, None, None)
    said = []
    with warnings.catch_warnings():
        doctest.DocTestRunner(Shown(), verbose=False, optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert not said, "".join(said)
