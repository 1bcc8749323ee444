"""The force that nudges a network, and how strongly each of two phases is nudged."""

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ep_plugin.tensors import per_sample, rows
from ep_plugin.validation import positive

Nudging = Literal["symmetric", "positive", "negative", "random_sign"]

NUDGINGS: dict[str, tuple[float | None, float]] = {
    "positive": (1.0, 0.0),
    "negative": (-1.0, 0.0),
    "random_sign": (None, 0.0),  # +1 or -1, drawn for each sample
    "symmetric": (1.0, -1.0),
}
"""Name -> how strongly the two phases are nudged, in units of beta."""


_LEAST = 1e-30


def force_length(beta: float, least: float = _LEAST) -> float:
    """beta as a float, where float32 holds it and what is multiplied and divided by it.

    Args:
        beta: as it was given.
        least: of its values.

    Raises:
        ValueError: it is out of its range.
        TypeError: it is no number.
    """
    beta = positive("beta", beta)
    if not least <= beta <= 1 / _LEAST:
        raise ValueError(f"beta is {beta:g}; expected a number from {least:g} to {1 / _LEAST:g}")
    return beta


def strengths(nudging: str, samples: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """How strongly each sample is nudged in the two phases, in units of beta, `[B]` each."""
    first, second = NUDGINGS[nudging]
    if first is None:
        a = torch.randint(0, 2, (samples,), device=like.device).to(like.dtype) * 2 - 1
    else:
        a = like.new_full((samples,), first)
    return a, like.new_full((samples,), second)


def normalized(gradients: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Each sample's direction, over all read layers together, and its length, `[B]`.

    Zeros for both where the gradient is zero, NaN where it is not finite. Divided by its largest entry
    first, so that nothing over- or underflows and a loss that is scaled by a power of two gives the
    same direction to the last bit.
    """
    most = torch.stack([rows(g).abs().amax(1) for g in gradients]).amax(0)
    safe = torch.where(most > 0, most, 1)
    units = [g / per_sample(safe, g) for g in gradients]
    length = torch.stack([torch.linalg.vector_norm(rows(u), dim=1) for u in units]).norm(dim=0)
    positive = torch.where(length > 0, length, 1)
    return [u / per_sample(positive, u) for u in units], length * most


def warn_unless_finite(length: Tensor) -> None:
    """Says so where a sample's dC/dr, of the given length, is no number.

    One that is none becomes a gradient that is none, as everywhere in autograd: a scaler for float16
    meets such losses by design, skips the step and lowers its scale.
    """
    if length.is_meta:
        return
    bad = int((~length.isfinite()).sum())
    if bad:
        warnings.warn(
            f"the loss's gradient is NaN or infinite at the output layer's equilibrium (loss or readout) in {bad} of "
            f"{len(length)} samples, and so are the gradients that follow from it. A gradient scaler skips this "
            "step. Without one, do not step the optimizer: lower the learning rate, clip, or look at the targets "
            "of a loss that can divide by zero",
            RuntimeWarning,
            stacklevel=2,
        )
