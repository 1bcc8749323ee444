"""SIGTERM stops a command as Ctrl-C does: in order."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Terminated(KeyboardInterrupt):
    """Raised where SIGTERM comes."""


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """In which SIGTERM raises `Terminated`, so that what is half done is undone.

    Example:
        >>> with terminated_as_interrupted():
        ...     write()
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # whoever has started it wants something else
        return

    def stop(*_: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
