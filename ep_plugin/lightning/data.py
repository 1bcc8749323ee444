"""Data modules: images `[B, 1, H, W]` in [0, 1] and their classes `[B]`.

A normalization, if any, is part of the network. The sets are small, so they are kept as tensors.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ep_plugin.validation import count, finite_number

Images = tuple[Tensor, Tensor]
Augmentation = nn.Module | Callable[[Tensor], Tensor]


class _Augmented(TensorDataset):
    """Images `[N, 1, H, W]` that are changed anew each time they are read, and their classes."""

    def __init__(self, augmentation: Augmentation, x: Tensor, y: Tensor) -> None:
        super().__init__(x, y)
        self.augmentation = augmentation

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        x, y = super().__getitem__(index)
        return self.augmentation(x), y


class _ImageDataModule(L.LightningDataModule):
    """Training images (shuffled by `seed`, the last tenth of them held out for validation) and test images.

    `DigitsDataModule` describes the arguments.
    """

    def __init__(
        self,
        batch_size: int = 64,
        train_samples: int | None = None,
        seed: int = 0,
        validation: float | str = 0.1,
        augmentation: Augmentation | None = None,
        rate_coded: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = count("batch_size", batch_size)
        self.train_samples = None if train_samples is None else count("train_samples", train_samples)
        self.seed = seed
        if validation != "test" and (
            isinstance(validation, str) or not 0 < finite_number("validation", validation) < 1
        ):
            raise ValueError(f'validation is {validation!r}; expected a share in (0, 1), or "test"')
        self.validation, self.augmentation = validation, augmentation
        self.rate_coded = None if rate_coded is None else count("rate_coded", rate_coded)
        self._sets: dict[str, TensorDataset] = {}

    def load(self) -> tuple[Images, Images]:
        """Training and test images, `[N, 1, H, W]` in [0, 1], and their classes."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        if self._sets:
            return
        (x, y), test = self.load()
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed))
        kept = len(x) if isinstance(self.validation, str) else len(x) - int(self.validation * len(x))
        train, held_out = order[:kept][: self.train_samples], order[kept:]
        watched = test if isinstance(self.validation, str) else (x[held_out], y[held_out])
        images = TensorDataset if self.augmentation is None else partial(_Augmented, self.augmentation)
        self._sets = {
            "train": images(x[train], y[train]),
            "val": TensorDataset(*watched),
            "test": TensorDataset(*test),
        }

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Images become spikes. What is no pair of images and classes stays: a module's `example_input_array`."""
        if self.rate_coded is None or not isinstance(batch, (tuple, list)) or len(batch) != 2:
            return batch
        from snntorch import spikegen

        x, y = batch
        return spikegen.rate(x, num_steps=self.rate_coded), y

    def train_dataloader(self) -> DataLoader:
        shuffle = torch.Generator().manual_seed(self.seed)
        return DataLoader(self._sets["train"], self.batch_size, shuffle=True, generator=shuffle)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self._sets["val"], batch_size=self.batch_size)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self._sets["test"], batch_size=self.batch_size)

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()


class DigitsDataModule(_ImageDataModule):
    """scikit-learn's 1,797 digits of 8 x 8 pixels, which come with it; a fifth of them for the test.

    Batches are images `[B, 1, 8, 8]` in [0, 1] and their classes `[B]`.

    Args:
        batch_size: images per batch, 1 or more.
        train_samples: use only the first `train_samples` of the shuffled training images.
        seed: of the shuffles.
        validation: share of the training images that is held out, in (0, 1); or "test": train on all
            of them and measure the error of the test images after every epoch. No choice may then be made
            by it.
        augmentation: from one training image `[1, H, W]` to another, such as a transform of
            torchvision; it draws from PyTorch's global generator.
        rate_coded: number of steps of spike trains `[T, B, 1, H, W]` that the images become, each
            pixel firing with its brightness as probability (`snntorch.spikegen.rate`), drawn anew
            for every batch; None leaves them as they are.

    Raises:
        ValueError: a number is out of its range.
        TypeError: a number is of a wrong type.

    Example:
        >>> data = DigitsDataModule(batch_size=32)
    """

    def load(self) -> tuple[Images, Images]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        y = torch.tensor(digits.target)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))  # the same split for every seed
        test, train = order[:360], order[360:]
        return (x[train], y[train]), (x[test], y[test])


class _TorchvisionDataModule(_ImageDataModule):
    name: str

    def __init__(
        self,
        data_dir: str | Path = "data",
        batch_size: int = 64,
        train_samples: int | None = None,
        seed: int = 0,
        download: bool = False,
        validation: float | str = 0.1,
        augmentation: Augmentation | None = None,
        rate_coded: int | None = None,
    ) -> None:
        super().__init__(batch_size, train_samples, seed, validation, augmentation, rate_coded)
        self.data_dir, self.download = Path(data_dir), download
        raw = self.data_dir / self.name / "raw"
        if not download and not (raw.is_dir() and any(raw.iterdir())):
            raise ValueError(
                f"no {self.name} in {raw}; expected the four files that torchvision calls train-images-idx3-ubyte and "
                "so on. Let torchvision fetch them with download=True, copy them there (Debian has "
                "dataset-fashion-mnist), or name another directory with data_dir"
            )

    def prepare_data(self) -> None:
        """Downloads in one process a machine, before all of them read."""
        if self.download:
            self.load()

    def load(self) -> tuple[Images, Images]:
        import torchvision

        dataset = getattr(torchvision.datasets, self.name)
        sets = [dataset(self.data_dir, train=t, download=self.download) for t in (True, False)]
        train, test = ((s.data.float().div_(255).unsqueeze(1), s.targets) for s in sets)
        return train, test


class MNISTDataModule(_TorchvisionDataModule):
    """MNIST: 60,000 and 10,000 digits of 28 x 28 pixels.

    Batches are images `[B, 1, 28, 28]` in [0, 1] and their classes `[B]`.

    Args:
        data_dir: a directory in torchvision's layout, which holds MNIST/raw.
        batch_size: as in `DigitsDataModule`.
        train_samples: as in `DigitsDataModule`.
        seed: as in `DigitsDataModule`.
        download: let torchvision fetch the files into `data_dir`.
        validation: as in `DigitsDataModule`.
        augmentation: as in `DigitsDataModule`.
        rate_coded: as in `DigitsDataModule`.

    Raises:
        ValueError: `data_dir` does not hold the files and `download` is not set, or a number is out of its
            range.
        TypeError: a number is of a wrong type.

    Example:
        >>> data = MNISTDataModule("data", batch_size=64)
    """

    name = "MNIST"


class FashionMNISTDataModule(_TorchvisionDataModule):
    """FashionMNIST: 60,000 and 10,000 pieces of clothing of 28 x 28 pixels.

    Batches are images `[B, 1, 28, 28]` in [0, 1] and their classes `[B]`.

    Args:
        data_dir: a directory in torchvision's layout, which holds FashionMNIST/raw.
        batch_size: as in `DigitsDataModule`.
        train_samples: as in `DigitsDataModule`.
        seed: as in `DigitsDataModule`.
        download: let torchvision fetch the files into `data_dir`.
        validation: as in `DigitsDataModule`.
        augmentation: as in `DigitsDataModule`.
        rate_coded: as in `DigitsDataModule`.

    Raises:
        ValueError: `data_dir` does not hold the files and `download` is not set, or a number is out of its
            range.
        TypeError: a number is of a wrong type.

    Example:
        >>> data = FashionMNISTDataModule("data", batch_size=64)
    """

    name = "FashionMNIST"
