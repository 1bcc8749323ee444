"""What all data modules share: batches of images `[B, C, H, W]` in [0, 1] and their classes `[B]`.

A normalization, if any, is part of the network. The sets are small, so they are kept as tensors.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ep_plugin.lightning.data.order import EpochOrder, Place, ResumableLoader, drawn_from
from ep_plugin.validation import count, finite_number, seed_number

Images = tuple[Tensor, Tensor]
WORDS = ("split", "test")
_BRIGHT = 16  # which no normalized pixel is, and bytes as floating point numbers are
Augmentation = nn.Module | Callable[[Tensor], Tensor]


class ImageSet(Dataset[tuple[Tensor, ...]]):
    """The images of these numbers among stored ones `[N, ...]`, and their classes; in [0, 1] when bytes are read.

    With an augmentation an image is changed anew in every epoch. What it draws depends on the seed, the epoch and the
    batch; an image asked for by its number alone is changed by what the global generators draw.
    """

    def __init__(
        self, stored: Images, numbers: Tensor, augmentation: Augmentation | None = None, seed: int = 0
    ) -> None:
        self.stored, self.numbers, self.augmentation, self.seed = stored, numbers, augmentation, seed

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int | Place) -> tuple[Tensor, ...]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[int | Place]) -> list[tuple[Tensor, ...]]:
        """The samples of a batch: read at once, in a third of the time that one after the other takes."""
        numbers = self.numbers[[place[1] if isinstance(place, tuple) else place for place in places]]
        x, y = (values[numbers] for values in self.stored)
        x = in_unit_range(x)
        if self.augmentation is None:
            return list(zip(x, y, strict=True))
        first = places[0]
        with drawn_from(self.seed, *first) if isinstance(first, tuple) else nullcontext():
            return list(zip(map(self.augmentation, x), y, strict=True))


def in_unit_range(x: Tensor) -> Tensor:
    """Bytes as numbers in [0, 1]; other numbers as they are."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x if x.is_floating_point() else x.float()


def require_images(what: str, x: Any, y: Any) -> None:
    """Looks once at what a data module has stored.

    Raises:
        TypeError: these are no tensors.
        ValueError: there are none, not as many classes as images, or numbers that are no share of the brightest pixel.
    """
    for name, found in ((f"{what} images", x), (f"classes of the {what} images", y)):
        if not isinstance(found, Tensor):
            raise TypeError(f"the {name} are a {type(found).__name__}; expected a tensor: torch.as_tensor(...)")
    if len(x) != len(y):
        raise ValueError(f"there are {len(x)} {what} images and {len(y)} classes of them; expected one per image")
    if len(x) == 0:
        raise ValueError(f"there are no {what} images; expected one or more")
    wide = x.dtype in (torch.int32, torch.int64) and x.max() > 1
    if wide or (x.is_floating_point() and x.min() >= 0 and x.max() > _BRIGHT):
        raise ValueError(
            f"the {what} images are numbers from {x.min().item():g} to {x.max().item():g} ({x.dtype}); expected bytes "
            "(torch.uint8) or numbers in [0, 1], such as x / 255"
        )


def time_first(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A batch `[T, B, ...]` and its classes, of samples over time."""
    frames, classes = zip(*samples, strict=True)
    return torch.stack(frames, 1), torch.stack(classes)


def _validation(given: float | str) -> float | str:
    if isinstance(given, str) and given in WORDS:
        return given
    if isinstance(given, str) or not 0 < (found := finite_number("validation", given)) < 1:
        raise ValueError(f'validation is {given!r}; expected a share in (0, 1), "split" or "test"')
    return found


def _own() -> torch.Generator:
    """For a loader that shuffles nothing by it: each pass draws a number, and is not to take it from the training's."""
    return torch.Generator()


class ImageDataModule(L.LightningDataModule):
    """Training images (shuffled by `seed`, some of them held out for validation) and test images.

    A subclass needs one method, `stored`.

    Args:
        batch_size: as in `DigitsDataModule`.
        train_samples: as in `DigitsDataModule`.
        seed: as in `DigitsDataModule`.
        validation: as in `DigitsDataModule`.
        augmentation: as in `DigitsDataModule`.
        rate_coded: as in `DigitsDataModule`.
        num_workers: as in `DigitsDataModule`.

    Raises:
        ValueError: a number is out of its range.
        TypeError: a number has a wrong type.

    Example:
        >>> from ep_plugin.lightning.data.images import ImageDataModule
        >>> class Noise(ImageDataModule):
        ...     def stored(self):
        ...         train = torch.rand(100, 1, 8, 8), torch.randint(10, (100,))
        ...         test = torch.rand(20, 1, 8, 8), torch.randint(10, (20,))
        ...         return train, test
        >>> data = Noise(batch_size=32)
    """

    collate: Callable[[Any], Any] | None = None  # of samples to a batch, where they are not stacked one after the other

    def __init__(
        self,
        batch_size: int = 64,
        train_samples: int | None = None,
        seed: int = 0,
        validation: float | str = 0.1,
        augmentation: Augmentation | None = None,
        rate_coded: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size = count("batch_size", batch_size)
        self.train_samples = None if train_samples is None else count("train_samples", train_samples)
        self.seed = seed_number(seed)
        self.validation, self.augmentation = _validation(validation), augmentation
        self.rate_coded = None if rate_coded is None else count("rate_coded", rate_coded)
        self.num_workers = count("num_workers", num_workers, least=0)
        self._sets: dict[str, ImageSet] = {}
        self._order: EpochOrder | None = None  # of loops of one's own

    def stored(self) -> tuple[Images, Images]:
        """The images as they are kept. A subclass returns its own here.

        Returns:
            Training and test images, each a pair: images `[N, C, H, W]` (bytes, or numbers in [0, 1]) and classes
            `[N]`.
        """
        raise NotImplementedError

    def load(self) -> tuple[Images, Images]:
        """Training and test images, `[N, C, H, W]` in [0, 1], and their classes."""
        (x, y), (x_test, y_test) = self.stored()
        return (in_unit_range(x), y), (in_unit_range(x_test), y_test)

    def part(self, stored: Images, numbers: Tensor, training: bool) -> ImageSet:
        """The images of these numbers among the stored ones, as a data set: to be trained on, or looked at."""
        return ImageSet(stored, numbers, self.augmentation, self.seed) if training else ImageSet(stored, numbers)

    def setup(self, stage: str | None = None) -> None:
        if self._sets:
            return
        stored, stored_test = self.stored()
        require_images("training", *stored)
        require_images("test", *stored_test)
        number = len(stored[0])
        share = {"test": 0.0, "split": 0.1}[self.validation] if isinstance(self.validation, str) else self.validation
        seed = 0 if self.validation == "split" else self.seed
        order = torch.randperm(number, generator=torch.Generator().manual_seed(seed))
        kept = number - int(share * number)
        if share and kept == number:
            raise ValueError(
                f"validation is {self.validation!r}, which of {number} training images is none; expected a larger "
                'share, or "test"'
            )
        if kept < min(number, 2):
            raise ValueError(
                f"validation is {self.validation!r}, which leaves {kept} of {number} training images to train on; "
                "expected a smaller share"
            )
        if self.train_samples is not None and self.train_samples > kept:
            raise ValueError(
                f"train_samples is {self.train_samples}; expected {kept} or fewer: of {number} training images "
                f"{number - kept} are held out by validation={self.validation!r}"
            )
        train, held_out = order[:kept][: self.train_samples], order[kept:]
        test = self.part(stored_test, torch.arange(len(stored_test[0])), training=False)
        self._sets = {
            "train": self.part(stored, train, training=True),
            "val": test if self.validation == "test" else self.part(stored, held_out, training=False),
            "test": test,
        }

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Images become spikes. What is no pair of images and classes stays: a module's `example_input_array`."""
        if self.rate_coded is None or not isinstance(batch, (tuple, list)) or len(batch) != 2:
            return batch
        from snntorch import spikegen

        x, y = batch
        return spikegen.rate(x, num_steps=self.rate_coded), y

    def train_dataloader(self) -> DataLoader:
        processes, process = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        self.setup()
        images = self._sets["train"]
        order = EpochOrder(images, self.seed, processes, process)
        if self.trainer is None:  # which would tell the epoch: a loop of one's own may ask for a loader in every one
            order = self._order = self._order or order
        return ResumableLoader(
            images,
            batch_size=self.batch_size,
            sampler=order,
            collate_fn=self.collate,
            generator=_own(),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> DataLoader:
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader:
        return self._in_order("test")

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()

    def _in_order(self, part: str) -> DataLoader:
        self.setup()
        # Lightning makes the loader anew for predictions, from its arguments by name.
        return DataLoader(self._sets[part], batch_size=self.batch_size, collate_fn=self.collate, generator=_own())
