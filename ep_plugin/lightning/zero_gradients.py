"""A loss that moves nothing: its gradient is exactly zero at every equilibrium."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

_BATCHES = 3  # that are looked at; a rare one may be at its minimum, or its layer silent


class ZeroGradients:
    """Looks at the first batches' dC/dr, and warns once if it is exactly zero for all of their samples.

    No nudge follows from such a loss, so that stem and connections never learn, and nothing else would say so.

    Args:
        loss: what it is called.
    """

    def __init__(self, loss: str) -> None:
        self.loss, self.left, self.moved = loss, _BATCHES, False
        self.sees = False  # whether a readout was handed an equilibrium that leads to this batch's loss

    @contextmanager
    def watched(self, readout: nn.Module) -> Iterator[None]:
        """In which the readout is handed the equilibrium."""
        if not self.left:
            yield
            return
        hook = readout.register_forward_pre_hook(self._see)
        try:
            yield
        finally:
            hook.remove()

    def judge(self, loss: Tensor) -> None:
        """After the backward pass. A loss of 0 is at its minimum. A `training_step` of one's own is not watched."""
        if not self.left or not self.sees:
            return
        self.sees = False
        self.left -= 1
        if self.moved or not bool(loss.detach().any()):
            self.left = 0
        elif not self.left:
            warnings.warn(
                f"the loss {self.loss} gave a gradient of exactly 0 at the equilibria of all samples of the first "
                f"{_BATCHES} batches, at a value of {loss.item():.3g}: nothing before the readout learns. Use a loss "
                "that is differentiable in the output (rounding and comparisons have no slope), and look whether the "
                "readout lets it through (weights of 0)",
                stacklevel=2,
            )

    def _see(self, _: nn.Module, states: tuple[Any, ...]) -> None:
        for state in states:
            if isinstance(state, Tensor) and state.requires_grad:
                self.sees = True
                state.register_hook(self._seen)

    def _seen(self, gradient: Tensor) -> None:
        self.moved = self.moved or bool(gradient.any())
