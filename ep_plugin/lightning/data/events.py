"""Recordings of event cameras and silicon cochleas, which tonic reads, as frames."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ep_plugin.files import cannot_write, whole
from ep_plugin.lightning.data import event_sets
from ep_plugin.lightning.data.event_sets import MakeSet
from ep_plugin.lightning.data.folders import fingerprint
from ep_plugin.lightning.data.images import Augmentation, ImageDataModule, Images, time_first
from ep_plugin.progress import counting
from ep_plugin.validation import count, positive


class EventDataModule(ImageDataModule):
    """Event recordings as frames: N-MNIST, DVS Gesture, the spiking Heidelberg digits, or any other data set of tonic.

    A frame holds the number of events of each pixel in its part of the recording. tonic (`pip install tonic`) makes the
    frames, and they are kept in files, so that each recording is read once. They are made again after a recording was
    added, removed or changed.

    Batches are numbers of events `[frames, B, polarities, height, width]` (`[frames, B, 1, channels]` for cochleas) and
    classes `[B]`: for `convert(net, time_varying=True)`.

    Args:
        events: "nmnist", "dvsgesture", "shd" or the name of another class of `tonic.datasets`; such a class; or your
            own function, called as `events(data_dir, train=True)`, that returns a data set of tonic.
        data_dir: as tonic's `save_to`, it holds NMNIST, DVSGesture or SHD.
        frames: number of frames per recording.
        time_window: of a frame, in microseconds from the recording's first event on. What comes after the last frame is
            left out; frames after the recording's end are empty. None divides each recording into equal parts.
        pool: number of pixels in each direction that are added up to one: 4 makes 32 x 32 of DVS Gesture's 128 x 128.
        batch_size: as in `DigitsDataModule`.
        train_samples: as in `DigitsDataModule`.
        seed: as in `DigitsDataModule`.
        download: let tonic download the files into `data_dir`.
        validation: as in `DigitsDataModule`.
        augmentation: as in `DigitsDataModule`, but it takes all frames of a recording at once,
            `[frames, polarities, height, width]`.
        num_workers: as in `DigitsDataModule`.
        cache: a directory for the files of frames; None is `data_dir`. If `events` is your own function, its frames are
            kept in memory only.

    Raises:
        ValueError: tonic is not installed or has no such data set, recordings are missing and `download` is not set, or
            a number is out of its range. In reading: a recording that is not complete, or files that cannot be written.
        TypeError: a number has a wrong type.

    Example:
        >>> data = ep.EventDataModule("nmnist", "data", frames=12, download=True)
    """

    collate = staticmethod(time_first)

    def __init__(
        self,
        events: str | MakeSet,
        data_dir: str | Path = "data",
        frames: int = 12,
        time_window: float | None = None,
        pool: int = 1,
        batch_size: int = 64,
        train_samples: int | None = None,
        seed: int = 0,
        download: bool = False,
        validation: float | str = 0.1,
        augmentation: Augmentation | None = None,
        num_workers: int = 0,
        cache: str | Path | None = None,
    ) -> None:
        super().__init__(batch_size, train_samples, seed, validation, augmentation, num_workers=num_workers)
        self.data_dir, self.download = Path(data_dir), download
        self.cache = self.data_dir if cache is None else Path(cache)
        self.frames, self.pool = count("frames", frames), count("pool", pool)
        self.time_window = None if time_window is None else positive("time_window", time_window)
        self.make = event_sets.found(events)
        if isinstance(self.make, type) and not download and not (self.data_dir / self.make.__name__).is_dir():
            raise event_sets.missing(self.make, self.data_dir)
        self._stored: tuple[Images, Images] | None = None

    def prepare_data(self) -> None:
        """Makes the frames in one process a machine, so that all of them find the files."""
        self.stored()

    def stored(self) -> tuple[Images, Images]:
        if self._stored is None:
            train, test = self._part(True), self._part(False)
            if unknown := sorted(set(test[1].tolist()) - set(train[1].tolist())):
                raise ValueError(
                    f"no training recording of {event_sets.name_of(self.make)} is of class {unknown[0]}, of which "
                    f"{self.data_dir} has test recordings; expected some of every class: copy the set anew"
                )
            self._stored = train, test
        return self._stored

    def _part(self, train: bool) -> Images:
        """Frames `[N, frames, ...]` as whole numbers, and their classes."""
        made = event_sets.opened(self.make, self.data_dir, train, self.download)
        width, height, _ = made.sensor_size
        if width % self.pool or (height > 1 and height % self.pool):
            raise ValueError(
                f"pool is {self.pool}, and the sensor has {width} x {height} pixels; expected a number that divides "
                "them"
            )
        if not isinstance(self.make, type):
            frames = np.empty((len(made), *self._shape(made)), np.int16)
            return torch.from_numpy(frames), self._read(made, frames, train)
        return self._kept(made, train)

    def _kept(self, made: Any, train: bool) -> Images:
        """From the files, which are written first if there are none of these recordings."""
        name = event_sets.name_of(self.make)
        how = repr((name, self.frames, self.time_window, self.pool))
        state = how + fingerprint(event_sets.all_files(made), self.data_dir)
        short = hashlib.sha256(how.encode()).hexdigest()[:8]
        place = self.cache / f"ep-plugin-{name}-{'train' if train else 'test'}-{self.frames}-{short}.npy"
        labels = place.with_suffix(".pt")
        try:
            kept = torch.load(labels, weights_only=True)
            if kept["state"] == state:
                return torch.from_numpy(np.load(place, mmap_mode="c")), kept["y"]
        except Exception:  # no file, or one of another kind, which raises whatever its bytes lead to
            pass
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            labels.unlink(missing_ok=True)  # so that it never stands beside other frames than its own
        except OSError as error:
            raise cannot_write(self.cache, error) from error
        with whole(place) as part:
            frames = np.lib.format.open_memmap(part, "w+", np.int16, (len(made), *self._shape(made)))
            if hasattr(os, "posix_fallocate"):  # a disk that is full tells it here, and not by killing the process
                with part.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
            y = self._read(made, frames, train)
            frames.flush()
        with whole(labels) as part:
            torch.save({"state": state, "y": y}, part)
        return torch.from_numpy(np.load(place, mmap_mode="c")), y

    def _shape(self, made: Any) -> tuple[int, ...]:
        width, height, polarities = made.sensor_size
        pixels = (height // self.pool,) if height > 1 else ()
        return (self.frames, polarities, *pixels, width // self.pool)

    def _read(self, made: Any, frames: np.ndarray, train: bool) -> Tensor:
        """Writes all frames, and gives the classes."""
        labels = []
        with counting(f"Making frames of the {'training' if train else 'test'} recordings", len(made)) as done:
            for place, number in enumerate(event_sets.in_order(made)):
                labels.append(self._one(made, number, frames, place))
                done()
        return torch.tensor(labels)

    def _one(self, made: Any, number: int, frames: np.ndarray, place: int) -> int:
        from tonic.transforms import ToFrame

        cut: dict[str, Any] = {"n_time_bins": self.frames}
        if self.time_window is not None:
            cut = {"time_window": self.time_window, "include_incomplete": True}
        to_frame = ToFrame(sensor_size=tuple(made.sensor_size), **cut)
        most = 0

        def framed(events: Any) -> Any:
            nonlocal most
            most = _most(events, made.sensor_size)
            return to_frame(events)

        found, label = event_sets.recording(made, number, framed)
        found = found[: self.frames]
        height, width = (found.shape[-2] if found.ndim == 4 else 1), found.shape[-1]
        rows = self.pool if found.ndim == 4 else 1
        pooled = found.reshape(*found.shape[:2], height // rows, rows, width // self.pool, self.pool).sum((3, 5))
        largest = np.iinfo(frames.dtype).max
        # Tonic's own numbers have 16 bits too, so that larger ones turn negative, and still larger ones positive again.
        if most > 2 * largest or found.min(initial=0) < 0 or pooled.max(initial=0) > largest:
            raise ValueError(
                f"a pixel of recording {number} of {event_sets.name_of(self.make)} has more than {largest:,} events in "
                "a frame, which a frame cannot hold; expected more frames, or a smaller pool"
            )
        frames[place] = 0
        frames[place, : len(found)] = pooled.reshape(len(found), *frames.shape[2:])
        return label


def _most(events: Any, sensor_size: Any) -> int:
    """The largest number of events of a pixel and polarity in a whole recording."""
    width, height, polarities = sensor_size
    rows = events["y"].astype(np.int64) if "y" in events.dtype.names else 0
    sign = events["p"].astype(np.int64) if polarities > 1 else 0
    return int(np.bincount((sign * height + rows) * width + events["x"].astype(np.int64)).max())
