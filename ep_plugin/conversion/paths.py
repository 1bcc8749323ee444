"""The paths of signals between neurons, each a sequence of modules that may stand there."""

from collections.abc import Sequence

from torch import nn

from ep_plugin.conversion.adapters import place_of
from ep_plugin.conversion.between import (
    BACKWARD_HOOK,
    OF_ONES_OWN,
    as_connection_module,
    hooked_backward,
    without_offset,
)
from ep_plugin.conversion.computation import Computation
from ep_plugin.conversion.concatenation import concatenated, simplified
from ep_plugin.conversion.linear_functions import LinearFunction, as_linear, is_constant
from ep_plugin.conversion.plan import (
    Applied,
    Combination,
    Input,
    Joined,
    Signal,
    Spikes,
    combine,
    sources,
    substitute_input,
)
from ep_plugin.conversion.reader import inside
from ep_plugin.linear.concatenation import Concatenation, Placement
from ep_plugin.linear.connection import is_known
from ep_plugin.linear.modules import Scale

Path = tuple[Signal, list[nn.Module]]
"""A neuron's spikes or what is made of the input alone, and the modules on its way."""


class Paths:
    """The paths of signals between neurons. Every module is looked at once, whatever the number of its paths.

    Args:
        max_pooling: as in `convert`.
        notes: remarks for the user are added to these.

    Attributes:
        concatenations: those that were met, with the parts of each.
    """

    def __init__(self, max_pooling: str, notes: list[str]) -> None:
        self.max_pooling, self.notes = max_pooling, notes
        self.placed: dict[nn.Module, nn.Module] = {}
        self.linear: dict[Signal, tuple[LinearFunction, Signal] | None] = {}
        self.concatenations: dict[Signal, tuple[Concatenation, tuple[Signal, ...]]] = {}

    def paths_to(self, signal: Signal, user: str) -> list[Path]:
        """All paths that lead into a signal. Of those through one module all but the first leave out its offset.

        Args:
            signal: what is received.
            user: who receives it, for errors.

        Raises:
            ValueError: something on the way has no counterpart, with the place and the reason.
        """
        if isinstance(signal, Spikes):
            return [(signal, [])]
        if all(isinstance(s, Input) for s in sources(signal)):
            if is_constant(signal):
                raise ValueError(
                    f"{user} receives the same whatever the input is; expected it to depend on the input or on other "
                    "neurons (a constant may be added to that)"
                )
            return [(signal, [])]
        if isinstance(signal, Combination):
            return self._added(signal, user)
        if (other := simplified(signal)) is not signal:
            return self.paths_to(other, user)
        if (joined := concatenated(signal)) is not None:
            return self._joined(signal, *joined, user)
        if (linear := self._linear(signal)) is not None:
            module, inner = linear
            return self._behind(module, module.place, self.paths_to(inner, user))
        if isinstance(signal, Joined):
            varying = [part for part in signal.signals if not is_constant(part)]
            if len(varying) == 1:
                raise ValueError(f"{signal.name}() before {user} cannot be converted: {OF_ONES_OWN}")
            raise ValueError(
                f"{user} depends on {signal.name}() of several tensors, which is not read between neurons; expected "
                "sums of signals, each times a number, and concatenations. If it is a product of states it has no "
                "energy of connections; if it is linear write it as a sum of a linear module of each"
            )
        assert isinstance(signal, Applied)
        if isinstance(signal.module, nn.Sequential) and type(signal.module) is nn.Sequential:
            if hooked_backward([signal.module]):
                raise ValueError(f"{place_of(signal.name, signal.module)} {BACKWARD_HOOK}")
            return self.paths_to(_unpacked(signal), user)
        if (done := _inside(signal)) is not None:
            return self.paths_to(done, user)
        if signal.module not in self.placed:
            self.placed[signal.module] = as_connection_module(signal.name, signal.module, self.max_pooling, self.notes)
        place = place_of(signal.name, signal.module)
        return self._behind(self.placed[signal.module], place, self.paths_to(signal.signal, user))

    def _behind(self, module: nn.Module, place: str, before: list[Path]) -> list[Path]:
        """The paths with a module at their end, whose offset counts once."""
        (start, modules), *others = before
        return [(start, [*modules, module]), *((s, [*ms, without_offset(place, module)]) for s, ms in others)]

    def _added(self, total: Combination, user: str) -> list[Path]:
        """The paths into each term of a sum. Constants are added at the end of one of them."""
        constants = [(part, factor) for part, factor in total.terms if is_constant(part)]
        found = [
            (start, [*modules, *([Scale(factor)] if factor != 1 else [])])
            for part, factor in total.terms
            if not is_constant(part)
            for start, modules in self.paths_to(part, user)
        ]
        if constants:
            hole = Input()
            shifted = Computation([combine([(hole, 1.0), *constants])], [hole])
            (start, modules), *others = found
            found = [(start, [*modules, LinearFunction(f"what is added before {user}", shifted)]), *others]
        return found

    def _linear(self, signal: Signal) -> tuple[LinearFunction, Signal] | None:
        """A function of one signal and of constants, if it is known to be linear; the same one each time."""
        if signal not in self.linear:
            name = signal.name if isinstance(signal, (Applied, Joined)) else ""
            self.linear[signal] = as_linear(signal, f"{name}() between neurons")
        return self.linear[signal]

    def _joined(self, signal: Signal, members: tuple[Signal, ...], dim: int, user: str) -> list[Path]:
        """The paths into a concatenation: those into each part, and where it lies."""
        if signal not in self.concatenations:
            place = f"the concatenation of {len(members)} signals before {user}"
            if dim == 0:
                raise ValueError(
                    f"{place} cannot be converted: it joins them along the batch, so that samples see each other; "
                    "expected dim=1 or more (or -1)"
                )
            self.concatenations[signal] = (Concatenation(place, dim, len(members)), members)
        concatenation, _ = self.concatenations[signal]
        return [
            (start, [*modules, Placement(concatenation, k)])
            for k, member in enumerate(members)
            for start, modules in self.paths_to(member, user)
        ]


def _unpacked(signal: Applied) -> Signal:
    """The modules of a sequence, one after the other."""
    inner = signal.signal
    for name, module in signal.module.named_children():
        inner = Applied(f"{signal.name}.{name}", module, inner)
    return inner


def _inside(signal: Applied) -> Signal | None:
    """What a module that is not PyTorch's own does to its signal; None where only the module can tell."""
    if type(signal.module).__module__.startswith(("torch.", "ep_plugin.")) or is_known(signal.module):
        return None
    done = inside(signal.module)
    return None if done is None else substitute_input(done, signal.signal, f"{signal.name}.")


def through(name: str, modules: Sequence[nn.Module], signal: Signal) -> Signal:
    """The modules, one after the other, applied to a signal."""
    for module in modules:
        signal = Applied(name, module, signal)
    return signal
