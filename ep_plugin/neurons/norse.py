"""Norse's `LIFBoxCell` with convergent dynamics."""

import torch
from torch import Tensor

from ep_plugin.dynamics.activations import Activation, ActivationName, Elementwise, as_activation
from ep_plugin.dynamics.encoders import Encoder, EncoderName, as_encoder
from ep_plugin.extras import needed_by
from ep_plugin.neurons import convergent
from ep_plugin.neurons.convergent import ConvergentState
from ep_plugin.validation import fraction

with needed_by("ep_plugin.neurons.norse"):
    from norse.torch import LIFBoxCell, LIFBoxParameters


class ConvergentLIFBoxCell(LIFBoxCell):
    """Norse's `LIFBoxCell` with convergent dynamics, for `SequentialState` or your own loop.

    One call moves the membrane towards its equilibrium clip(input, 0, v_th - v_leak), measured from v_leak, and returns
    what the neuron sends: binary spikes, or, for encoders without them, the trace (what neighbours know of the state,
    in units of the threshold). The mean of the spikes tends to membrane / (v_th - v_leak).

    Args:
        p: Norse's parameters. `v_th - v_leak` is the threshold, above 0; `tau_mem_inv` and the reset are kept, and
            have no effect on the equilibrium.
        encoder: what the neuron sends, as in `ConvergentNetwork`.
        activation: as in `Layer`.
        step_size: how far the membrane moves in a step, in (0, 1].

    Raises:
        ValueError: a setting is out of its range or unknown.
        TypeError: a setting has a wrong type.

    Example:
        >>> cell, state = ep.ConvergentLIFBoxCell(), None
        >>> for step in range(20):
        ...     z, state = cell(torch.tensor([[0.3]]), state)
    """

    def __init__(
        self,
        p: LIFBoxParameters | None = None,
        *,
        encoder: EncoderName | Encoder = "predictive_sigma_delta",
        activation: ActivationName | Activation | Elementwise = "hard_sigmoid",
        step_size: float = 0.85,
    ) -> None:
        super().__init__(LIFBoxParameters() if p is None else p)
        if not bool((self.threshold > 0).all()):
            raise ValueError(f"v_th - v_leak is {self.threshold.tolist()}; expected numbers above 0")
        self.encoder = as_encoder(encoder)
        self.activation = as_activation(activation)
        self.step_size = fraction("step_size", step_size)

    @property
    def threshold(self) -> Tensor:
        """v_th - v_leak."""
        return torch.as_tensor(self.p.v_th) - torch.as_tensor(self.p.v_leak)

    def forward(self, input_tensor: Tensor, state: ConvergentState | None = None) -> tuple[Tensor, ConvergentState]:
        """One step.

        Args:
            input_tensor: the neurons' drive, `[B, ...]`.
            state: what the last call returned; None starts from rest.

        Returns:
            The spikes `[B, ...]` and the new state.
        """
        return convergent.step(
            "state", input_tensor, state, self.threshold, self.activation, self.encoder, self.step_size
        )
