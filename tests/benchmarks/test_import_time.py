"""What importing the package costs beside importing PyTorch, each in a fresh process, in turn."""

import subprocess
import sys
import time
from statistics import median

STATEMENTS = {
    "torch": "import torch",
    "ep_plugin": "import torch, ep_plugin",
    "ep_plugin and the names of a training": (
        "import torch; from ep_plugin import ConvergentNetwork, EquilibriumPropagation, Relaxation, initialize_"
    ),
}


def seconds(statement):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def test_seconds_to_import(record):
    turns = [{name: seconds(statement) for name, statement in STATEMENTS.items()} for _ in range(5)]
    for name in STATEMENTS:
        record("seconds_to_import", "import", None, name, median(turn[name] for turn in turns))
