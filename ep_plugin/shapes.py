"""The shape of a network's input, as far as its first module tells it."""

from collections.abc import Sequence

from torch import nn

from ep_plugin.checks import count


def expected_input(stem: nn.Module) -> list[int | None] | None:
    """A sample's shape (None: any size); None if the first module does not tell it."""
    first = _first(stem)
    if isinstance(first, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return [first.in_channels, *[None] * len(first.kernel_size)]
    if isinstance(first, nn.Linear):
        return [first.in_features]
    return None


def input_shape(stem: nn.Module, given: Sequence[int] | None, option: str) -> tuple[int, ...]:
    """The input's shape without the batch: the given one, or the only one that fits.

    Args:
        stem: what stands before the first neuron.
        given: sizes, 1 or more each.
        option: an example of how to give them, for the error.

    Raises:
        ValueError, TypeError: it is not given and the first module leaves a size open, or a size is not 1 or more.
    """
    if given is not None:
        return tuple(count(f"a size of the input's shape {tuple(given)}", n) for n in given)
    expected = expected_input(stem)
    if expected is None or None in expected:
        raise ValueError(
            f"the shape of an input cannot be told from {type(_first(stem)).__name__}, the first module; give it, "
            f"without the batch: {option}"
        )
    return tuple(n for n in expected if n is not None)


def _first(stem: nn.Module) -> nn.Module | None:
    return next((m for m in stem.modules() if not isinstance(m, (nn.Sequential, nn.Identity))), None)
