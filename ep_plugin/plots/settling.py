"""How the free phase settles."""

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ep_plugin.dynamics.encoders import Encoder, EncoderName
from ep_plugin.dynamics.relaxation import Relaxation
from ep_plugin.network import ConvergentNetwork
from ep_plugin.plots.axes import BLUE, COLOURS, RED, on, whole_steps
from ep_plugin.validation import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def energy(
    model: ConvergentNetwork,
    x: Tensor,
    steps: int = 12,
    axis: "Axes | None" = None,
    encoders: Sequence[EncoderName | Encoder] | None = None,
) -> "Axes":
    """The energy of the free phase above where it ends, step by step: of the network, and of its graded twin (dashed).

    The mean over the samples, in float64, since its last fall is below float32's rounding. Graded states that move one
    layer after the other never raise it. The grey line marks the steps that the network takes by itself.

    Args:
        model: the network; it is left as it is.
        x: a batch, `[B, ...]`.
        steps: of the free phase, 1 or more.
        axis: of matplotlib; by default one of a new figure.
        encoders: draw the network with each of these in place of its own, such as
            `["adaptive_delta", "predictive_sigma_delta"]`; by default with its own. The graded twin is always drawn.

    Returns:
        The axis.

    Raises:
        ValueError: `steps` is below 1, or there is no such encoder.
        TypeError: `steps` is no whole number.

    Example:
        >>> ep.plots.energy(model, x)
    """
    from copy import deepcopy

    steps = count("steps", steps)
    exact, x = deepcopy(model).double(), x.double()
    graded = exact.variant(encoder="graded", relaxation=Relaxation(max(100, 4 * steps)))
    told = {"as it is": exact} if encoders is None else {str(e): exact.variant(encoder=e) for e in encoders}
    colours = cycle((RED, *(c for c in COLOURS if c not in (RED, BLUE))))
    drawn = [(own, "-", colour, label) for (label, own), colour in zip(told.items(), colours, strict=False)]
    drawn.append((exact.variant(encoder="graded"), "--", BLUE, "graded"))
    axis = on(axis)
    with torch.no_grad():
        lowest = exact.energy(graded.free_phase(x).states, x)
        rounding = 1e-15 * lowest.abs().mean().item()  # below it a difference of two energies means nothing
        for own, style, colour, label in drawn:
            trajectory = own.variant(relaxation=Relaxation(steps)).free_phase(x, record=True).trajectory
            assert trajectory is not None  # it was asked for
            above = [
                (own.energy([s[n] for s in trajectory.states], x) - lowest).mean().clamp(min=rounding).item()
                for n in range(steps)
            ]
            axis.plot(range(1, steps + 1), above, style, color=colour, marker=".", label=label)
    axis.axvline(model.steps[0], color="0.8", linewidth=0.8, zorder=0)
    axis.set(xlabel="step of the free phase", ylabel="energy above the lowest", yscale="log")
    whole_steps(axis)
    axis.legend(frameon=False, fontsize=8)
    return axis
