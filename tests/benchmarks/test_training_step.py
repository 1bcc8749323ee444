"""Seconds and peak memory of a training step, against BPTT, feedforward backprop, other EP code and products alone.

Contenders take turns, so that a slow minute of the machine falls on all of them alike.
"""

import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path

import psutil
import pytest
import torch
from contenders import BATCHES, CONTENDERS, DEFAULT, LIMIT, NETS, TIME_STEPS, saved_bytes

CASES = [(net, batch) for net in NETS for batch in BATCHES]


def effort(net: str, batch: int) -> tuple[int, int]:
    """Turns, and measurements a turn: few where a step takes many seconds."""
    if net == "deeper" and batch > 1:
        return (2, 1) if batch <= 64 else (1, 1)
    return 3, 5


PLAN = [
    (net, batch, turn, name) for net, batch in CASES for turn in range(effort(net, batch)[0]) for name in CONTENDERS
]


@cache
def saved(net: str) -> int:
    return saved_bytes(NETS[net])


def require_memory(net: str, batch: int, contender: str) -> None:
    needed = 1.5 * saved(net) * batch * TIME_STEPS.get(contender, 0)
    if needed > 0.7 * psutil.virtual_memory().available:
        pytest.skip(f"needs about {needed / 2**30:.0f} GB of memory")


@pytest.mark.parametrize(("net", "batch", "turn", "contender"), PLAN)
def test_seconds(net, batch, turn, contender, benchmark):
    require_memory(net, batch, contender)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step = CONTENDERS[contender](NETS[net], batch)
    benchmark.extra_info.update(net=net, batch=batch, contender=contender)
    benchmark.pedantic(step, rounds=effort(net, batch)[1], warmup_rounds=1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a process's peak can be reset on Linux only")
@pytest.mark.parametrize(("net", "batch"), CASES)
@pytest.mark.parametrize("contender", [*(c for c in CONTENDERS if c != LIMIT), f"{DEFAULT}@25", f"{DEFAULT}@400"])
def test_memory(net, batch, contender, record):
    if "@" in contender and (net, batch) != ("2c2fc", 64):
        pytest.skip("the growth with steps is measured on one net")
    require_memory(net, batch, contender)
    program = Path(__file__).with_name("peak_memory.py")
    arguments = [sys.executable, str(program), net, str(batch), contender]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    record("peak_memory_mb", net, batch, contender, float(done.stdout))
