"""The packages that only some parts need, and how to get them."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

EXTRAS = {"norse": "norse", "nir": "nir"}
"""Package -> the extra of this package that brings it."""


def installed(package: str) -> bool:
    """Whether it can be imported; it is not imported."""
    return find_spec(package) is not None


@contextmanager
def needed_by(what: str) -> Iterator[None]:
    """Around an import.

    Raises:
        ModuleNotFoundError: an optional package is missing; says which, what needs it and how to get it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        raise ModuleNotFoundError(
            f"{what} needs {package}, which is not installed: pip install {package}, "
            f"or install ep-plugin with its extra [{EXTRAS[package]}]",
            name=error.name,
        ) from None
