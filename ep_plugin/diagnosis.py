"""Whether a network settles, and whether its gradient is the true one: what `ep-plugin check` finds out."""

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from ep_plugin.gradients.agreement import Agreement, gradient_agreement
from ep_plugin.gradients.backprop_through_time import BackpropThroughTime
from ep_plugin.gradients.estimator import GradientEstimator
from ep_plugin.network import ConvergentNetwork

# Where advice is given. Random images are harder than real ones: with default settings and
# `initialize_`, the first layers of 2C2FC and of the digits' net have cosines of .5 to .95 and norm
# ratios from .48 on here, and both learn well.
_RESIDUAL = 0.01  # change of a graded state in the last step of the free phase
_COSINE = 0.4
_NORM_RATIO = 0.3
_SILENT = 1e-3  # mean state of a layer, of 1
_SATURATED = 0.9  # share of a layer's neurons that stay at their maximum

_MOST_STEPS = 100  # of a network that is to settle in full; BPTT keeps them all


@dataclass(frozen=True)
class Settling:
    """After so many steps: the largest `Equilibrium.residual` of a batch, with graded neurons and as the network is."""

    steps: int
    graded: float
    own: float


@dataclass(frozen=True)
class Activity:
    """Of a layer: its neurons, their mean state (1: the most), the share at the most, spikes a neuron and inference.

    `spikes` is None for graded neurons.
    """

    neurons: int
    mean: float
    saturated: float
    spikes: float | None


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        settling: for growing numbers of steps.
        agreement: of the network's gradient with BPTT's through settled graded states, a parameter.
        without_spikes: the same of the network with graded neurons in place of its own.
        activity: a layer.
        advice: what to mend, in sentences without their full stop; none if all is well.
    """

    settling: list[Settling]
    agreement: list[Agreement]
    without_spikes: list[Agreement]
    activity: list[Activity]
    advice: list[str]


def settled(model: ConvergentNetwork, gradient: GradientEstimator, tolerance: float = 1e-6) -> ConvergentNetwork:
    """A network over the same parameters whose neurons are graded and settle to `tolerance`, with `gradient`."""
    other = copy.copy(model)
    other.encoder = "graded"
    other.relaxation = replace(model.relaxation, steps=_MOST_STEPS, tolerance=tolerance)
    other.gradient = gradient
    return other


def diagnose(
    model: ConvergentNetwork,
    x: Tensor,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
) -> Diagnosis:
    """How the network settles, how its gradient compares with BPTT's through settled states, what fires.

    Args:
        model: in evaluation mode, so that nothing in it is random but its spikes.
        x, y: a batch and its targets.
        loss: of (output, y).

    Raises:
        ValueError, TypeError: what `ConvergentNetwork.forward` raises.
    """
    reference, graded = settled(model, BackpropThroughTime()), copy.copy(model)
    graded.encoder = "graded"
    found = Diagnosis(
        settling=_settling(model, x),
        agreement=gradient_agreement(model, x, y, loss, reference),
        without_spikes=gradient_agreement(graded, x, y, loss, reference),
        activity=activity(model, x),
        advice=[],
    )
    advice = [*_about_settling(model, x, found), *_about_gradients(found), *_about_activity(found)]
    return replace(found, advice=advice)


def _settling(model: ConvergentNetwork, x: Tensor) -> list[Settling]:
    free = model.relaxation.steps
    tried = sorted({*(2**n for n in range(free.bit_length()) if 2**n < free), free, 2 * free, 4 * free})
    own, graded = copy.copy(model), copy.copy(model)
    graded.encoder = "graded"
    found = []
    for steps in tried:
        own.relaxation = graded.relaxation = replace(model.relaxation, steps=steps, tolerance=None)
        found.append(Settling(steps, *(network.relax(x).residual.max().item() for network in (graded, own))))
    return found


def activity(model: ConvergentNetwork, x: Tensor) -> list[Activity]:
    """How much each layer fires for the inputs `[B, ...]`, with a free phase as the network has it."""
    equilibrium = model.relax(x)
    found = []
    for l, (state, activation) in enumerate(zip(equilibrium.states, model.dynamics().activations, strict=True)):
        share, neurons = state / activation.maximum, state[0].numel()
        spikes = None if equilibrium.spikes is None else equilibrium.spikes[l].mean().item() / neurons
        found.append(Activity(neurons, share.mean().item(), (share > 0.999).float().mean().item(), spikes))
    return found


def _about_settling(model: ConvergentNetwork, x: Tensor, found: Diagnosis) -> Iterator[str]:
    free = next(s for s in found.settling if s.steps == model.relaxation.steps)
    if free.graded <= _RESIDUAL:
        return
    patient = settled(model, model.gradient, _RESIDUAL).relax(x)
    if bool((patient.residual <= _RESIDUAL).all()):
        yield (
            f"The free phase is too short: after {free.steps} steps a state still changes by {free.graded:.2g} in a "
            f"step. Use Relaxation(steps={patient.steps}), or a smaller feedback, which settles faster"
        )
    else:
        yield (
            f"It does not converge: after {patient.steps} steps a state still changes by "
            f"{patient.residual.max().item():.2g} in a step. Use smaller weights (ep_plugin.initialize_), a smaller "
            'feedback, order="alternating" or a smaller step_size'
        )


def _about_gradients(found: Diagnosis) -> Iterator[str]:
    weights = [
        (own, graded)
        for own, graded in zip(found.agreement, found.without_spikes, strict=True)
        if own.name.endswith("weight")
    ]
    # A cosine of NaN is no agreement either.
    if off := [own.name for own, graded in weights if not graded.cosine >= _COSINE]:
        yield (
            f"EP's gradient does not point where BPTT's does, with and without spikes (cosine below {_COSINE}), in "
            f"{', '.join(off)}. Use a smaller feedback, if the weights are trained ones, a smaller beta, which keeps "
            "more neurons off their bounds, more steps of both phases, or larger weights (ep_plugin.initialize_)"
        )
    if noisy := [own.name for own, graded in weights if not own.cosine >= _COSINE and graded.cosine >= _COSINE]:
        yield (
            f"The spikes' noise hides EP's gradient (cosine below {_COSINE}, without spikes above) in "
            f"{', '.join(noisy)}. Use a larger beta, more steps of both phases, a larger feedback or "
            'encoder="graded"'
        )
    if short := [own.name for own, _ in weights if own.norm_ratio < _NORM_RATIO]:
        yield (
            f"EP's gradient is too short (norm ratio below {_NORM_RATIO}) in {', '.join(short)}: the nudge has not "
            "arrived in full, or meets neurons at their bounds. Use EquilibriumPropagation(steps=...) with more "
            "steps, or a smaller beta"
        )


def _about_activity(found: Diagnosis) -> Iterator[str]:
    for l, layer in enumerate(found.activity):
        if layer.mean < _SILENT:
            yield (
                f"Layer {l} hardly fires (mean state {layer.mean:.1g}), so nothing reaches the layers above: use a "
                "lower threshold or larger weights (ep_plugin.initialize_)"
            )
        if layer.saturated > _SATURATED:
            yield (
                f"Layer {l} is saturated ({layer.saturated:.0%} of its neurons at their maximum), where gradients "
                "vanish: use a higher threshold or smaller weights"
            )


def load_net(path: str) -> nn.Module:
    """The module that `package.module:name` names, or that the function of that name returns.

    Raises:
        ValueError, TypeError: there is no such module or name, or it is no `nn.Module`.
    """
    place, _, name = path.partition(":")
    if not place or not name:
        raise ValueError(f"the net is {path!r}; expected path.to.module:net")
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` has it
    try:
        module = import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise  # a module that theirs imports
        raise ValueError(
            f"there is no module {error.name!r}; expected path.to.module:net, to be found from this directory"
        ) from error
    if not hasattr(module, name):
        raise ValueError(f"the module {place!r} has no {name!r}; expected a net, or a function that returns one")
    net = getattr(module, name)
    if not isinstance(net, nn.Module) and callable(net):
        net = net()
    if not isinstance(net, nn.Module):
        raise TypeError(
            f"{path} is of the type {type(net).__name__}; expected an nn.Module, or a function that returns one"
        )
    return net


def random_batch(model: ConvergentNetwork, shape: tuple[int, ...], batch_size: int) -> tuple[Tensor, Tensor]:
    """Inputs in [0, 1], `[B, *shape]`, and classes `[B]`, from PyTorch's global generator.

    Raises:
        ValueError: the network's output is not `[B, classes]`.
    """
    like = next(model.parameters())
    x = torch.rand(batch_size, *shape, dtype=like.dtype, device=like.device)
    with torch.no_grad():
        output = model(x)
    if output.dim() != 2:
        raise ValueError(f"the output has the shape {list(output.shape)}; expected [batch, classes]")
    return x, torch.randint(output.shape[1], (batch_size,), device=like.device)
