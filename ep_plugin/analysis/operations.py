"""Operations of an inference and of a training step, counted layer by layer and phase by phase."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ep_plugin.analysis import convergent_operations, plain_operations
from ep_plugin.analysis.operation_counts import Loss, OperationCounts
from ep_plugin.network import ConvergentNetwork
from ep_plugin.validation import count


def count_operations(
    model: nn.Module,
    x: Tensor,
    y: Any = None,
    loss: Loss = nn.functional.cross_entropy,
    num_steps: int | None = None,
) -> OperationCounts:
    """The operations of an inference and, with `y`, of a training step.

    An event that reaches a synapse is one synaptic operation. What reaches a synapse and is no event (the
    pixels of an image, graded states, spikes that were averaged by a pooling between) is a multiply-add;
    zeros among them count as nothing, as an event-driven machine would skip them, but in stem, readout, backward pass
    and weight update, where all are counted. Biases, poolings and normalizations are not counted, nor is what
    it takes to find the winners of a max pooling.

    Of a `ConvergentNetwork` it counts the network's own phases with its own encoder and estimator. The weight update
    is the contrast, two products a synapse, and one step of every weight. Of another net it counts every call of
    its linear and convolutional modules and of its snnTorch or Norse neurons; its backward pass is that of
    backpropagation through time, a product for the inputs and one for the weights, dense.

    The network is left as it is: its gradients, its mode, its states and the random generators.

    Args:
        model: a `ConvergentNetwork`, or a net with snnTorch's or Norse's neurons.
        x: a batch, `[B, ...]`. The numbers are its means.
        y: what `loss` takes beside the output.
        loss: (output, y) -> scalar.
        num_steps: of a net that is called once a step: how often, with the same input. Its output is the mean over
            the steps. None for a net that has the loop in its forward, and for a `ConvergentNetwork`.

    Returns:
        The counts. `print` shows them as a table.

    Raises:
        ValueError: a module is not known, so that nothing would be right; the estimator is one without phases;
            `num_steps` of a `ConvergentNetwork`.
        TypeError: `model` is no module, or `x` no tensor.

    Example:
        >>> print(count_operations(model, x, y))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"count_operations was given a {type(model).__name__}; expected an nn.Module")
    if not isinstance(x, Tensor):
        raise TypeError(f"the input is a {type(x).__name__}; expected a tensor")
    if num_steps is not None:
        count("num_steps", num_steps)
    devices = [x.device] if x.device.type == "cuda" else []
    with _unnoticed(model), torch.random.fork_rng(devices):
        if not isinstance(model, ConvergentNetwork):
            rows, memory = plain_operations.counted(model, x, y, loss, num_steps)
        elif num_steps is not None:
            raise ValueError(
                f"num_steps is {num_steps}, and a ConvergentNetwork has steps of its own; set them by "
                f"model.variant(relaxation=Relaxation({num_steps})), and leave num_steps out"
            )
        else:
            rows, memory = convergent_operations.counted(model, x, y, loss)
    return OperationCounts(tuple(rows), memory)


@contextmanager
def _unnoticed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and parameters' gradients that are given back."""
    training = [m for m in model.modules() if m.training]
    gradients = [(p, p.grad) for p in model.parameters()]
    for p, _ in gradients:
        p.grad = None
    model.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True
        for p, grad in gradients:
            p.grad = grad
