"""Images in folders, a folder a class."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ep_plugin import files
from ep_plugin.lightning.data.images import Augmentation, ImageDataModule, Images
from ep_plugin.progress import track
from ep_plugin.validation import count, counts, number

_MODES = {1: "L", 3: "RGB"}
_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_WIDE = ("I", "F")  # modes of more than 8 bits a channel begin so; converting them would clip


class ImageFolderDataModule(ImageDataModule):
    """Your own images: `data_dir/train/CLASS/*.jpg` and `data_dir/test/CLASS/*.jpg`.

    The folders' names in their order are the classes 0, 1, ... Images of another size are resized, and `channels`
    decides whether they become grey or coloured. The images are read once and kept as bytes in a file. They are read
    again after a file was added, removed or changed.

    Batches are images `[B, channels, H, W]` in [0, 1] and their classes `[B]`.

    Args:
        data_dir: holds the folders train and test.
        size: of the images in pixels: one number for squares, or height and width.
        channels: 3 for colours, 1 for grey.
        batch_size: as in `DigitsDataModule`.
        train_samples: as in `DigitsDataModule`.
        seed: as in `DigitsDataModule`.
        validation: as in `DigitsDataModule`.
        augmentation: as in `DigitsDataModule`.
        rate_coded: as in `DigitsDataModule`.
        num_workers: as in `DigitsDataModule`.
        cache: a directory for the files with the bytes; None is `data_dir`.

    Attributes:
        classes: the folders' names; a class is the index of its name in this list.

    Raises:
        ValueError: a folder is missing or holds no class, or train and test have different classes; a number is out of
            its range. In reading: an image that cannot be read, or a cache that cannot be written.
        TypeError: a number has a wrong type.

    Example:
        >>> data = ep.ImageFolderDataModule("photographs", size=32)  # photographs/train/CLASS/*.jpg
    """

    def __init__(
        self,
        data_dir: str | Path,
        size: int | Sequence[int],
        channels: int = 3,
        batch_size: int = 64,
        train_samples: int | None = None,
        seed: int = 0,
        validation: float | str = 0.1,
        augmentation: Augmentation | None = None,
        rate_coded: int | None = None,
        num_workers: int = 0,
        cache: str | Path | None = None,
    ) -> None:
        super().__init__(batch_size, train_samples, seed, validation, augmentation, rate_coded, num_workers)
        self.data_dir = Path(data_dir)
        self.cache = self.data_dir if cache is None else Path(cache)
        self.size = _height_and_width(size)
        self.channels = count("channels", channels)
        if self.channels not in _MODES:
            raise ValueError(f"channels is {channels}; expected 1 (grey) or 3 (colours)")
        self.classes = _classes(self.data_dir / "train")
        if (others := _classes(self.data_dir / "test")) != self.classes:
            differing = ", ".join(sorted(set(others) ^ set(self.classes)))
            raise ValueError(
                f"train and test in {self.data_dir} have different classes: only one of them has {differing}; expected "
                "a folder of every class in both"
            )

    def prepare_data(self) -> None:
        """Reads the images in one process a machine, so that all of them find the cache."""
        self.stored()

    def stored(self) -> tuple[Images, Images]:
        return self._read("train"), self._read("test")

    def _read(self, part: str) -> Images:
        """Images `[N, C, H, W]` as bytes, and their classes."""
        files = [(file, k) for k, name in enumerate(self.classes) for file in _files(self.data_dir / part / name)]
        state = fingerprint([file for file, _ in files], self.data_dir)
        height, width = self.size
        place = self.cache / f"ep-plugin-{part}-{self.channels}x{height}x{width}.pt"
        if (kept := _kept(place, state)) is not None:
            return kept

        def images() -> Tensor:
            read = torch.empty(len(files), self.channels, height, width, dtype=torch.uint8)
            for n, (file, _) in enumerate(track(files, f"Reading the {part} images")):
                read[n] = _image(file, self.channels, self.size)
            return read

        labels = torch.tensor([k for _, k in files])
        return _write(place, lambda: {"state": state, "x": images(), "y": labels})


def _height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    size = number(size)
    if not isinstance(size, Iterable):
        side = count("size", size)
        return side, side
    sizes = counts("size", size)
    if len(sizes) != 2:
        raise ValueError(f"size is {size}; expected one number, or height and width")
    return sizes[0], sizes[1]


def _classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; expected train and test, and in each a folder a class")
    found = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not found:
        raise ValueError(f"no class in {folder}; expected a folder of images for each")
    return found


def _files(folder: Path) -> list[Path]:
    """The images of a class, in their order."""
    found = sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in _ENDINGS and not any(n.startswith(".") for n in p.relative_to(folder).parts)
    )
    if not found:
        raise ValueError(f"no image in {folder}; expected files that end in {', '.join(_ENDINGS)}")
    return found


def fingerprint(files: Sequence[Path], root: Path) -> str:
    """Changes with every file that is added, removed or changed."""
    known = hashlib.sha256()
    for file in files:
        status = file.stat()
        known.update(f"{file.relative_to(root)}\n{status.st_size} {status.st_mtime_ns}\n".encode())
    return known.hexdigest()


def _image(file: Path, channels: int, size: tuple[int, int]) -> Tensor:
    """Bytes `[C, H, W]`."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode.startswith(_WIDE):
                raise ValueError(f"its mode is {image.mode}; expected 8 bits a channel")
            values = image.convert(_MODES[channels])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the image {file}: {error}. Mend it, or take it out of its folder") from error
    height, width = size
    if values.size != (width, height):
        values = values.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(values)).view(height, width, channels).permute(2, 0, 1)


def _kept(place: Path, state: str) -> Images | None:
    """What the cache holds of these files; None if it is of others, or cannot be read."""
    try:
        kept: Any = torch.load(place, weights_only=True)
    except Exception:  # a file of another kind raises whatever its bytes lead to
        return None
    return (kept["x"], kept["y"]) if isinstance(kept, dict) and kept.get("state") == state else None


def _write(place: Path, made: Callable[[], dict[str, Any]]) -> Images:
    """Makes the cache, whole or not at all: an interruption leaves nothing that looks like one."""
    try:
        files.require_writable(place.parent)  # before the images are read
        kept = made()
        files.save(kept, place)
    except files.CannotWrite as error:
        raise ValueError(f"{error} with cache") from error
    return kept["x"], kept["y"]
