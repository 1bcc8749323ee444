"""What a model computes in one step, as conversion reads it from a sequence or from a traced forward.

A signal is the input, a neuron's spikes, a module applied to one or several signals, or a sum of
signals times numbers. Two signals are equal where they say the same thing, whatever the step they
were read in.
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

from torch import nn


@dataclass(frozen=True)
class Input:
    """The model's input, or what it is at a step if the model reads it step by step.

    Attributes:
        axis: of the steps in the model's input; None for the whole input.
        step: which one; None for any, as all of them are read in turn.
    """

    axis: int | None = None
    step: int | None = None

    @property
    def at_a_step(self) -> bool:
        return self.axis is not None


@dataclass(frozen=True)
class Spikes:
    neuron: str


class _Made:
    """A signal made of others. They are shared, so its hash is reckoned once, and not anew for each user."""

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(vars(self).values()))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True)
class Applied(_Made):
    """`module` (called `name` in the model) applied to a signal."""

    name: str
    module: nn.Module
    signal: "Signal"

    __hash__ = _Made.__hash__


@dataclass(frozen=True)
class Joined(_Made):
    """`module` (called `name`) applied to several signals in any other way than adding them up."""

    name: str
    module: nn.Module
    signals: tuple["Signal", ...]

    __hash__ = _Made.__hash__


@dataclass(frozen=True)
class Combination(_Made):
    """A sum of signals, each times a number."""

    terms: tuple[tuple["Signal", float], ...]

    __hash__ = _Made.__hash__


Signal: TypeAlias = Input | Spikes | Applied | Joined | Combination


@dataclass
class Plan:
    """What a model does in one step.

    Attributes:
        neurons: in the order of their first call.
        received: what each of them receives.
        output: what the converted model returns.
        notes: remarks for the user.
        path: where the output stands in what the model returns; () if that is it.
        steps: of a model that reads its input step by step: how many it reads.
    """

    neurons: dict[str, nn.Module]
    received: dict[str, Signal]
    output: Signal
    notes: list[str] = field(default_factory=list)
    path: tuple[Any, ...] = ()
    steps: int | None = None


def combine(terms: Sequence[tuple[Signal, float]]) -> Signal:
    """The sum, with equal signals taken together and the last digits of their factors rounded."""
    total: dict[Signal, float] = {}
    for signal, factor in terms:
        for part, own in signal.terms if isinstance(signal, Combination) else ((signal, 1.0),):
            total[part] = total.get(part, 0.0) + own * factor
    rounded = {signal: float(f"{factor:.12g}") for signal, factor in total.items()}
    if len(rounded) == 1 and next(iter(rounded.values())) == 1:
        return next(iter(rounded))
    return Combination(tuple(rounded.items()))


def parts(signal: Signal) -> tuple[Signal, ...]:
    """The signals that a signal is made of directly."""
    if isinstance(signal, Applied):
        return (signal.signal,)
    if isinstance(signal, Joined):
        return signal.signals
    if isinstance(signal, Combination):
        return tuple(part for part, _ in signal.terms)
    return ()


def signals_in(signals: Sequence[Signal], given: Container[Signal] = ()) -> list[Signal]:
    """These signals and all that they are made of, each once, after what it is made of itself.

    What is `given` is left out, and not looked into.
    """
    found: dict[Signal, None] = {}

    def visit(signal: Signal) -> None:
        if signal not in given and signal not in found:
            for part in parts(signal):
                visit(part)
            found[signal] = None

    for signal in signals:
        visit(signal)
    return list(found)


def sources(*signals: Signal) -> list[Input | Spikes]:
    """Where signals come from."""
    return [s for s in signals_in(signals) if isinstance(s, (Input, Spikes))]


def modules_in(*signals: Signal) -> list[nn.Module]:
    """The modules that make signals of their sources, each once."""
    return list(dict.fromkeys(s.module for s in signals_in(signals) if isinstance(s, (Applied, Joined))))


def substitute(signal: Signal, leaf: Callable[[Input | Spikes], Signal], prefix: str = "") -> Signal:
    """The signal with its sources replaced, and the names of its modules prefixed."""
    done: dict[Signal, Signal] = {}
    for s in signals_in([signal]):
        if isinstance(s, Applied):
            done[s] = Applied(prefix + s.name, s.module, done[s.signal])
        elif isinstance(s, Joined):
            done[s] = Joined(prefix + s.name, s.module, tuple(done[part] for part in s.signals))
        elif isinstance(s, Combination):
            done[s] = combine([(done[part], factor) for part, factor in s.terms])
        else:
            done[s] = leaf(s)
    return done[signal]


def substitute_input(done: Signal, signal: Signal, prefix: str) -> Signal:
    """`done`, which says what becomes of an input, with `signal` as that input and the names prefixed."""
    return substitute(done, lambda _: signal, prefix)
