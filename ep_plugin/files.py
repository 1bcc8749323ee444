"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkstemp


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` when the block ends; nothing of it remains if the block does not.

    The file is in the same directory, has the same ending, and is on the disk before it takes the name.

    Raises:
        ValueError: the file cannot be written: no room, no permission.
    """
    try:
        handle, name = mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
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


def cannot_write(path: Path, error: OSError) -> ValueError:
    """What to say of a file or directory that cannot be written."""
    return ValueError(f"cannot write {path}: {error.strerror or error}; make room there, or name another directory")


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
