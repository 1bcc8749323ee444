"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile, mkstemp
from typing import Any


@contextmanager
def whole(path: Path, ending: str | None = None) -> Iterator[Path]:
    """Where to write what becomes `path` when the block ends; nothing of it remains if the block does not.

    The file is in the same directory, has the same ending unless another is given, and is on the disk before it takes
    the name.

    Raises:
        ValueError: the file cannot be written: no room, no permission.
    """
    try:
        handle, name = mkstemp(
            prefix=f".{path.stem}-", suffix=path.suffix if ending is None else ending, dir=path.parent
        )
        os.close(handle)
    except OSError as error:
        raise cannot_write(path, error) from error
    part = Path(name)
    try:
        try:
            yield part
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.chmod(0o666 & ~_umask())  # as if it had been opened; a temporary file is its owner's alone
            part.replace(path)
        except OSError as error:
            raise cannot_write(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def save(what: object, path: Path, ending: str | None = None) -> None:
    """`torch.save`, whole or not at all.

    Raises:
        ValueError: the file cannot be written: no room, no permission.
    """
    import torch

    with whole(path, ending) as part, part.open("wb") as file:
        try:
            torch.save(what, file)
        except RuntimeError as error:  # what PyTorch says when it closes a file that could not be written
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def append(path: Path, text: str) -> None:
    """Adds lines to a file, on the disk, whole or not at all; what was there before is not written again.

    Half of a line that a killed process has left stays a line of its own.

    Raises:
        ValueError: the file cannot be written: no room, no permission.
    """
    try:
        with path.open("ab+", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            if before:
                file.seek(before - 1)
                text = text if file.read(1) == b"\n" else f"\n{text}"
            data = text.encode()
            try:
                while data:
                    data = data[file.write(data) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(before)
                raise
    except OSError as error:
        raise cannot_write(path, error) from error


def require_writable(directory: Path) -> None:
    """Makes a directory, and stops where nothing can be written into it.

    Raises:
        ValueError: it cannot be made, or files cannot be made in it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=directory).close()
    except OSError as error:
        raise cannot_write(directory, error) from error


def origin() -> dict[str, Any]:
    """What wrote a table, and when: versions, and the time in UTC."""
    return {
        **{name: version(name) for name in ("ep-plugin", "torch", "snntorch")},
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


class CannotWrite(ValueError):
    """Says which file or directory cannot be written, and what to do."""


def cannot_write(path: Path, error: OSError) -> CannotWrite:
    """What to say of a file or directory that cannot be written."""
    return CannotWrite(f"cannot write {path}: {error.strerror or error}; make room there, or name another directory")


def numbered(parent: Path, name: str = "run") -> Path:
    """Makes the directory `parent/name-N` of the first N from 1 that no other run has.

    Raises:
        ValueError: it cannot be made.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        n = 1
        while True:
            try:
                (parent / f"{name}-{n}").mkdir()
                return parent / f"{name}-{n}"
            except FileExistsError:
                n += 1
    except OSError as error:
        raise cannot_write(parent, error) from error


def _umask() -> int:
    mask = os.umask(0)  # there is no other way to read it
    os.umask(mask)
    return mask
