"""Pictures, one function each, which returns the axis that it has drawn on.

snnTorch's `spikeplot` is not used: to import it takes pandas and pyplot, which this package does not need, for what is
one call of matplotlib's `scatter`.
"""

from ep_plugin.plots.feedback import feedback_angles
from ep_plugin.plots.gradients import angles
from ep_plugin.plots.operations import operations
from ep_plugin.plots.phases import deviations, raster, states
from ep_plugin.plots.settling import energy

__all__ = ["angles", "deviations", "energy", "feedback_angles", "operations", "raster", "states"]
