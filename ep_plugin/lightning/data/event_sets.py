"""Data sets of tonic's: found, looked at before they are read, and never downloaded unless that is asked for."""

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

MakeSet = Callable[..., Any]
"""From a directory and `train=True` or `False` to one of tonic's data sets, such as their classes."""

_EVENT = 5  # bytes of an event in the .bin files of N-MNIST and N-Caltech101


def found(events: str | MakeSet) -> MakeSet:
    """What makes the data set of this name; anything else as it is.

    Raises:
        ValueError: tonic is not installed, or has no such data set.
        TypeError: neither a name nor to be called.
    """
    try:
        from tonic import datasets
    except ImportError as error:
        raise ValueError(
            "EventDataModule needs tonic, which is not installed: pip install tonic, or install ep-plugin with its "
            "extra [events]"
        ) from error
    if callable(events):
        return events
    if not isinstance(events, str):
        raise TypeError(f"events is {events!r}; expected the name of one of tonic's data sets, or what makes one")
    sets = {name.lower(): made for name, made in vars(datasets).items() if isinstance(made, type)}
    if events.lower() not in sets:
        near = get_close_matches(events.lower(), sets, 3, 0.4) or sorted(sets)
        raise ValueError(f"tonic has no data set {events!r}; expected one of its classes, such as {', '.join(near)}")
    return sets[events.lower()]


def name_of(make: MakeSet) -> str:
    return getattr(make, "__name__", type(make).__name__)


def opened(make: MakeSet, data_dir: Path, train: bool, download: bool) -> Any:
    """The training or the test recordings.

    Raises:
        ValueError: they are not there, not whole, or not to be read.
    """
    name, part = name_of(make), "training" if train else "test"
    try:
        made = (make if download else _never_downloading(make))(str(data_dir), train=train)
        number, size = len(made), tuple(made.sensor_size)
    except _Missing:
        raise missing(make, data_dir) from None
    except Exception as error:  # of tonic, h5py, or of the user's own function
        raise ValueError(
            f"cannot open the {part} recordings of {name} in {data_dir}: {_said(error)}; copy them anew, or, for a set "
            "of your own, give a function (data_dir, train) -> one of tonic's data sets with a sensor_size"
        ) from error
    if number == 0 or len(size) != 3:
        raise (
            missing(make, data_dir)
            if number == 0
            else ValueError(f"the sensor_size of {name} is {size}; expected width, height and number of polarities")
        )
    for file in files(made):
        if file.suffix == ".bin" and (file.stat().st_size == 0 or file.stat().st_size % _EVENT):
            raise ValueError(f"{file} is not whole: it has {file.stat().st_size:,} bytes; expected {_EVENT} an event: "
                             "copy it anew")  # fmt: skip
    return made


def missing(make: MakeSet, data_dir: Path) -> ValueError:
    name = name_of(make)
    return ValueError(
        f"no recordings of {name} in {data_dir / name}; unpack them there as tonic does (Train and Test for NMNIST), "
        "name another directory with data_dir, or let tonic fetch them with download=True"
    )


def files(made: Any) -> list[Path]:
    """The recordings' own files, where each has one."""
    own = getattr(made, "data", [])
    return [Path(file) for file in own] if all(isinstance(file, str) for file in own) else []


def all_files(made: Any) -> list[Path]:
    """Every file that a data set of tonic's may have been read from."""
    if own := files(made):
        return own
    place = Path(made.location_on_system)
    return sorted(file for file in place.rglob("*") if file.is_file())


def in_order(made: Any) -> list[int]:
    """The recordings' numbers by the names of their files: tonic has some as the disk lists them."""
    own = files(made)
    return sorted(range(len(made)), key=own.__getitem__) if len(own) == len(made) else list(range(len(made)))


def recording(made: Any, number: int, framed: Callable[[Any], Any]) -> tuple[Any, int]:
    """Its frames, and its class.

    Raises:
        ValueError: it cannot be read, or holds no event.
    """
    try:
        events, label = made[number]
        frames = framed(events) if len(events) else None
        label = int(label)
    except Exception as error:  # whatever its bytes lead to
        raise ValueError(f"cannot read {_place(made, number)}: {_said(error)}; copy it anew") from error
    if frames is None:
        raise ValueError(f"{_place(made, number)} holds no event; copy it anew, or take it out")
    return frames, label


def _place(made: Any, number: int) -> str:
    own = files(made)
    return str(own[number]) if len(own) == len(made) else f"recording {number} of {name_of(type(made))}"


class _Missing(Exception):
    pass


def _never_downloading(make: MakeSet) -> MakeSet:
    """A class of tonic's that stops where it would fetch files. (It would where it finds fewer than the whole set has,
    or no archive beside them.)"""
    from tonic import Dataset

    if not (isinstance(make, type) and issubclass(make, Dataset)):
        return make

    def refuse(self: Any) -> None:
        raise _Missing

    def is_there(self: Any) -> bool:
        place = Path(self.location_on_system, getattr(self, "folder_name", "") or "")
        return place.is_dir() and any(place.iterdir())

    return type(make.__name__, (make,), {"download": refuse, "_check_exists": is_there})


def _said(error: Exception) -> str:
    """In one line."""
    return " ".join(str(error).split()) or type(error).__name__
