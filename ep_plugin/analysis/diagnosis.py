"""Whether a network settles, and whether its gradient is the true one: what `ep-plugin check` finds out."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ep_plugin.analysis import remedies
from ep_plugin.analysis.agreement import Agreement, gradient_agreement
from ep_plugin.analysis.influence import without_influence
from ep_plugin.analysis.liveness import LIVE, OUTPUTS, live_and_mean
from ep_plugin.analysis.randomness import random_modules
from ep_plugin.analysis.untrained import left_out, without_gradient
from ep_plugin.conversion.faithfulness import Comparison, compare
from ep_plugin.estimators.backprop_through_time import BackpropThroughTime
from ep_plugin.estimators.estimator import GradientEstimator
from ep_plugin.network import ConvergentNetwork

# Where advice is given: between nets that learn and nets that do not, `tests/lightning/trainings.py`, each judged on 32
# of its own training images (`tests/analysis/test_judgement.py`). Of 86 nets that learn all pass before their training.
# Of 51 that do not 48 are told: 22 before it, by their weights or settings, the others after it, by what too large a
# learning rate has made of them. At the start of trainings that learn the residual is .009 at most, cosines are .397
# (with a beta of 1) and .7 or more, norm ratios .63 or more; at their end residuals of recurrent layers rise to .1, and
# norm ratios fall to .27.
_RESIDUAL = 0.1  # of graded states at the end of the free phase
_COSINE = 0.35
_NORM_RATIO = 0.25
_HELPS = 0.1  # by so much a cosine or a norm ratio has to rise
_LEARNED = 0.5  # share of the batch that is right
_SILENT = 1e-3  # mean state of a layer, of 1
_SATURATED = 0.9  # share of a layer's neurons that stay at their maximum

_MOST_STEPS = 100  # of a network that is to settle in full; BPTT keeps them all


@dataclass(frozen=True)
class Settling:
    """How far from settled a batch is after a number of steps.

    Attributes:
        steps: of the free phase.
        graded: the largest `Equilibrium.residual` with graded neurons.
        own: the same with the network's own encoder.
    """

    steps: int
    graded: float
    own: float


@dataclass(frozen=True)
class Activity:
    """How much one layer fires.

    Attributes:
        neurons: their number.
        mean: mean size of the states, as a fraction of the maximum where they have one.
        saturated: fraction of the neurons at their maximum.
        live: fraction of the neurons that are between their bounds for some input: a gradient passes no others.
        spikes: spikes per neuron and inference; None for graded neurons.
    """

    neurons: int
    mean: float
    saturated: float
    live: float
    spikes: float | None


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        settling: for growing numbers of steps.
        agreement: of the network's gradient with BPTT's through settled graded states, for each parameter.
        without_spikes: the same of the network with graded neurons in place of its own.
        activity: of each layer.
        advice: what to mend, in sentences without their full stop; none if all is well.
        compared: the network's output with its original's; None without an original.
    """

    settling: list[Settling]
    agreement: list[Agreement]
    without_spikes: list[Agreement]
    activity: list[Activity]
    advice: list[str]
    compared: Comparison | None = None


def settled(model: ConvergentNetwork, estimator: GradientEstimator, tolerance: float = 1e-6) -> ConvergentNetwork:
    """The same network, with its own feedback, whose neurons are graded and settle in full.

    Args:
        model: the network; it shares its parameters and stays as it is.
        estimator: of the new network.
        tolerance: no state changes by more in the last step.

    Raises:
        ValueError: the network's input changes over time.
    """
    if model.time_varying:
        raise ValueError(
            "an input that changes over time leaves a network no state to settle in; expected one whose input is "
            "constant: model.variant(time_varying=False), with frames' means as its inputs"
        )
    relaxation = replace(model.relaxation, steps=_MOST_STEPS, tolerance=tolerance)
    return model.variant(encoder="graded", relaxation=relaxation, estimator=estimator)


def diagnose(
    model: ConvergentNetwork,
    x: Tensor,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    original: nn.Module | None = None,
    on_part: Callable[[str], None] = lambda _: None,
) -> Diagnosis:
    """How the network settles, how its gradient compares with BPTT's through settled states, what fires.

    And what it is silent about: inputs without influence, parameters that are not trained, random numbers in
    evaluation mode. Where the input changes over time, that is looked at over all frames, and the rest at their mean.

    Args:
        model: in evaluation mode, so that nothing in it is random but its spikes.
        x: a batch.
        y: its targets.
        loss: of (output, y).
        original: what the network was converted from: its names are told, and what it has and the network lacks.
        on_part: called with the name of each part of the examination when it begins.

    Raises:
        ValueError: as `ConvergentNetwork.forward`.
        TypeError: as `ConvergentNetwork.forward`.
    """
    on_part("Looking for what is silent")
    compared = None if original is None else compare(model, original, x)
    silent = list(_about_what_is_silent(model, x, y, loss, original, compared))
    if model.time_varying:
        x = x.mean(model.time_axis)
        model = model.variant(time_varying=False)
    reference, graded = settled(model, BackpropThroughTime()), model.variant(encoder="graded")
    on_part("Letting it settle")
    settling = _settling(model, graded, x)
    on_part("Comparing gradients")
    found = Diagnosis(
        settling=settling,
        agreement=gradient_agreement(model, x, y, loss, reference),
        without_spikes=gradient_agreement(graded, x, y, loss, reference),
        activity=activity(model, x),
        advice=[],
        compared=compared,
    )
    advice = [
        *silent,
        *_about_settling(model, x, found),
        *_about_gradients(model, x, y, loss, found),
        *_about_activity(model, found, _share_right(model, x, y)),
    ]
    return replace(found, advice=advice)


def _settling(model: ConvergentNetwork, graded: ConvergentNetwork, x: Tensor) -> list[Settling]:
    free, _ = model.steps
    found = []
    for steps in sorted({*(2**n for n in range(free.bit_length()) if 2**n < free), free, 2 * free, 4 * free}):
        relaxation = replace(model.relaxation, steps=steps, tolerance=None)
        # Fixed events have no weight for steps that they were not found with.
        fits = model.event_weights is None or steps == free
        own = model.variant(relaxation=relaxation).free_phase(x).residual.max().item() if fits else math.nan
        found.append(Settling(steps, graded.variant(relaxation=relaxation).free_phase(x).residual.max().item(), own))
    return found


def activity(model: ConvergentNetwork, x: Tensor) -> list[Activity]:
    """How much each layer fires for the inputs `[B, ...]`, with a free phase as the network has it."""
    equilibrium = model.free_phase(x)
    found = []
    for l, (state, activation) in enumerate(zip(equilibrium.states, model.system(x).activations, strict=True)):
        whole = activation.maximum if math.isfinite(activation.maximum) else 1.0
        share, neurons = state / whole, state[0].numel()
        spikes = None if equilibrium.spikes is None else equilibrium.spikes[l].mean().item() / neurons
        saturated = (state / activation.maximum > 0.999).float().mean().item()
        live = live_and_mean(state, activation)[0].item()
        found.append(Activity(neurons, share.abs().mean().item(), saturated, live, spikes))
    return found


def _about_what_is_silent(
    model: ConvergentNetwork,
    x: Tensor,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    original: nn.Module | None,
    compared: Comparison | None,
) -> Iterator[str]:
    if parts := without_influence(model, x, original):
        yield (
            f"The output does not depend on all of the input, of shape {list(x.shape)}: {', and '.join(parts)} "
            "have no influence. If that axis is time, use ep.convert(net, time_varying=True), which takes all steps; "
            "if it is meant, leave that part out of the input"
        )
    if original is not None and (names := left_out(model, original)):
        yield (
            f"Parameters of the original are none of the network's, so that training leaves them as they are: "
            f"{', '.join(names)}. Say so to the optimizer and the reader with requires_grad_(False), or leave them out"
        )
    if names := without_gradient(model, x, y, loss, original):
        yield (
            f"The gradient is exactly zero, or none, in {', '.join(names)}, so that training leaves them as they are: "
            "look whether the output depends on them, whether it does so with a slope (no rounding, no detach), and "
            "whether all neurons on the way are silent or saturated"
        )
    if compared is not None and compared.difference is not None:
        yield (
            "The network gives something else than the original with its neurons at their rates, "
            f"{compared.difference}: the conversion has misread it. Write what is unusual there in plain steps, or as "
            "a module of its own"
        )
    if names := random_modules(model, x, original):
        yield (
            f"Random numbers are drawn in evaluation mode, in {', '.join(names)}: two inferences of one input differ. "
            "Draw only in training mode (if self.training, or F.dropout(x, p, self.training)), or in the data loader"
        )


def _about_settling(model: ConvergentNetwork, x: Tensor, found: Diagnosis) -> Iterator[str]:
    free = next(s for s in found.settling if s.steps == model.steps[0])
    if free.graded <= _RESIDUAL:
        return
    # A step covers only part of what is left.
    patient = settled(model, model.estimator, _RESIDUAL * (model.relaxation.step_size or 0.5)).free_phase(x)
    if bool((patient.residual <= _RESIDUAL).all()):
        yield (
            f"The free phase is too short: after {free.steps} steps a graded state is off by {free.graded:.2g} from "
            f"what its drive asks for. Use Relaxation(steps={patient.steps})"
        )
        return

    def badness(other: ConvergentNetwork) -> float:
        return remedies.unsettled(settled(other, other.estimator, _RESIDUAL / 10), x)

    ways = remedies.that_help(model, remedies.for_settling(model), badness, _RESIDUAL, math.inf)
    yield (
        f"It does not converge: after {patient.steps} steps a graded state is off by "
        f"{patient.residual.max().item():.2g} from what its drive asks for. {_use(ways, 'smaller weights')}"
    )


def _use(ways: list[str], otherwise: str) -> str:
    """What was tried on this batch and helps."""
    if not ways:
        return f"No setting that was tried helps on this batch: use {otherwise}"
    return f"On this batch {'any of these helps' if len(ways) > 1 else 'this helps'}: {', or '.join(ways)}"


def _about_gradients(
    model: ConvergentNetwork,
    x: Tensor,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    found: Diagnosis,
) -> Iterator[str]:
    def badness(other: ConvergentNetwork) -> float:
        return remedies.misdirection(gradient_agreement(other, x, y, loss, settled(other, BackpropThroughTime())))

    own = remedies.weights(found.agreement)
    graded = {a.name: a for a in found.without_spikes}
    bad = [a for a in own if not a.cosine >= _COSINE]
    short = [a.name for a in own if a.norm_ratio < _NORM_RATIO]
    ways: list[str] = []
    if bad:
        ways = remedies.that_help(model, remedies.for_gradients(model), badness, 1 - _COSINE, _HELPS)
    way_out = _use(ways, "larger weights (ep_plugin.initialize_), or other inputs")
    # A cosine of NaN is no agreement either.
    if off := [a.name for a in bad if not graded[a.name].cosine >= _COSINE]:
        yield (
            f"The gradient does not point where BPTT's does, with and without spikes (cosine below {_COSINE}), in "
            f"{', '.join(off)}. {way_out}"
        )
    elif bad:
        yield (
            f"The spikes hide the gradient (cosine below {_COSINE}, without spikes above) in "
            f"{', '.join(a.name for a in bad)}. {way_out}"
        )
    if short:

        def shortness(other: ConvergentNetwork) -> float:
            agreement = gradient_agreement(other, x, y, loss, settled(other, BackpropThroughTime()))
            return -min(a.norm_ratio for a in remedies.weights(agreement))

        ways = remedies.that_help(model, remedies.for_gradients(model), shortness, -_NORM_RATIO, _HELPS)
        yield (
            f"The gradient is too short (norm ratio below {_NORM_RATIO}) in {', '.join(short)}: the nudge has not "
            f"arrived in full, or meets neurons at their bounds. {_use(ways, 'more steps of the nudged phase')}"
        )


def _about_activity(model: ConvergentNetwork, found: Diagnosis, right: float | None) -> Iterator[str]:
    for l, layer in enumerate(found.activity):
        if layer.mean < _SILENT:
            yield (
                f"Layer {l} hardly fires (mean state {layer.mean:.1g}), so nothing reaches the layers above: use a "
                "lower threshold or larger weights (ep_plugin.initialize_)"
            )
        elif layer.saturated > _SATURATED:
            yield (
                f"Layer {l} is saturated ({layer.saturated:.0%} of its neurons at their maximum), where gradients "
                "vanish: use a higher threshold or smaller weights"
            )
        elif l in model.read and remedies.outputs_are_neurons(model):
            # In a net that has learned all may stand at their bounds: they are right.
            if layer.live < OUTPUTS and right is not None and right < _LEARNED:
                yield (
                    f"Of the outputs, the neurons of layer {l}, {1 - layer.live:.0%} stand at a bound for all inputs, "
                    "so that their classes are never told: start again with PyTorch's own weights and a lower learning "
                    "rate, and a larger nudge, EquilibriumPropagation(beta=0.3)"
                )
        elif layer.live < LIVE:
            yield (
                f"Layer {l} is stuck ({layer.live:.0%} of its neurons between their bounds for any input), so that no "
                "gradient passes: use smaller weights (ep_plugin.initialize_)"
            )


def _share_right(model: ConvergentNetwork, x: Tensor, y: Tensor) -> float | None:
    """Of outputs that are classes."""
    with torch.no_grad():
        output = model(x)
    if not isinstance(output, Tensor) or output.dim() != 2 or y.shape != output.shape[:1] or y.is_floating_point():
        return None
    return (output.argmax(1) == y).float().mean().item()
