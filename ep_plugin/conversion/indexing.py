"""Indices as a forward writes them: `x[t]`, `x[:, t]`, `x[..., t]`, `x[:, t:t + 1]`, `record[5:]`."""

from dataclasses import dataclass
from typing import Any

WHOLE = slice(None)


@dataclass(frozen=True)
class Index:
    """An index of integers, slices and `...`.

    Attributes:
        parts: (axis, integer or slice), from the first on; behind `...` the axes are counted from the end.
        entries: the index itself, as a tuple.
        at: where each part is among the entries.
    """

    parts: tuple[tuple[int, Any], ...]
    entries: tuple[Any, ...]
    at: tuple[int, ...]

    @property
    def taken(self) -> list[int]:
        """The parts that do not take the whole axis."""
        return [i for i, (_, part) in enumerate(self.parts) if not is_whole(part)]

    def rest(self, i: int) -> tuple[Any, ...]:
        """The index without a part."""
        return tuple(e for at, e in enumerate(self.entries) if at != self.at[i])


def is_whole(entry: Any) -> bool:
    if not isinstance(entry, slice):
        return entry is Ellipsis
    start = None if entry.start is None else int(entry.start)  # a size, which says no more of itself, too
    return start in (None, 0) and entry.stop is None and entry.step in (None, 1)


def parsed(index: Any) -> Index | None:
    """The index; None where it holds something else, such as None or a tensor."""
    entries = index if isinstance(index, tuple) else (index,)
    if not all(e is Ellipsis or isinstance(e, slice) or (isinstance(e, int) and e is not True) for e in entries):
        return None
    if any(e is False for e in entries) or sum(e is Ellipsis for e in entries) > 1:
        return None
    dots = next((i for i, e in enumerate(entries) if e is Ellipsis), len(entries))
    parts, at = [], []
    for i, entry in enumerate(entries):
        if entry is not Ellipsis:
            parts.append((i if i < dots else i - len(entries), entry))
            at.append(i)
    return Index(tuple(parts), entries, tuple(at))


def one_place(part: Any) -> int | None:
    """The only place that an integer or a slice of length one takes; None for others."""
    if isinstance(part, int):
        return int(part)
    start, stop = part.start or 0, part.stop
    if isinstance(stop, int) and part.step in (None, 1) and int(stop) - int(start) == 1 and int(start) >= 0:
        return int(start)
    return None
