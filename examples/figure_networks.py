"""The networks that figures.py draws: how they are made, trained for some batches, and their gradients."""

import warnings
from collections.abc import Iterable, Iterator
from itertools import chain as joined
from itertools import pairwise
from typing import Any, TypeVar

import snntorch as snn
import torch
import torch.nn.functional as F
from snntorch import utils
from torch import Tensor, nn

import ep_plugin as ep
from ep_plugin.models import convolutional_2c2fc
from ep_plugin.progress import track

LAYERS = {
    "stem.0.weight": "conv 1",
    "connections.0.module.0.weight": "conv 2",
    "connections.1.module.1.weight": "linear",
    "readout.0.weight": "readout",
}
# How neurons tell the nudge, and what that is called. Full phases as the recipe mnist-paper has them: predictive
# sigma-delta spikes, and a feedback and a nudge strong enough to stand out of their noise.
TOLD = {"graded": "graded deviations", "events": "deviations by signed events", "full": "full phases of binary spikes"}
FULL: dict[str, Any] = {"encoder": "predictive_sigma_delta", "observe": "membrane", "feedback": 0.05}
Net = TypeVar("Net", bound=nn.Module)
Samples = list[tuple[Tensor, Tensor]]


def converted(net: nn.Module, **settings: Any) -> ep.ConvergentNetwork:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the conversion changes, and what max pooling does to full phases
        return ep.convert(net, **settings)


def network(told: str = "events", pooling: str = "average", seed: int = 0) -> ep.ConvergentNetwork:
    torch.manual_seed(seed)
    return telling(converted(convolutional_2c2fc(gain=2.0, pooling=pooling)), told)


def chain(hidden: int) -> ep.ConvergentNetwork:
    """A perceptron of so many hidden layers of 128 neurons."""
    torch.manual_seed(0)
    sizes = [784, *[128] * hidden]
    linear = [(nn.Linear(a, b), snn.Leaky(beta=0.5)) for a, b in pairwise(sizes)]
    return converted(ep.initialize_(nn.Sequential(nn.Flatten(), *joined(*linear), nn.Linear(128, 10))))


def telling(
    model: ep.ConvergentNetwork, told: str, steps: int | None = None, beta: float | None = None
) -> ep.ConvergentNetwork:
    """The model as it tells a nudge; half as many nudged as free steps."""
    nudged = None if steps is None else -(-steps // 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # max pooling and full phases
        if told == "full":
            estimator = ep.FullPhaseEP(5.0 if beta is None else beta, nudged or 8)
            relaxation = ep.Relaxation(steps or 15, step_size=0.85, order="alternating")
            return model.variant(**FULL, relaxation=relaxation, estimator=estimator)
        return model.variant(
            encoder="graded" if told == "graded" else "adaptive_delta",
            relaxation=ep.Relaxation(steps),
            estimator=ep.EquilibriumPropagation(0.1 if beta is None else beta, nudged),
        )


def settled(model: ep.ConvergentNetwork) -> ep.ConvergentNetwork:
    """BPTT through settled graded states, at the same feedback."""
    return model.variant(encoder="graded", relaxation=ep.Relaxation(40), estimator=ep.BackpropThroughTime())


class ThroughTime(nn.Module):
    """A snnTorch net whose output is the mean over its steps: BPTT, as snnTorch's tutorials have it."""

    def __init__(self, net: nn.Module, num_steps: int) -> None:
        super().__init__()
        self.net, self.num_steps = net, num_steps

    def forward(self, x: Tensor) -> Tensor:
        utils.reset(self.net)
        return torch.stack([self.net(x) for _ in range(self.num_steps)]).mean(0)


def batches(data: ep.MNISTDataModule, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    data.setup()
    for _, batch in zip(range(count), data.train_dataloader(), strict=False):
        yield batch


def train(model: nn.Module, data: ep.MNISTDataModule, count: int) -> Iterator[int]:
    """Trains for so many batches; yields the number of each when it is done."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for n, (x, y) in enumerate(track(batches(data, count), "Training", count), start=1):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield n


def trained(model: Net, data: ep.MNISTDataModule, count: int) -> Net:
    for _ in train(model, data, count):
        pass
    return model


def gradients(model: ep.ConvergentNetwork, names: Iterable[str], images: Samples) -> list[Tensor]:
    """Of each of the parameters, over all the images."""
    parameters = dict(model.named_parameters())
    wanted = [parameters[name] for name in names]
    each = [torch.autograd.grad(F.cross_entropy(model(x), y), wanted) for x, y in track(images, "Gradients")]
    return [torch.stack(g).sum(0) for g in zip(*each, strict=True)]


def cosines(found: list[Tensor], reference: list[Tensor]) -> list[float]:
    return [F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item() for a, b in zip(found, reference, strict=True)]


@torch.no_grad()
def wrong(model: nn.Module, seen: Samples) -> float:
    """Per cent of these images."""
    return 100 * sum((model(x).argmax(1) != y).sum().item() for x, y in seen) / sum(len(y) for _, y in seen)
