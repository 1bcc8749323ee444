"""What figures.py measures over depth: the gradient's agreement in chains, and the time of a training step."""

import statistics
import time
from pathlib import Path

import snntorch as snn
import torch
import torch.nn.functional as F
from figure_networks import TOLD, Samples, ThroughTime, converted, cosines, gradients, settled, telling, trained, wrong
from torch import Tensor, nn

import ep_plugin as ep
from ep_plugin.models.weights import standardized

WIDTH = 128
BATCH = 32
DEPTHS = (1, 2, 4, 8, 16, 32)
HIDDEN, CHANNELS = (1, 2, 4, 8, 16), (8, 16, 32, 64)
# Of which one is fixed while the other varies.
FIXED_HIDDEN, FIXED_CHANNELS = 4, 16
BPTT_STEPS = 25
Rows = list[dict]


def neuron() -> nn.Module:
    return snn.Leaky(beta=0.9, init_hidden=True)


class Shortcut(nn.Module):
    """A layer whose input is added to what drives it, as in `ep.models.compact_residual`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = standardized(nn.Linear(WIDTH, WIDTH), 0.5)
        self.neuron = neuron()

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(self.linear(x) + x)


def chain(hidden: int, shortcuts: bool) -> ep.ConvergentNetwork:
    """A perceptron of so many hidden layers with standardized weights."""
    torch.manual_seed(0)

    def layer(inputs: int) -> tuple[nn.Module, ...]:
        return standardized(nn.Linear(inputs, WIDTH), 1.0), neuron()

    modules: list[nn.Module] = [nn.Flatten(), *layer(784)]
    for _ in range(hidden - 1):
        modules += [Shortcut()] if shortcuts else layer(WIDTH)
    return converted(nn.Sequential(*modules, nn.Linear(WIDTH, 10)))


def agreement(data_dir: Path, train_batches: int, seen: Samples) -> Rows:
    """Cosine and norm of every weight's gradient over those of BPTT through settled graded states, chain by chain.

    Args:
        data_dir: holds MNIST.
        train_batches: that each chain is trained on before.
        seen: the images over which gradients are compared.
    """
    rows: Rows = []
    for hidden in DEPTHS:
        for shortcuts in (False, True) if hidden > 1 else (True,):
            model = trained(chain(hidden, shortcuts), ep.MNISTDataModule(data_dir), train_batches)
            names = [name for name, p in model.named_parameters() if p.dim() > 1]
            error = wrong(model, seen)
            for told in TOLD:
                own = telling(model, told)  # full phases have a feedback of their own, and so a reference of their own
                found, reference = gradients(own, names, seen), gradients(settled(own), names, seen)
                kind = {"shortcuts": shortcuts, "hidden": hidden, "told": told, "error": error}
                pairs = zip(found, reference, cosines(found, reference), strict=True)
                rows += [
                    {**kind, "weight": k, "cosine": c, "norm": (a.norm() / b.norm()).item()}
                    for k, (a, b, c) in enumerate(pairs, start=1)
                ]
            print(
                hidden, "hidden layers,", "with" if shortcuts else "no", f"shortcuts, {error:.1f} % wrong", flush=True
            )
    return rows


def convolutions(hidden: int, channels: int) -> nn.Sequential:
    """So many hidden layers of 3x3 convolutions over 14 x 14 places."""
    torch.manual_seed(0)
    modules: list[nn.Module] = [nn.Conv2d(1, channels, 3, padding=1), nn.AvgPool2d(2), neuron()]
    for _ in range(hidden - 1):
        modules += [nn.Conv2d(channels, channels, 3, padding=1), neuron()]
    return ep.initialize_(nn.Sequential(*modules, nn.Flatten(), nn.Linear(channels * 14 * 14, 10)))


def methods(hidden: int, channels: int) -> dict[str, nn.Module]:
    """Name -> what a training step of it runs. Each has a net of its own (snnTorch resets no copies)."""
    net, spiking, through_time = (convolutions(hidden, channels) for _ in range(3))
    return {
        "EP": converted(spiking),
        f"snnTorch BPTT, {BPTT_STEPS} steps": ThroughTime(through_time, BPTT_STEPS),
        "feedforward backpropagation": nn.Sequential(
            *(nn.Hardtanh(0, 1) if isinstance(m, snn.Leaky) else m for m in net)
        ),
    }


def cost(turns: int) -> Rows:
    """Milliseconds of one core for loss and gradients: medians, where the methods take turns."""
    x, y = torch.rand(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))
    tried = [("hidden", hidden, FIXED_CHANNELS) for hidden in HIDDEN]
    tried += [("channels", FIXED_HIDDEN, channels) for channels in CHANNELS]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: Rows = []
    for over, hidden, channels in tried:
        runs = methods(hidden, channels)
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(turns + 1):
            for name, model in runs.items():
                start = time.process_time()
                model.zero_grad()
                F.cross_entropy(model(x), y).backward()
                if turn:  # the first one warms up
                    taken[name].append(1000 * (time.process_time() - start))
        kind = {"over": over, "hidden": hidden, "channels": channels}
        rows += [{**kind, "method": name, "ms": statistics.median(ms)} for name, ms in taken.items()]
        print(*(f"{row['method']}: {row['ms']:.1f} ms" for row in rows[-len(runs) :]), sep=", ", flush=True)
    torch.set_num_threads(threads)
    return rows
