"""What every gradient estimator is to the network, and the autograd node that they share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ep_plugin.dynamics.encoders.base import Encoder
from ep_plugin.dynamics.relaxation import FreePhase, Observed, Relaxation
from ep_plugin.dynamics.system import System
from ep_plugin.profiling import carried_on, recorder
from ep_plugin.tensors import outside_autocast
from ep_plugin.validation import require_finite

Gradients = Callable[[Sequence[Tensor], Sequence[bool]], Sequence[Tensor | None]]
"""From dC/dr of every read layer, and which of the values want theirs, to dC/dvalues in `Values.flat`'s order."""


class GradientEstimator(Protocol):
    """How a loss becomes gradients: one method.

    Example:
        >>> class Plain:
        ...     def solve(self, system, encoder, relaxation, observe, counted=True):
        ...         return ep.BackpropThroughTime().solve(system, encoder, relaxation, observe, counted)
        >>> model.estimator = Plain()
        >>> nn.functional.cross_entropy(model(x), y).backward()
    """

    def solve(
        self, system: System, encoder: Encoder, relaxation: Relaxation, observe: Observed, counted: bool = True
    ) -> tuple[tuple[Tensor, ...], FreePhase]:
        """Relaxes the network.

        Args:
            system: the equations; its values are on autograd's graph.
            encoder: what neurons send.
            relaxation: how the network settles.
            observe: what the readout sees of a neuron.
            counted: count the spikes.

        Returns:
            What the readout sees of every read layer, `[B, ...]`, with a way back to `system.values`;
            and the free phase.
        """


def attach(outputs: Sequence[Tensor], system: System, gradients: Gradients) -> tuple[Tensor, ...]:
    """Puts the outputs on autograd's graph, with your own gradients.

    These cannot be differentiated again: second derivatives raise a `RuntimeError`.

    Args:
        outputs: what the readout sees of every read layer.
        system: the equations, with the values that get gradients.
        gradients: called when the backward pass comes, with dC/dr of every output, and with True for each value that
            needs a gradient. It returns one gradient per value, in the order of `system.values.flat()`, or None.

    Returns:
        The outputs, on the graph.

    Raises:
        RuntimeError: it is called within a transform of `torch.func`.

    Example:
        >>> from ep_plugin.estimators.estimator import attach
        >>> system = model.system(x)
        >>> states = [torch.rand(8, 64)]
        >>> (output,) = attach(states, system, lambda grads, needed: [None for _ in needed])
        >>> output.sum().backward()
    """
    call = _Call(tuple(outputs), gradients, system.names(), recorder())
    try:
        return _Node.apply(call, *system.values.flat())
    except RuntimeError as error:
        if "setup_context" not in str(error):
            raise
        raise RuntimeError(
            "torch.func (grad, vjp, jacrev, hessian) cannot run the phases that give this network its gradient; "
            "expected torch.autograd: loss.backward(), torch.autograd.grad or torch.autograd.functional"
        ) from error


@dataclass(frozen=True)
class _Call:
    outputs: tuple[Tensor, ...]
    gradients: Gradients
    names: list[str]
    recorder: Any  # of the profile that the forward pass was part of


class _Node(torch.autograd.Function):
    """Where autograd ends and an estimator begins: dC/dr in, dC/dvalues out."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.save_for_backward(*values)
        return tuple(output.clone() for output in call.outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values = ctx.saved_tensors  # an error if a value has been changed in place since the forward pass
        _, *needed = ctx.needs_input_grad
        with torch.no_grad(), outside_autocast(grads[0]), carried_on(ctx.call.recorder):
            gradients = ctx.call.gradients(grads, needed)
        found = [g if n else None for g, n in zip(gradients, needed, strict=True)]
        if not grads[0].is_meta and bool(torch.stack([g.sum() for g in grads]).isfinite().all()):
            named = [(g, name) for g, name in zip(found, ctx.call.names, strict=True) if g is not None]
            require_finite("the gradient", [g for g, _ in named], [name for _, name in named])
        if torch.is_grad_enabled():  # create_graph=True
            found = list(_Once.apply(len(found), *found, *values, *grads))
        return None, *found


class _Once(torch.autograd.Function):
    """The identity on gradients, which connects them with everything that they depend on, and then refuses.

    PyTorch's `once_differentiable` connects them with nothing. So `torch.autograd.grad(..., inputs)` finds no way from
    its error to the inputs, leaves the error out, and silently returns a sum without these terms.
    """

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return tensors[:count]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            "second derivatives (a gradient penalty, a Hessian) do not pass through this network: its estimator gives "
            "the first derivative alone. Set model.estimator = BackpropThroughTime(), through which autograd has all "
            "derivatives"
        )
