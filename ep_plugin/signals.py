"""SIGTERM, and SIGHUP of a terminal that closes, stop a command as Ctrl-C does: in order."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP


class Terminated(KeyboardInterrupt):
    """Raised where one of these signals comes.

    Attributes:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(error: KeyboardInterrupt) -> int:
    """What a shell sees of a command that a signal has ended."""
    return 128 + (error.number if isinstance(error, Terminated) else signal.SIGINT)


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """In which these signals raise `Terminated`, so that what is half done is undone.

    Those that whoever has started the command ignores (`nohup`) or hears stay so.

    Example:
        >>> with terminated_as_interrupted():
        ...     write()
    """

    def stop(number: int, _: Any) -> None:
        raise Terminated(number)

    heard = []
    if threading.current_thread() is threading.main_thread():
        heard = [number for number in STOPPING if signal.getsignal(number) == signal.SIG_DFL]
    for number in heard:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, signal.SIG_DFL)
