"""Whether a net has a loop over time of its own in its forward."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

_LOOP = 3  # calls of every neuron in one call of the net; two may be layers that share one


@contextmanager
def neuron_calls(neurons: Iterable[nn.Module]) -> Iterator[Callable[[], int | None]]:
    """Watches the call of a net.

    Args:
        neurons: all those of the net.

    Yields:
        A function that says, after the call, how many steps the net's own loop has; None if there is no such loop.
    """
    calls: dict[int, int] = {}

    def watch(place: int) -> Callable[..., None]:
        calls[place] = 0

        def called(*_: object) -> None:
            calls[place] += 1

        return called

    def steps() -> int | None:
        most = max(calls.values(), default=0)
        return most if most >= _LOOP and set(calls.values()) == {most} else None

    with ExitStack() as hooks:
        for place, neuron in enumerate(neurons):
            hooks.callback(neuron.register_forward_hook(watch(place)).remove)
        yield steps
