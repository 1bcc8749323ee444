"""MNIST as an event camera sees it that looks at each digit in three saccades, as N-MNIST was recorded.

The digit moves along a triangle. A pixel sends an ON or OFF event whenever the logarithm of its intensity has risen or
fallen by its threshold since its last event.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ep_plugin.lightning.data.images import Augmentation, Images, ImageSet, time_first
from ep_plugin.lightning.data.order import Place, mixed
from ep_plugin.lightning.data.torchvision_sets import MNISTDataModule
from ep_plugin.validation import count

SIZE = 34  # of a frame, as N-MNIST's
CORNERS = ((0.0, 0.0), (7.0, 3.5), (0.0, 7.0), (0.0, 0.0))  # rows and columns that the digit has moved by
DARK = 0.1  # beside the brightest pixel's 1: what a black one has, and so how many events an edge sends
THRESHOLD = 0.4
MISMATCH = 0.1  # standard deviation of the pixels' thresholds, beside their mean
_LEAST_STEPS = 24  # of the motion: about a pixel each
_PADDING = 8
_START = -0.5  # of the digit's first row and column in the frame: what it sweeps lies in the middle


def positions(frames: int) -> list[tuple[float, float]]:
    """Where the digit is, in rows and columns of the frame: at the start, and after every step of the motion."""
    steps = frames * -(-_LEAST_STEPS // frames)
    sides = len(CORNERS) - 1
    found = []
    for step in range(steps + 1):
        side = min(sides * step // steps, sides - 1)
        share = sides * step / steps - side
        (row, column), (end_row, end_column) = CORNERS[side : side + 2]
        found.append((_START + row + share * (end_row - row), _START + column + share * (end_column - column)))
    return found


def moved(x: Tensor, row: float, column: float) -> Tensor:
    """Images `[B, 28, 28]`, padded, in a frame `[B, SIZE, SIZE]`, by linear interpolation."""
    for axis, place in ((-2, row), (-1, column)):
        first, share = divmod(_PADDING - place, 1.0)
        part = x.narrow(axis, int(first), SIZE + 1)
        x = torch.lerp(part.narrow(axis, 0, SIZE), part.narrow(axis, 1, SIZE), share)
    return x


def saccade_events(x: Tensor, thresholds: Tensor, frames: int) -> Tensor:
    """Numbers of ON and OFF events of each pixel in each of `frames` equal times, `[frames, B, 2, SIZE, SIZE]`.

    Args:
        x: images `[B, 1, 28, 28]` in [0, 1].
        thresholds: of the pixels, `[B, SIZE, SIZE]`, in units of log intensity.
        frames: 1 or more.
    """
    x = F.pad(x.squeeze(1), [_PADDING] * 4)
    first, *places = positions(frames)
    steps = len(places) // frames
    inverse = thresholds.reciprocal()

    def level(place: tuple[float, float]) -> Tensor:
        return moved(x, *place).add_(DARK).log_().mul_(inverse)

    start, known = level(first), torch.zeros_like(thresholds)
    found = x.new_zeros(frames, len(x), 2, SIZE, SIZE)
    for step, place in enumerate(places):
        # Of whole numbers, so that a pixel that is as it was has taken all back, whatever rounding does.
        sent = level(place).sub_(start).sub_(known).trunc_()
        known += sent
        frame = found[step // steps]
        frame[:, 0] += sent.clamp(min=0)
        frame[:, 1] -= sent.clamp(max=0)
    return found


class _Saccades(ImageSet):
    """Events `[frames, 2, SIZE, SIZE]` of images, and their classes."""

    def __init__(self, images: ImageSet, frames: int, pixels: int) -> None:
        super().__init__(images.stored, images.numbers, images.augmentation, images.seed)
        self.frames, self.pixels = frames, pixels  # the seed of the pixels' thresholds

    def __getitems__(self, places: Sequence[int | Place]) -> list[tuple[Tensor, ...]]:
        x, y = (torch.stack(values) for values in zip(*super().__getitems__(places), strict=True))
        numbers = self.numbers[[place[1] if isinstance(place, tuple) else place for place in places]]
        own = torch.stack([thresholds(self.pixels, n) for n in numbers.tolist()])
        return list(zip(saccade_events(x, own, self.frames).unbind(1), y, strict=True))


def thresholds(seed: int, number: int) -> Tensor:
    """Of the pixels that see the image of this number, `[SIZE, SIZE]`."""
    drawn = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(mixed(seed, number)))
    return THRESHOLD * (1 + MISMATCH * drawn.clamp_(-3, 3))


class SaccadeMNISTDataModule(MNISTDataModule):
    """MNIST as events: each digit moves along a triangle, and pixels send an event when they become brighter or darker.

    It imitates the recording of N-MNIST, for each batch when it is asked for: three saccades, ON and OFF events where
    the logarithm of a pixel's intensity crosses thresholds, 34 x 34 pixels. The pixels have different thresholds, which
    depend only on `seed` and the image's number (for images that are not trained on, only on the number).

    Batches are numbers of events `[frames, B, 2, 34, 34]`, ON and OFF, and their classes `[B]`: for
    `convert(net, time_varying=True)`.

    Args:
        data_dir: a directory in torchvision's layout, which holds MNIST/raw.
        frames: number of equal parts into which the time of the three saccades is divided.
        batch_size: as in `DigitsDataModule`.
        train_samples: as in `DigitsDataModule`.
        seed: as in `DigitsDataModule`.
        download: let torchvision download the files into `data_dir`.
        validation: as in `DigitsDataModule`.
        augmentation: as in `DigitsDataModule`, of the image before it moves.
        num_workers: as in `DigitsDataModule`.

    Raises:
        ValueError: `data_dir` does not hold the complete files, and `download` is not set; or a number is out of its
            range.
        TypeError: a number has a wrong type.

    Example:
        >>> data = ep.SaccadeMNISTDataModule("data", frames=12, download=True)
    """

    collate = staticmethod(time_first)

    def __init__(
        self,
        data_dir: str | Path = "data",
        frames: int = 12,
        batch_size: int = 64,
        train_samples: int | None = None,
        seed: int = 0,
        download: bool = False,
        validation: float | str = 0.1,
        augmentation: Augmentation | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            data_dir,
            batch_size,
            train_samples,
            seed,
            download,
            validation,
            augmentation,
            num_workers=num_workers,
        )
        self.frames = count("frames", frames)

    def part(self, stored: Images, numbers: Tensor, training: bool) -> ImageSet:
        return _Saccades(super().part(stored, numbers, training), self.frames, self.seed if training else 0)
