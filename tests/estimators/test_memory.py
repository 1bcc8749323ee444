"""The peak of a training step does not grow with the number of steps; each in a process of its own."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys, warnings
import torch, torch.nn.functional as F
warnings.simplefilter("ignore")
import ep_plugin as ep
from ep_plugin.memory import peak_memory, reset_peak_memory
from ep_plugin.models import convolutional_2c2fc

steps = int(sys.argv[1])
torch.manual_seed(0)
model = ep.convert(convolutional_2c2fc(), relaxation=ep.Relaxation(steps))
x, y = torch.rand(64, 1, 28, 28), torch.randint(10, (64,))
for rule in (ep.EquilibriumPropagation, ep.FullPhaseEP):
    model.estimator = rule(steps=steps // 2)
    start = reset_peak_memory()
    F.cross_entropy(model(x), y).backward()
    model.zero_grad()
    print(peak_memory() - start)
"""


def peaks(steps):
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(steps)], capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak can be reset on Linux only")
def test_memory_does_not_grow_with_steps(capsys):
    for rule, few, many in zip(("deviations", "full phases"), peaks(25), peaks(200), strict=True):
        with capsys.disabled():
            print(f"\npeak above the start, {rule}: {few:.0f} MB at 25 steps, {many:.0f} MB at 200 steps")
        assert many <= 1.1 * few + 15
