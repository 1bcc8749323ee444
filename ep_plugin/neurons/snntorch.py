"""snnTorch's `Leaky` with convergent dynamics."""

from typing import Any

import snntorch as snn
from torch import Tensor

from ep_plugin.dynamics.activations import Activation, ActivationName, Elementwise, as_activation
from ep_plugin.dynamics.encoders import Encoder, EncoderName, as_encoder
from ep_plugin.neurons import convergent
from ep_plugin.neurons.convergent import ConvergentState
from ep_plugin.validation import fraction


class ConvergentLeaky(snn.Leaky):
    """snnTorch's `Leaky` with convergent dynamics, for people who write their own loop.

    One call moves the membrane towards its equilibrium clip(input, 0, threshold) and returns what the neuron sends:
    binary spikes, or, for encoders without them, the trace (what neighbours know of the state, in units of the
    threshold). The mean of the spikes tends to membrane / threshold. All state is in `mem`, none in the neuron.

    Args:
        beta: snnTorch's leak. It is kept, and has no effect on the equilibrium.
        threshold: a number or a tensor that broadcasts against the input.
        encoder: what the neuron sends, as in `ConvergentNetwork`.
        activation: as in `Layer`.
        step_size: how far the membrane moves in a step, in (0, 1].
        learn_threshold: make the threshold a parameter.

    Raises:
        ValueError: a setting is out of its range or unknown.
        TypeError: a setting has a wrong type.

    Example:
        >>> lif, mem = ep.ConvergentLeaky(threshold=1.0), None
        >>> for step in range(20):
        ...     spk, mem = lif(torch.tensor([[0.3]]), mem)
    """

    def __init__(
        self,
        beta: float = 0.5,
        threshold: float | Tensor = 1.0,
        *,
        encoder: EncoderName | Encoder = "predictive_sigma_delta",
        activation: ActivationName | Activation | Elementwise = "hard_sigmoid",
        step_size: float = 0.85,
        learn_threshold: bool = False,
    ) -> None:
        super().__init__(beta=beta, threshold=threshold, learn_threshold=learn_threshold)
        self.encoder = as_encoder(encoder)
        self.activation = as_activation(activation)
        self.step_size = fraction("step_size", step_size)

    def forward(self, input_: Tensor, mem: ConvergentState | None = None) -> tuple[Tensor, ConvergentState]:
        """One step.

        Args:
            input_: the neurons' drive, `[B, ...]`.
            mem: what the last call returned; None starts from rest.

        Returns:
            The spikes `[B, ...]` and the new state.
        """
        return convergent.step("mem", input_, mem, self.threshold, self.activation, self.encoder, self.step_size)

    def reset_mem(self) -> Any:
        """The state to start from, as snnTorch's loops ask for it: none."""
        return None
