"""Settings to change: each is tried on the batch in hand, and those that help are told."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ep_plugin.analysis.agreement import Agreement
from ep_plugin.estimators.equilibrium_propagation import EquilibriumPropagation
from ep_plugin.estimators.full_phases import FullPhaseEP
from ep_plugin.network import ConvergentNetwork

Change = dict[str, Any]


@dataclass(frozen=True)
class Remedy:
    """Settings of a network (`variant`), and how a user writes them."""

    words: str
    change: Change


def for_settling(model: ConvergentNetwork) -> Iterator[Remedy]:
    """What may bring a network to rest that does not come to it."""
    relaxation = model.relaxation
    if relaxation.order != "sequential":
        yield Remedy('Relaxation(order="sequential")', {"relaxation": replace(relaxation, order="sequential")})
    step = relaxation.step_size_for(model)
    for smaller in (step / 2, step / 8):
        yield Remedy(f"Relaxation(step_size={smaller:g})", {"relaxation": replace(relaxation, step_size=smaller)})
    yield from _weaker_feedback(model)


def for_gradients(model: ConvergentNetwork) -> Iterator[Remedy]:
    """What may turn a gradient towards the exact one.

    A smaller nudge is none where the last neurons are the output. It comes nearer to BPTT's gradient there, by what
    that lacks: outputs beyond their bounds, which it has no gradient for, stay dead.
    """
    if model.event_weights is not None:  # constants of steps, nudge and feedback
        yield Remedy('encoder="adaptive_delta"', {"encoder": "adaptive_delta"})
        return
    free, nudged = model.steps
    estimator = model.estimator
    if isinstance(estimator, (EquilibriumPropagation, FullPhaseEP)):
        name = type(estimator).__name__
        yield Remedy(
            f"Relaxation(steps={2 * free}) with {name}(steps={2 * nudged})",
            {
                "relaxation": replace(model.relaxation, steps=2 * free),
                "estimator": replace(estimator, steps=2 * nudged),
            },
        )
        smaller, larger = estimator.beta / 10, estimator.beta * 10
        if not outputs_are_neurons(model):
            yield Remedy(f"{name}(beta={smaller:g})", {"estimator": replace(estimator, beta=smaller)})
        if isinstance(estimator, FullPhaseEP):  # whose nudge drowns in the noise of spikes
            yield Remedy(f"{name}(beta={larger:g})", {"estimator": replace(estimator, beta=larger)})
            yield Remedy("EquilibriumPropagation()", {"estimator": EquilibriumPropagation()})
    if model.encoder.spiking:
        yield Remedy('encoder="graded"', {"encoder": "graded"})
    yield from _weaker_feedback(model)


def outputs_are_neurons(model: ConvergentNetwork) -> bool:
    """Whether nothing with weights comes after the last neurons."""
    return not list(model.readout.parameters())


def _weaker_feedback(model: ConvergentNetwork) -> Iterator[Remedy]:
    strongest = max(model.settings.between(max(model.levels)), default=0.0)
    for weaker in (strongest / 4, strongest / 16):
        if strongest:
            yield Remedy(f"feedback={weaker:.2g}", {"feedback": weaker})


def that_help(
    model: ConvergentNetwork,
    remedies: Iterable[Remedy],
    badness: Callable[[ConvergentNetwork], float],
    enough: float,
    least: float,
) -> list[str]:
    """The remedies after which all is well; where there is none, the one that helps most, if it helps.

    Args:
        model: the network.
        remedies: to be tried, each alone.
        badness: of a network.
        enough: badness of one that is well.
        least: by how much another has to be less bad.

    Returns:
        Their words, the least bad first.
    """
    before = badness(model)
    tried = sorted((badness(model.variant(**r.change)), n, r.words) for n, r in enumerate(remedies))
    well = [words for left, _, words in tried if left <= enough]
    return well or [words for left, _, words in tried[:1] if left <= before - least]


def misdirection(agreement: Iterable[Agreement]) -> float:
    """1 less the least cosine of a weight: 0 where a gradient points where the exact one does."""
    return max((1 - a.cosine if a.cosine == a.cosine else 1.0 for a in weights(agreement)), default=0.0)


def weights(agreement: Iterable[Agreement]) -> list[Agreement]:
    """Of weights whose exact gradient is not zero: of neurons that stand beyond their bounds it is."""
    return [a for a in agreement if a.name.endswith("weight") and a.relative_error < float("inf")]


def unsettled(model: ConvergentNetwork, x: Tensor) -> float:
    """The largest residual of the batch."""
    return model.free_phase(x).residual.max().item()
