"""Bars on a terminal, for what takes more than a few seconds; nothing of them stays, or goes into a pipe or a file."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")
_shown: list[str] = []  # a bar within a bar is not shown: they would write over each other


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """A bar that moves while the block runs, and a clock.

    Args:
        what: goes on, such as "Converting".

    Returns:
        A function of what goes on next.

    Example:
        >>> with working("Loading") as next_is:
        ...     model = load()
        ...     next_is("Converting")
        ...     convert(model)
    """
    with _bar("") as bar:
        task = bar.add_task(what, total=None)
        yield lambda text: bar.update(task, description=text)


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar of how many are done, which is gone when the block ends. (`track` is gone when its iterator is.)

    Args:
        what: is done, such as "Making frames".
        total: how many there are.

    Returns:
        A function to call when one is done.

    Example:
        >>> with counting("Reading", len(files)) as done:
        ...     for file in files:
        ...         read(file)
        ...         done()
    """
    with _bar("{task.completed}/{task.total}") as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The items, with a bar of how many have been taken.

    Args:
        items: what is gone through.
        what: is done to them, such as "Reading".
        total: how many there are, where they have no length.

    Returns:
        An iterator.

    Example:
        >>> for x, y in track(loader, "Testing"):
        ...     model(x)
    """
    total = len(items) if isinstance(items, Sized) else total
    with _bar("{task.completed}/{task.total}") as bar:
        yield from bar.track(items, total, description=what)


@contextmanager
def _bar(count: str) -> "Iterator[Progress]":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    terminal = sys.stderr.isatty() or console.is_jupyter
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TextColumn(count), TimeElapsedColumn()
    shown = terminal and not _shown
    redirect = sys.stdout.isatty()  # into a pipe it goes as it is
    progress = Progress(*columns, console=console, transient=True, redirect_stdout=redirect, disable=not shown)
    _shown.append(count)
    try:
        # (Some versions of rich end a bar that is not shown with an empty line.)
        with progress if shown else nullcontext():
            yield progress
    finally:
        _shown.pop()
