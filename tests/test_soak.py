"""Long runs: neither memory nor the time of a step grows. A few minutes on one core:

pytest -m slow -s tests/test_soak.py
"""

import time
from itertools import cycle
from statistics import mean, median

import psutil
import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import nn

import ep_plugin as ep
from ep_plugin.models import small_convolutional

TIMES = 10_000
NETS = {
    "dense": lambda: nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 32), snn.Leaky(0.9, init_hidden=True)),
        *(nn.Linear(32, 16), snn.Leaky(0.9, init_hidden=True), nn.Linear(16, 10)),
    ),
    "convolutional": small_convolutional,
}


def steps(kind, model, batches):
    """A step of training, or an inference, each time that it is called."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def train():
        x, y = next(batches)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    @torch.no_grad()
    def infer():
        model(next(batches)[0], return_equilibrium=True)

    return {"training": train, "inference": infer}[kind]


def plain_pytorch():
    """About a millisecond of small operations, as a step has them."""
    x, weight = torch.ones(16, 16, 8, 8), torch.ones(16, 16, 3, 3)
    for _ in range(4):
        x = F.conv2d(x, weight, padding=1).clamp_(0, 1)


def processor_seconds(call):
    start = time.process_time()
    call()
    return time.process_time() - start


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["training", "inference"])
@pytest.mark.parametrize("net", NETS)
def test_memory_and_time_stay_what_they_are(net, kind):
    """Of the last tenth of 10,000 steps, beside those of the second tenth: within 2 % and 10 %.

    Time is the processor's, of this process, and as a multiple of the time of a fixed piece of PyTorch that takes turns
    with the steps. A processor may be slower in the last tenth than in the second, as others use its caches.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        data = ep.DigitsDataModule(16)
        data.setup()
        model = ep.convert(NETS[net]()).train(kind == "training")
        step = steps(kind, model, cycle(list(data.train_dataloader())))
        process, seconds, fixed, resident = psutil.Process(), [], [], []
        for n in range(TIMES):
            seconds.append(processor_seconds(step))
            fixed.append(processor_seconds(plain_pytorch))
            if n % 20 == 0:
                resident.append(process.memory_info().rss)
    finally:
        torch.set_num_threads(threads)
    tenth, share = TIMES // 10, len(resident) // 10
    second, last = slice(tenth, 2 * tenth), slice(-tenth, None)
    slower = median(fixed[last]) / median(fixed[second])
    time_ratio = median(seconds[last]) / median(seconds[second]) / slower
    memory_ratio = mean(resident[-share:]) / mean(resident[share : 2 * share])
    print(
        f"\n{net}, {kind}: {1e3 * median(seconds):.2f} ms a step, {resident[-1] / 2**20:.0f} MB; "
        f"last tenth over second: time {time_ratio:.3f} (processor {slower:.3f}), "
        f"memory {memory_ratio:.4f}"
    )
    assert memory_ratio < 1.02
    assert time_ratio < 1.10
