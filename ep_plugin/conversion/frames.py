"""Steps of the input: which step a signal is made of, and whether all of them are read in turn."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ep_plugin.conversion.axes import LIKELY, OfOne, is_axis, is_permuting
from ep_plugin.conversion.functions import Function, Size, Slot, is_pointwise
from ep_plugin.conversion.plan import Applied, Combination, Input, Joined, Signal, Spikes, combine, sources, substitute
from ep_plugin.conversion.values import ONE_STEP, Unknown, any_step, frames

_AXES = (0, 1, 2, 3, 4, 5, -1, -2, -3)

ALL_STEPS = (
    "expected a loop that reads all steps from the first to the last and each of them alone (for x_t in x: ..., or "
    "x[:, t] for t in range(x.size(1))); select outside what the network is to see"
)


def is_of_input(signal: Signal) -> bool:
    """Whether a signal is made of the whole input and nothing else."""
    return all(isinstance(s, Input) and s.axis is None for s in sources(signal))


def is_of_steps(signal: Signal) -> bool:
    """Whether a signal is made of the input at any step, and nothing else."""
    found = sources(signal)
    return bool(found) and all(isinstance(s, Input) and s.axis is not None and s.step is None for s in found)


class Frames:
    """Selects steps of what is made of the input.

    Args:
        axes: how many axes a signal has, where that is known.
        shaped: what `view` and `reshape` made of the whole input -> that, and their arguments.
        inside: what a module of the user's does to a signal, if that is known.
        of_one: what a module does along an axis.
        made: the modules that a function is.
    """

    def __init__(
        self,
        axes: dict[Signal, int],
        shaped: dict[Signal, tuple[Signal, tuple[Any, ...]]],
        inside: Callable[[Applied], Signal | None],
        of_one: OfOne,
        made: Callable[..., list[nn.Module]],
    ) -> None:
        self.axes, self.shaped, self.inside, self.of_one, self.made = axes, shaped, inside, of_one, made

    def numbers(self, signal: Signal) -> tuple[int, ...]:
        return (self.axes[signal],) if signal in self.axes else LIKELY

    def at(self, signal: Signal, axis: int, step: int) -> Signal | Unknown:
        """One place of a signal of the whole input, as the same made of one place of the input."""
        if isinstance(signal, Input):
            if signal in self.axes:
                axis %= self.axes[signal]
            return Input(axis, step)
        if isinstance(signal, Combination):
            terms = [(self.at(part, axis, step), factor) for part, factor in signal.terms]
            unknown = next((part for part, _ in terms if isinstance(part, Unknown)), None)
            return unknown or combine([(part, factor) for part, factor in terms if not isinstance(part, Unknown)])
        if isinstance(signal, Applied):
            return self._applied(signal, axis, step)
        if isinstance(signal, Joined):
            if self.of_one(signal.module, axis, LIKELY) == ([signal.module], axis):
                each = [self.at(part, axis, step) for part in signal.signals]
                unknown = next((part for part in each if isinstance(part, Unknown)), None)
                return unknown or Joined(signal.name, signal.module, tuple(each))  # type: ignore[arg-type]
            return _mixed(signal.name)
        raise AssertionError(signal)

    def _applied(self, signal: Applied, axis: int, step: int) -> Signal | Unknown:
        if signal in self.shaped:
            return self._reshaped(signal, axis, step)
        before = self.numbers(signal.signal)
        places = _AXES if is_permuting(signal.module) or isinstance(signal.module, Function) else (axis,)
        for place in dict.fromkeys((axis, *places)):
            found = self.of_one(signal.module, place, before)
            if found is None or is_axis(found[1], axis, self.numbers(signal)) is not True:
                continue
            made = self.at(signal.signal, place, step)
            for module in found[0]:
                made = made if isinstance(made, Unknown) else Applied(signal.name, module, made)
            return made
        inside = self.inside(signal)
        return _mixed(signal.name) if inside is None else self.at(inside, axis, step)

    def _reshaped(self, signal: Applied, axis: int, step: int) -> Signal | Unknown:
        """A reshape that leaves the axes up to `axis` as they are."""
        inner, sizes = self.shaped[signal]
        known = self.axes.get(inner)
        axis = axis if axis >= 0 else axis + len(sizes)
        kept = sizes[: axis + 1]
        if not (0 <= axis < len(sizes) - 1) or not all(isinstance(n, Size) or known for n in kept):
            return _mixed(signal.name)
        made = self.at(inner, axis, step)
        if isinstance(made, Unknown):
            return made
        try:
            modules = self.made(Tensor.reshape, (*sizes[:axis], *sizes[axis + 1 :]), {})
        except ValueError as error:
            return Unknown(str(error), explained=True)
        for module in modules:
            made = Applied(signal.name, module, made)
        return made


def _mixed(name: str) -> Unknown:
    return Unknown(f"an index of what {name!r} makes of the whole input, of which one step's part is not known; "
                   f"{ONE_STEP}", explained=True)  # fmt: skip


def same_but_for_the_step(first: Signal, other: Signal) -> bool:
    """Whether two signals are the same, each at one step of its input."""
    a, b = frames(first), frames(other)
    return len(a) == len(b) == 1 and any_step(first) == any_step(other)


def steps_read(place: str, calls: Sequence[frozenset[tuple[int, int]]], size: int | None) -> tuple[int, int] | None:
    """The axis of the steps and their number, for a neuron that is called with these; None if it reads no steps.

    Raises:
        ValueError: it does not read all steps in turn.
    """
    if not any(calls):
        return None
    order = [next(iter(call)) for call in calls if len(call) == 1]
    axes = {axis for axis, _ in order}
    steps = list(dict.fromkeys(step for _, step in order))
    alone = len(set(calls)) == 1 and size != 1
    if len(order) == len(calls) and len(axes) == 1 and not alone:
        if steps == list(range(len(steps))) and [s for _, s in order] == sorted(s for _, s in order):
            if size is None or len(steps) == size:
                return axes.pop(), len(steps)
            reason = f"the first {len(steps)} of {size} steps"
        else:
            reason = f"the steps {_words(steps)}" + (
                "" if len(set(steps)) == len(order) else ", not one after the other"
            )
    elif alone and all(axis != 0 for axis, _ in calls[0]):
        return None
    else:
        found = sorted({frame for call in calls for frame in call})
        reason = ", ".join(f"[{step}] along axis {axis}" for axis, step in found[:3])
        if max(len(call) for call in calls) > 1:
            reason += " at once"
    raise ValueError(f"{place} depends on an index of the input: it reads {reason}; {ALL_STEPS}")


def _words(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[:4])) + (", ..." if len(steps) > 4 else "")


def alone(signal: Signal, function: Callable[..., Function], is_known: bool) -> Signal:
    """A signal of single places of the input, as one of the whole input.

    Args:
        signal: of such places.
        function: a function as a module, the same one each time.
        is_known: whether the number of the input's axes is; if not, what stands before an index might mix the
            places of its axis (that of features, before a linear layer), which shows when an input is given.
    """
    take = torch.select if is_known or _keeps_places(signal) else select_step

    def leaf(s: Input | Spikes) -> Signal:
        if not isinstance(s, Input) or s.step is None:
            return s
        return Applied("select", function(take, (Slot(0), s.axis, s.step)), Input())

    return substitute(signal, leaf)


def _keeps_places(signal: Signal) -> bool:
    """Whether no module on the way from the input could mix the places of an axis."""
    if isinstance(signal, Applied):
        return is_pointwise(signal.module) and _keeps_places(signal.signal)
    if isinstance(signal, Combination):
        return all(_keeps_places(part) for part, _ in signal.terms)
    return not isinstance(signal, Joined)


def select_step(x: Tensor, axis: int, step: int) -> Tensor:
    """`torch.select` along an axis that is none of a sample's only one.

    Raises:
        ValueError: a sample has no other axis.
    """
    if x.dim() < 3:
        raise ValueError(
            f"an input of shape {list(x.shape)} has no axis of steps, and the model's index [{step}] of axis {axis} "
            "was read as a step of [batch, time, ...]; give an input to the conversion: convert(net, example_input=x)"
        )
    return torch.select(x, axis, step)


def difference(a: Signal, b: Signal) -> str:
    """In words: where two signals differ first."""
    if type(a) is type(b):
        if isinstance(a, Applied) and isinstance(b, Applied):
            if a.signal != b.signal and a.module is b.module:
                return difference(a.signal, b.signal)
            if isinstance(a.module, Function) and isinstance(b.module, Function):
                return _functions(a, b)
            if a.module is not b.module:
                return f"{a.name!r} at one step, {b.name!r} at another"
        if isinstance(a, Joined) and isinstance(b, Joined) and len(a.signals) == len(b.signals):
            for part, other in zip(a.signals, b.signals, strict=True):
                if part != other:
                    return difference(part, other)
        if isinstance(a, Combination) and isinstance(b, Combination):
            one, two = dict(a.terms), dict(b.terms)
            for s in one:
                if s in two and one[s] != two[s]:
                    return f"{described(s)} times {one[s]:g} at one step, times {two[s]:g} at another"
            left = [s for s in one if s not in two], [s for s in two if s not in one]
            if len(left[0]) == len(left[1]) == 1:
                return difference(left[0][0], left[1][0])
    return f"{described(a)} at one step, {described(b)} at another"


def _functions(a: Applied, b: Applied) -> str:
    if getattr(a.module.function, "__name__", "") in ("getitem", "select", "narrow"):
        return f"an index of {described(a.signal)} that differs between the steps; {ONE_STEP}"
    return f"{a.name}() with other arguments at one step than at another"


def described(signal: Signal) -> str:
    """A signal in a few words."""
    if isinstance(signal, Input):
        return (
            "the input" if signal.step is None else f"an index of the input, [{signal.step}] along axis {signal.axis}"
        )
    if isinstance(signal, Spikes):
        return f"the spikes of {signal.neuron!r}"
    if isinstance(signal, Combination):
        return "a sum of " + ", ".join(described(part) for part, _ in signal.terms[:3])
    return f"what {signal.name!r} gives"
