"""Data modules: images `[B, C, H, W]` in [0, 1] and their classes `[B]`."""

from ep_plugin.lightning.data.embedded import DigitsDataModule
from ep_plugin.lightning.data.folders import ImageFolderDataModule
from ep_plugin.lightning.data.torchvision_sets import CIFAR10DataModule, FashionMNISTDataModule, MNISTDataModule

__all__ = [
    "CIFAR10DataModule",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "ImageFolderDataModule",
    "MNISTDataModule",
]
