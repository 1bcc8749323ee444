"""Looking at a network: how it settles, what fires, whether its gradient is the true one."""

from ep_plugin.analysis.energy import LOIHI as LOIHI
