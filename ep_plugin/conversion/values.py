"""What a value of a traced forward is beside a signal: a record of steps, or something that is no signal."""

from dataclasses import dataclass, field
from typing import Any

from ep_plugin.conversion.indexing import parsed
from ep_plugin.conversion.plan import Applied, Combination, Input, Joined, Signal, Spikes, sources, substitute


@dataclass(frozen=True)
class Record:
    """A signal over `steps` steps, which lie along `axis`. At an equilibrium it is the same in each of them."""

    signal: Signal
    axis: int
    steps: int


@dataclass(frozen=True)
class Pieces:
    """A value taken apart along an axis, one piece an index; `kept` if the pieces have that axis still."""

    value: Signal | Record
    axis: int
    kept: bool


@dataclass(frozen=True)
class Several:
    """A tuple of values that a function returns."""

    values: "tuple[Value, ...]"


@dataclass(frozen=True)
class Unknown:
    """Something that is no signal; an error only if a neuron or the output depends on it.

    `reason` names it; it is `explained` if it has the way out, and a `sentence` if it names who depends on it too.
    """

    reason: str
    explained: bool = False
    is_sentence: bool = False


@dataclass(eq=False)
class Filled:
    """A tensor that forward makes and then writes into, step by step.

    Attributes:
        is_zero: whether it was made of zeros.
        sizes: of its axes; None if they are not known.
        written: (axis, place) -> what.
        reason: why it is not known, if so.
    """

    is_zero: bool
    sizes: tuple[int, ...] | None
    written: "dict[tuple[int, int], Value]" = field(default_factory=dict)
    whole: "Value | None" = None
    reason: str | None = None

    def write(self, index: Any, value: "Value") -> None:
        found = parsed(index)
        taken = None if found is None else found.taken
        if found is not None and not taken:
            self.whole, self.written = value, {}
        elif found is not None and taken and len(taken) == 1 and isinstance(place := found.parts[taken[0]][1], int):
            axis = found.parts[taken[0]][0]
            if self.sizes is not None:
                axis, place = axis % len(self.sizes), place % self.sizes[axis]
            self.written[axis, int(place)] = value
        else:
            self.reason = (
                "a tensor that forward fills in parts other than one step after the other; append what each step gives "
                "to a list, and torch.stack it"
            )

    def read(self) -> "Value":
        """What it holds."""
        if self.reason is not None:
            return Unknown(self.reason, explained=True)
        if not self.written:
            return self.whole if self.whole is not None else (ZEROS if self.is_zero else UNKNOWN)
        axes = {axis for axis, _ in self.written}
        (axis, *others), places = axes, sorted(place for _, place in self.written)
        size = len(places) if self.sizes is None else self.sizes[axis]
        if others or places != list(range(size)) or self.whole is not None:
            return Unknown(
                "a tensor of which forward fills some places only; append what each step gives to a list, and "
                "torch.stack it",
                explained=True,
            )
        return recorded([self.written[axis, place] for place in places], axis)

    def item(self, index: Any) -> "Value | None":
        """One place of it, if that is known."""
        found = parsed(index)
        if self.reason or self.whole is not None or found is None or len(found.taken) != 1:
            return None
        axis, place = found.parts[found.taken[0]]
        if not isinstance(place, int) or any(axis != a for a, _ in self.written):
            return None
        if self.sizes is not None:
            axis, place = axis % len(self.sizes), place % self.sizes[axis]
        return self.written.get((axis, int(place)), ZEROS if self.is_zero else UNKNOWN)


Value = Signal | Record | Pieces | Several | Unknown | Filled
SIGNALS = (Input, Spikes, Applied, Joined, Combination)
UNKNOWN = Unknown(
    "a tensor that forward makes in the shape of another one (ones_like, say), whose values are not read; write them "
    "as a number (h + 1), or hold them as a buffer of the model",
    explained=True,
)
ZEROS = Unknown(
    "zeros that forward makes, which are read as what a sum or a record starts from; if they are a constant, hold them "
    "as a buffer of the model, or write the number 0",
    explained=True,
)
ONE_STEP = "apply it to one step, inside the loop (before neurons over time: in a norse.Lift), or outside of the model"


def whole_record(name: str) -> Unknown:
    """What a function makes of all steps in a way that is not the same for each of them."""
    return Unknown(
        f"what {name} makes of all time steps at once, of which one step's part is not known; {ONE_STEP}", True
    )


def any_step(signal: Signal) -> Signal:
    """A signal at any step, whatever the step is that its input was read at."""
    if not frames(signal):
        return signal
    return substitute(signal, lambda s: Input(s.axis) if isinstance(s, Input) else s)


def frames(signal: Signal) -> frozenset[tuple[int, int]]:
    """Which steps of the input a signal is made of: axis and step."""
    return frozenset(
        (s.axis, s.step) for s in sources(signal) if isinstance(s, Input) and s.axis is not None and s.step is not None
    )


def recorded(values: "list[Value]", axis: int) -> "Value":
    """What each of several steps gave, stacked: a record, if it is the same signal in each.

    What one step of the input gives several times is no record: such are channels that are repeated.
    """
    other = next((v for v in values if not isinstance(v, SIGNALS)), None)
    if other is not None:
        return other if isinstance(other, Unknown) else whole_record("a stack")
    steps = [frames(v) for v in values]  # type: ignore[arg-type]
    repeated = len(steps) > 1 and any(steps) and len(set(steps)) == 1
    if not repeated and all(len(step) <= 1 for step in steps) and len({any_step(v) for v in values}) == 1:  # type: ignore[arg-type]
        return Record(any_step(values[0]), axis, len(values))  # type: ignore[arg-type]
    return Several(tuple(values))
