"""The notebooks run, fast, in a directory of their own; the committed ones hold what a full run gave."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))
MACHINE = re.compile(r"/(?:home|root|opt|tmp|usr|work|Users|private|var)/|[A-Z]:\\\\|site-packages|ipykernel_")


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs(name, tmp_path, monkeypatch):
    """The switch makes trainings short; files that a notebook writes go to where its copy lies."""
    monkeypatch.setenv("EP_PLUGIN_FAST", "1")
    copy = Path(shutil.copy(EXAMPLES / name, tmp_path))
    notebook = nbformat.read(copy, as_version=4)
    NotebookClient(notebook, timeout=300).execute(cwd=str(tmp_path))
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_committed(name):
    """Outputs of a whole run, in order, with pictures, without errors or places on someone's machine."""
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) >= 3
    assert not [o for o in outputs(notebook) if o.output_type == "error"]
    for output in outputs(notebook):
        if "data" in output:
            output["data"].pop("image/png", None)
    assert not MACHINE.search(json.dumps(notebook))
    assert (EXAMPLES / name).stat().st_size < 400_000
