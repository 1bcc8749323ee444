"""What to say where memory runs out: which batch it was, and that a smaller one may fit."""

from collections.abc import Iterator
from contextlib import contextmanager

# PyTorch's allocators, their libraries and the system say it each in their own words.
_WORDS = (
    *("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory"),
    *("bad_alloc", "bad allocation", "alloc_failed", "could not create a memory"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that there was no memory left, of the processor or of a GPU."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def too_large(batch_size: int | None, option: str) -> str:
    """One line: which batch it was, and what to do.

    Args:
        batch_size: None where it is not known.
        option: by which a batch's size is given.
    """
    if batch_size == 1:
        return "memory has run out with a batch of 1; use a smaller net or smaller inputs"
    known, smaller = ("", 16) if batch_size is None else (f" of {batch_size}", batch_size // 4 or 1)
    return f"memory has run out with a batch{known}; give a smaller one, such as {option} {smaller}, or a smaller net"


@contextmanager
def in_a_batch_of(batch_size: int, option: str = "--batch-size") -> Iterator[None]:
    """In which running out of memory is a `ValueError` that names the batch."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(too_large(batch_size, option)) from error
