"""Images that torchvision reads, and fetches."""

from pathlib import Path
from typing import Any

import torch

from ep_plugin.lightning.data import idx_files
from ep_plugin.lightning.data.images import Augmentation, ImageDataModule, Images


class _TorchvisionDataModule(ImageDataModule):
    name: str
    folder: str  # in `data_dir`, where torchvision puts the files
    files: str  # what they are, and who else has them

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
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, train_samples, seed, validation, augmentation, rate_coded, num_workers)
        self.data_dir, self.download = Path(data_dir), download
        raw = self.data_dir / self.folder
        if download:
            return
        if not (raw.is_dir() and any(raw.iterdir())):
            raise ValueError(f"no {self.name} in {raw}; expected {self.files}, or name another directory with data_dir")
        self.require_whole(raw)

    def require_whole(self, raw: Path) -> None:
        """Stops where a file cannot be what it should be."""

    def prepare_data(self) -> None:
        """Downloads in one process a machine, before all of them read."""
        if self.download:
            self.load()

    def stored(self) -> tuple[Images, Images]:
        import torchvision

        kind = getattr(torchvision.datasets, self.name)
        try:
            sets = [kind(self.data_dir, train=train, download=self.download) for train in (True, False)]
        except RuntimeError as error:  # its checksums, or a download that failed
            raise ValueError(f"cannot read {self.name} in {self.data_dir / self.folder}: {error}") from error
        train, test = (self._tensors(dataset) for dataset in sets)
        return train, test

    def _tensors(self, dataset: Any) -> Images:
        """All images of one of torchvision's data sets, as bytes."""
        return dataset.data.unsqueeze(1), dataset.targets


class _IdxDataModule(_TorchvisionDataModule):
    def require_whole(self, raw: Path) -> None:
        idx_files.require_whole(raw)

    def _tensors(self, dataset: Any) -> Images:
        images, labels = super()._tensors(dataset)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < 10:
            raise ValueError(
                f"the labels of {self.name} in {self.data_dir / self.folder} go from {int(labels.min())} to "
                f"{int(labels.max())}; expected 0 to 9: copy its files anew"
            )
        return images, labels


_IDX_FILES = (
    "the four files that torchvision calls train-images-idx3-ubyte and so on. Let torchvision fetch them with "
    "download=True, copy them there{}"
)


class MNISTDataModule(_IdxDataModule):
    """MNIST: 60,000 training and 10,000 test images of digits, 28 x 28 pixels.

    Batches are images `[B, 1, 28, 28]` in [0, 1] and their classes `[B]`.

    Args:
        data_dir: a directory in torchvision's layout, which holds MNIST/raw.
        batch_size: as in `DigitsDataModule`.
        train_samples: as in `DigitsDataModule`.
        seed: as in `DigitsDataModule`.
        download: let torchvision download the files into `data_dir`.
        validation: as in `DigitsDataModule`.
        augmentation: as in `DigitsDataModule`.
        rate_coded: as in `DigitsDataModule`.
        num_workers: as in `DigitsDataModule`.

    Raises:
        ValueError: `data_dir` does not hold the complete files, and `download` is not set; or a number is out of its
            range.
        TypeError: a number has a wrong type.

    Example:
        >>> data = ep.MNISTDataModule("data", batch_size=64, download=True)
    """

    name = "MNIST"
    folder = "MNIST/raw"
    files = _IDX_FILES.format("")


class FashionMNISTDataModule(_IdxDataModule):
    """FashionMNIST: 60,000 training and 10,000 test images of clothing, 28 x 28 pixels.

    Batches are images `[B, 1, 28, 28]` in [0, 1] and their classes `[B]`.

    Args:
        data_dir: a directory in torchvision's layout, which holds FashionMNIST/raw.
        batch_size: as in `DigitsDataModule`.
        train_samples: as in `DigitsDataModule`.
        seed: as in `DigitsDataModule`.
        download: let torchvision download the files into `data_dir`.
        validation: as in `DigitsDataModule`.
        augmentation: as in `DigitsDataModule`.
        rate_coded: as in `DigitsDataModule`.
        num_workers: as in `DigitsDataModule`.

    Raises:
        ValueError: `data_dir` does not hold the complete files, and `download` is not set; or a number is out of its
            range.
        TypeError: a number has a wrong type.

    Example:
        >>> data = ep.FashionMNISTDataModule("data", batch_size=64, download=True)
    """

    name = "FashionMNIST"
    folder = "FashionMNIST/raw"
    files = _IDX_FILES.format(" (Debian has dataset-fashion-mnist)")


class CIFAR10DataModule(_TorchvisionDataModule):
    """CIFAR-10: 50,000 training and 10,000 test photographs in colour, 32 x 32 pixels.

    Batches are images `[B, 3, 32, 32]` in [0, 1] and their classes `[B]`.

    Args:
        data_dir: a directory in torchvision's layout, which holds cifar-10-batches-py.
        batch_size: as in `DigitsDataModule`.
        train_samples: as in `DigitsDataModule`.
        seed: as in `DigitsDataModule`.
        download: let torchvision download the files into `data_dir`.
        validation: as in `DigitsDataModule`.
        augmentation: as in `DigitsDataModule`.
        rate_coded: as in `DigitsDataModule`.
        num_workers: as in `DigitsDataModule`.

    Raises:
        ValueError: `data_dir` does not hold the complete files, and `download` is not set; or a number is out of its
            range.
        TypeError: a number has a wrong type.

    Example:
        >>> data = ep.CIFAR10DataModule("data", batch_size=64, download=True)
    """

    name = "CIFAR10"
    folder = "cifar-10-batches-py"
    files = (
        "the files that torchvision calls data_batch_1 and so on. Let torchvision fetch them with download=True, copy "
        "them there, read folders of images with ImageFolderDataModule"
    )

    def _tensors(self, dataset: Any) -> Images:
        return torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(dataset.targets)
