"""Attributes that an object does not have, and that were meant for one that it has."""

from collections.abc import Collection
from difflib import get_close_matches


def refuse_misspelled(owner: object, what: str, name: str, known: Collection[str]) -> None:
    """Refuses a new attribute whose name is nearly one of the known ones, or its beginning.

    Args:
        owner: on which it is set.
        what: the owner in words, and what its attributes are: "a network has no setting".
        name: of the attribute. Those that begin with an underscore may be anything.
        known: names that may be meant.

    Raises:
        AttributeError: with the name that was meant.
    """
    if name.startswith("_") or name in known or hasattr(owner, name):
        return
    near = get_close_matches(name, known, 1, 0.8) or [k for k in known if len(name) > 4 and k.startswith(name)]
    if near:
        raise AttributeError(f"{what} {name!r}; expected {near[0]!r}")
