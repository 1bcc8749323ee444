"""Its old place."""

from ep_plugin.conversion.adapters import *  # noqa: F403
from ep_plugin.conversion.adapters import LearnableLeak, Neuron, adapter_for, differences, find_adapter, place_of  # noqa
