"""Which neurons a gradient passes."""

import math

from torch import Tensor

from ep_plugin.dynamics.activations import Activation

# Share of a layer's live neurons below which it is stuck. Before they have learned, nets that do have .14 or more.
LIVE = 0.05
OUTPUTS = 0.5  # the same where each neuron is a class: one that is dead is a class that is never told


def live_and_mean(state: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """The share of a layer's neurons that are between their bounds for some sample, and the mean state, of 1."""
    high = activation.maximum if math.isfinite(activation.maximum) else 1.0
    between = state > activation.least + 1e-3 * high
    if math.isfinite(activation.maximum):
        between &= state < 0.999 * high
    return between.any(0).float().mean(), state.abs().mean() / high
