"""What a look at a model changes on its way, and gives back: modes, buffers, random numbers."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn
from torch.nn.parameter import is_lazy


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; every module has its own mode back at the end."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True


@contextmanager
def buffers_as_before(module: nn.Module) -> Iterator[None]:
    """Whatever calls write into a module's buffers, such as running statistics, is undone at the end."""
    held = [(t, t.detach().clone()) for t in module.buffers() if not is_lazy(t)]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in held:
                if not torch.equal(tensor, before):  # a batch normalization's writings are not counted
                    tensor.copy_(before)


def random_numbers_as_before(device: torch.device) -> AbstractContextManager[None]:
    """The random generators of the processor and of a device go on as if nothing had been drawn."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])
