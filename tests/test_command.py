"""The command itself."""

import subprocess
import sys

import ep_plugin as ep


def test_python_runs_it_as_a_module():
    done = subprocess.run([sys.executable, "-m", "ep_plugin", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"ep-plugin {ep.__version__}\n"
