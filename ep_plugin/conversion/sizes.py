"""Sizes of the input while its forward is traced without an example: numbers that only a loop may use.

An unknown size runs a loop `length` times. The forward is traced for two lengths, and what comes out of them must be
the same, so that nothing of the chosen number is left in the converted model.
"""

import dis
import inspect
from collections.abc import Iterator
from typing import Any

EXAMPLE = "trace it with an input whose sizes are true: convert(net, example_input=x)"

LENGTHS = (37, 41)
"""Steps of a loop over an unknown size: many, so that what begins after some steps is seen."""


def stands_in(steps: int | None) -> str:
    """What there is to say of a number of steps that may stand for an unknown one."""
    return f" ({steps} stand for a number of steps that is not known; {EXAMPLE})" if steps in LENGTHS else ""


class NotKnown(BaseException):
    """Asked of a traced value what only a value has; the message says what, and the way out.

    It is no `Exception`, so that a forward that tries something, and does another thing in its place, does not take it
    for a failure of that.
    """


class Size(int):
    """An unknown size of the input, or what is reckoned with one.

    Attributes:
        of: the value whose size it is, and the axis; None for what is reckoned.
    """

    of: tuple[Any, int] | None = None

    @classmethod
    def along(cls, value: Any, axis: int, length: int) -> "Size":
        """The size of a value along an axis."""
        size = cls(length)
        size.of = (value, axis)
        return size

    def _compared(self, other: Any) -> Any:
        raise NotKnown(f"it compares a size of the input, which is not known; {EXAMPLE}")

    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _compared
    __hash__ = int.__hash__

    def __bool__(self) -> bool:
        return self._compared(0)

    def _divided(self, other: Any) -> Any:
        raise NotKnown(f"it asks for the remainder of a size of the input, which is not known; {EXAMPLE}")

    __mod__ = __rmod__ = __divmod__ = __rdivmod__ = _divided

    def __add__(self, other: Any) -> Any:
        return _sized(int.__add__(self, other))

    def __sub__(self, other: Any) -> Any:
        return _sized(int.__sub__(self, other))

    def __rsub__(self, other: Any) -> Any:
        return _sized(int.__rsub__(self, other))

    def __mul__(self, other: Any) -> Any:
        return _sized(int.__mul__(self, other))

    def __floordiv__(self, other: Any) -> Any:
        return _sized(int.__floordiv__(self, other))

    def __rfloordiv__(self, other: Any) -> Any:
        return _sized(int.__rfloordiv__(self, other))

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Any:
        return _sized(int.__neg__(self))


class Shape:
    """All sizes of a value from an axis on, of which not even the number is known."""

    def __init__(self, value: Any, length: int, first: int = 0) -> None:
        self.value, self.length, self.first = value, length, first

    def __getitem__(self, dim: int | slice) -> Any:
        if isinstance(dim, slice):
            return Shape(self.value, self.length, self.first + (dim.start or 0))
        return Size.along(self.value, self.first + dim if dim >= 0 else dim, self.length)

    def __iter__(self) -> Iterator[Size]:
        # As many as the caller unpacks them to, which its bytecode tells.
        caller = inspect.stack()[1].frame
        for instruction in dis.get_instructions(caller.f_code):
            if instruction.offset == caller.f_lasti and instruction.opname == "UNPACK_SEQUENCE":
                return iter([self[axis] for axis in range(instruction.argval)])
        raise NotKnown(f"it goes through the sizes of the input, whose number is not known; {EXAMPLE}")

    def __len__(self) -> int:
        raise NotKnown(f"it asks for the number of axes of the input, which is not known; {EXAMPLE}")

    def __eq__(self, other: object) -> bool:
        raise NotKnown(f"it compares the shape of the input, which is not known; {EXAMPLE}")

    __ne__ = __eq__
    __hash__ = None  # type: ignore[assignment]

    def numel(self) -> int:
        raise NotKnown(f"it asks for the number of the input's entries, which is not known; {EXAMPLE}")


def _sized(value: Any) -> Any:
    return value if value is NotImplemented else Size(value)
