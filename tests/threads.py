"""Threads that outlive what they were started for."""

import threading
import time


def are_again(number, seconds=3):
    """Whether no more than so many are left after a while: a thread that was told to stop takes a moment."""
    until = time.monotonic() + seconds
    while threading.active_count() > number and time.monotonic() < until:
        time.sleep(0.02)
    return threading.active_count() <= number
