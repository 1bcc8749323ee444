"""Pictures, one function each, which returns the axis that it has drawn on."""

from ep_plugin.plots.gradients import angles
from ep_plugin.plots.operations import operations
from ep_plugin.plots.phases import deviations, raster, states
from ep_plugin.plots.settling import energy

__all__ = ["angles", "deviations", "energy", "operations", "raster", "states"]
