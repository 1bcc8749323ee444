"""How right the gradients are."""

from math import acos, degrees, isnan
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ep_plugin.analysis.agreement import gradient_agreement
from ep_plugin.analysis.diagnosis import settled
from ep_plugin.estimators.implicit_differentiation import ImplicitDifferentiation
from ep_plugin.network import ConvergentNetwork, Loss
from ep_plugin.plots.axes import BLUE, on

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def angles(
    model: ConvergentNetwork,
    x: Tensor,
    y: Any,
    loss: Loss = nn.functional.cross_entropy,
    axis: "Axes | None" = None,
) -> "Axes":
    """Angle between the network's gradient and the exact one, in degrees, a bar for each weight.

    The exact one is that of the same network's graded neurons, settled in full. At 90 degrees a step teaches nothing;
    at 18 degrees the cosine is .95.

    Args:
        model: the network, with the estimator in question.
        x: a batch, `[B, ...]`; judge by some hundred samples.
        y: its targets.
        loss: (output, y) -> scalar.
        axis: of matplotlib; by default one of a new figure.

    Returns:
        The axis.

    Raises:
        ValueError: the input changes over time, so that nothing settles.

    Example:
        >>> ep.plots.angles(model, x, y)
    """
    exact = settled(model, ImplicitDifferentiation(tolerance=1e-5, max_steps=200))
    found = [a for a in gradient_agreement(model, x, y, loss, exact) if "bias" not in a.name.rsplit(".", 1)[-1]]
    axis = on(axis, (max(4.0, 0.7 * len(found)), 3.8))
    places = range(len(found))
    bars = axis.bar(places, [_angle(a.cosine) for a in found], color=BLUE)
    axis.bar_label(bars, ["" if isnan(a.cosine) else f"{_angle(a.cosine):.1f}" for a in found], fontsize=8)
    axis.set_xticks(places, [_short(a.name) for a in found], rotation=45, ha="right", fontsize=8)
    axis.set_ylim(0, max(20.0, 1.15 * axis.get_ylim()[1]))
    axis.set_ylabel("angle to the exact gradient (degrees)")
    return axis


def _angle(cosine: float) -> float:
    """In degrees; where both gradients are zero there is none, and no bar."""
    return 0.0 if isnan(cosine) else degrees(acos(max(-1.0, min(1.0, cosine))))


def _short(name: str) -> str:
    """Without what all weights' names have."""
    for part in ("parametrizations.", ".original", "module.", ".weight"):
        name = name.replace(part, "")
    return name
