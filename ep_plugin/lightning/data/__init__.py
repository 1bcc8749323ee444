"""Data modules: images `[B, C, H, W]` in [0, 1] or events `[T, B, C, H, W]`, and their classes `[B]`."""

from ep_plugin.lightning.data.embedded import DigitsDataModule
from ep_plugin.lightning.data.events import EventDataModule
from ep_plugin.lightning.data.folders import ImageFolderDataModule
from ep_plugin.lightning.data.saccades import SaccadeMNISTDataModule
from ep_plugin.lightning.data.torchvision_sets import CIFAR10DataModule, FashionMNISTDataModule, MNISTDataModule

__all__ = [
    "CIFAR10DataModule",
    "DigitsDataModule",
    "EventDataModule",
    "FashionMNISTDataModule",
    "ImageFolderDataModule",
    "MNISTDataModule",
    "SaccadeMNISTDataModule",
]
