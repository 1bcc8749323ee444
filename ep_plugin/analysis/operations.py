"""Operations of an inference and of a training step, counted layer by layer and phase by phase."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ep_plugin.analysis import convergent_operations, plain_operations
from ep_plugin.analysis.operation_counts import Loss, OperationCounts
from ep_plugin.network import ConvergentNetwork
from ep_plugin.unnoticed import evaluating, random_numbers_as_before
from ep_plugin.validation import count


def count_operations(
    model: nn.Module,
    x: Tensor,
    y: Any = None,
    loss: Loss = nn.functional.cross_entropy,
    num_steps: int | None = None,
) -> OperationCounts:
    """Counts the operations of an inference and, with `y`, of a training step.

    An event that reaches a synapse is one synaptic operation. A number that reaches a synapse and is not an event (a
    pixel of an image, a graded state, spikes that were averaged by a pooling before it) is a multiply-add. Zeros are
    not counted, as an event-driven machine would skip them. But in stem, readout, backward pass and weight update all
    numbers are counted. Biases, poolings and normalizations are not counted, nor the search for the winners of a max
    pooling.

    For a `ConvergentNetwork` it counts the network's own phases with its own encoder and estimator. The weight update
    is the contrast, two products per synapse, and one step of every weight. For another net it counts every call of
    its linear and convolutional modules and of its snnTorch or Norse neurons; its backward pass is that of
    backpropagation through time, one product for the inputs and one for the weights, dense.

    The network is not changed: its gradients, its mode, its states and the random generators stay as they are.

    Args:
        model: a `ConvergentNetwork`, or a net with snnTorch's or Norse's neurons.
        x: a batch, `[B, ...]`. The numbers are its means.
        y: the second argument of `loss`.
        loss: (output, y) -> scalar.
        num_steps: for a net that is called once per step: how often, with the same input. Its output is the mean over
            the steps. None for a net with the loop in its forward, and for a `ConvergentNetwork`.

    Returns:
        The counts. `print` shows them as a table.

    Raises:
        ValueError: a module is not known, so that the counts would be wrong; the estimator has no phases; or
            `num_steps` is given for a `ConvergentNetwork`.
        TypeError: `model` is not a module, or `x` is not a tensor.

    Example:
        >>> print(ep.count_operations(model, x, y))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"count_operations was given a {type(model).__name__}; expected an nn.Module")
    if not isinstance(x, Tensor):
        raise TypeError(f"the input is a {type(x).__name__}; expected a tensor")
    if num_steps is not None:
        num_steps = count("num_steps", num_steps)
    if y is not None and not any(p.requires_grad for p in model.parameters()):
        raise ValueError("no parameter of the model is trained, so that it has no training step; leave y out")
    with evaluating(model), _gradients_as_before(model), random_numbers_as_before(x.device):
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
def _gradients_as_before(model: nn.Module) -> Iterator[None]:
    gradients = [(p, p.grad) for p in model.parameters()]
    for p, _ in gradients:
        p.grad = None
    try:
        yield
    finally:
        for p, grad in gradients:
            p.grad = grad
