"""CIFAR-10 as torchvision keeps it; the files are written here."""

import pickle

import numpy as np
import pytest
import torch
from torchvision.datasets import cifar

import ep_plugin as ep


@pytest.fixture
def pixels(tmp_path, monkeypatch):
    """Five batches of two training images and one of three test images; what they hold, `[N, 3, 32, 32]`."""
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)  # these are not the files of the checksums
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    made = np.random.default_rng(0).integers(0, 256, (13, 3072), dtype=np.uint8)
    parts = {f"data_batch_{n + 1}": slice(2 * n, 2 * n + 2) for n in range(5)} | {"test_batch": slice(10, 13)}
    for name, part in parts.items():
        content = {"data": made[part], "labels": list(range(13))[part]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(n) for n in range(13)]}))
    return torch.tensor(made).view(13, 3, 32, 32)


def test_images_and_classes(pixels, tmp_path):
    data = ep.CIFAR10DataModule(tmp_path, batch_size=20, validation="test")
    data.setup()
    for part, wanted in (("train", range(10)), ("test", range(10, 13)), ("val", range(10, 13))):
        x, y = next(iter(getattr(data, f"{part}_dataloader")()))
        assert sorted(y.tolist()) == list(wanted)
        assert torch.equal(x, pixels[y].float() / 255)
    (x, y), _ = data.load()
    assert torch.equal(x, pixels[y].float() / 255)


@pytest.mark.usefixtures("pixels")
def test_an_augmentation_sees_numbers_in_the_unit_range(tmp_path):
    seen = []
    data = ep.CIFAR10DataModule(tmp_path, augmentation=lambda x: seen.append(x) or x.flip(-1))
    data.setup()
    list(data.train_dataloader())
    assert len(seen) == 9
    assert all(x.dtype == torch.float32 and x.min() >= 0 and 0.9 < x.max() <= 1 for x in seen)


def test_missing_files(tmp_path):
    with pytest.raises(
        ValueError, match=r"no CIFAR10 in .*cifar-10-batches-py; .*download=True.*ImageFolderDataModule"
    ):
        ep.CIFAR10DataModule(tmp_path)
