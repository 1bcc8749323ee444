import pytest
import torch

import ep_plugin as ep
from ep_plugin.lightning.data.images import ImageDataModule


def test_digits():
    data = ep.DigitsDataModule(batch_size=32, train_samples=100, seed=3)
    data.setup()
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == (32, 1, 8, 8)
    assert x.dtype == torch.float32
    assert x.min() >= 0
    assert x.max() <= 1
    assert y.shape == (32,)
    assert sum(len(y) for _, y in data.train_dataloader()) == 100
    assert sum(len(y) for _, y in data.test_dataloader()) == 360


def test_same_test_images_for_every_seed():
    def images(seed):
        data = ep.DigitsDataModule(seed=seed)
        data.setup()
        return torch.cat([x for x, _ in data.test_dataloader()])

    assert torch.equal(images(0), images(1))


@pytest.mark.parametrize("kind", [ep.MNISTDataModule, ep.FashionMNISTDataModule])
def test_missing_files(kind, tmp_path):
    with pytest.raises(ValueError, match=r"no (Fashion)?MNIST in .*raw.*download=True"):
        kind(tmp_path)


def test_mnist(data_dir):
    data = ep.MNISTDataModule(data_dir, train_samples=640)
    data.setup()
    x, _ = next(iter(data.train_dataloader()))
    assert x.shape == (64, 1, 28, 28)
    assert x.max() == 1
    assert sum(len(y) for _, y in data.test_dataloader()) == 10_000


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="batch_size is 0"):
        ep.DigitsDataModule(batch_size=0)
    with pytest.raises(TypeError, match="train_samples"):
        ep.DigitsDataModule(train_samples=1.5)


def test_all_images_for_training_and_the_test_images_watched():
    held_out, watched = ep.DigitsDataModule(), ep.DigitsDataModule(validation="test")
    for data in (held_out, watched):
        data.setup()
    assert [len(held_out._sets[s]) for s in ("train", "val", "test")] == [1294, 143, 360]
    assert [len(watched._sets[s]) for s in ("train", "val", "test")] == [1437, 360, 360]


@pytest.mark.parametrize("validation", [0, 1, -0.5, "train", float("nan")])
def test_validation_is_checked(validation):
    with pytest.raises(ValueError, match="validation is"):
        ep.DigitsDataModule(validation=validation)


def test_augmentation_changes_training_images_alone():
    plain = ep.DigitsDataModule(batch_size=400, seed=1)
    changed = ep.DigitsDataModule(batch_size=400, seed=1, augmentation=lambda x: x.flip(-1))
    for data in (plain, changed):
        data.setup()
    for name in ("train", "val", "test"):
        (x, y), (z, w) = (next(iter(getattr(data, f"{name}_dataloader")())) for data in (plain, changed))
        assert torch.equal(y, w)
        assert torch.equal(z, x.flip(-1) if name == "train" else x)


def test_a_split_is_the_same_for_every_seed_and_images_are_shuffled_by_it():
    def images(part, **settings):
        data = ep.DigitsDataModule(batch_size=2000, **settings)
        data.setup()
        return next(iter(getattr(data, f"{part}_dataloader")()))[0]

    first, second = ({"validation": "split", "seed": seed} for seed in (0, 1))
    assert torch.equal(images("val", **first), images("val", **second))
    assert len(images("val", **first)) == 143
    assert not torch.equal(images("train", **first), images("train", **second))
    by_share = ({"validation": 0.1, "seed": seed} for seed in (0, 1))
    assert not torch.equal(*(images("val", **settings) for settings in by_share))


def test_a_share_of_no_image_is_refused():
    data = ep.DigitsDataModule(validation=1e-4)
    with pytest.raises(ValueError, match=r"validation is 0.0001, which of 1437 training images is none.*or \"test\""):
        data.setup()
    data = ep.DigitsDataModule(validation="test")
    data.setup()


@pytest.mark.parametrize("download", [True, False])
def test_downloads_happen_where_one_process_prepares(download, tmp_path, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").touch()
    calls = []
    monkeypatch.setattr(ep.MNISTDataModule, "require_whole", lambda self, raw: None)
    monkeypatch.setattr(ep.MNISTDataModule, "load", lambda self: calls.append(1))
    ep.MNISTDataModule(tmp_path, download=download).prepare_data()
    assert len(calls) == download


def test_rate_coded_images_are_spikes_over_time():
    data = ep.DigitsDataModule(batch_size=8, rate_coded=200)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    spikes, y = data.on_after_batch_transfer(batch, 0)
    assert spikes.shape == (200, 8, 1, 8, 8)
    assert set(spikes.unique().tolist()) == {0, 1}
    assert torch.equal(y, batch[1])
    torch.testing.assert_close(spikes.mean(0), batch[0], atol=0.2, rtol=0)
    with pytest.raises(ValueError, match="rate_coded is 0"):
        ep.DigitsDataModule(rate_coded=0)


def test_worker_processes_read_the_same_images():
    def read(**options):
        data = ep.DigitsDataModule(batch_size=32, seed=3, **options)
        data.setup()
        return list(data.train_dataloader())

    for (x, y), (x_workers, y_workers) in zip(read(), read(num_workers=2), strict=True):
        assert torch.equal(x, x_workers)
        assert torch.equal(y, y_workers)


def test_worker_processes_do_not_repeat_each_others_augmentation():
    data = ep.DigitsDataModule(batch_size=8, augmentation=torch.rand_like, num_workers=2)
    data.setup()
    images = torch.cat([x for x, _ in data.train_dataloader()])
    assert len(images.flatten(1).unique(dim=0)) == len(images)


@pytest.mark.parametrize(("given", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_number_of_workers_is_checked(given, error):
    with pytest.raises(error, match=r"num_workers is .*; expected a whole number, 0 or more"):
        ep.DigitsDataModule(num_workers=given)


class Own(ImageDataModule):
    def __init__(self, x, y, x_test=None, y_test=None):
        super().__init__(batch_size=4)
        rest = (torch.rand(4, 1, 2, 2), torch.arange(4)) if x_test is None else (x_test, y_test)
        self.parts = (x, y), rest

    def stored(self):
        return self.parts


BYTES = torch.randint(256, (20, 1, 2, 2))
STORED = {
    "fewer classes": ((torch.rand(20, 1, 2, 2), torch.arange(15)), ValueError, "20 training images and 15 classes"),
    "NumPy": ((torch.rand(20, 1, 2, 2).numpy(), torch.arange(20)), TypeError, r"are a ndarray; .* torch\.as_tensor"),
    "no test images": (
        (torch.rand(20, 1, 2, 2), torch.arange(20), torch.rand(0, 1, 2, 2), torch.arange(0)),
        ValueError,
        "there are no test images",
    ),
    "wide bytes": ((BYTES, torch.arange(20)), ValueError, r"numbers from .* to .* \(torch\.int64\).*torch\.uint8"),
    "bytes as floats": ((BYTES.float(), torch.arange(20)), ValueError, r"expected bytes .* such as x / 255"),
}


@pytest.mark.parametrize(("parts", "error", "message"), STORED.values(), ids=STORED)
def test_what_a_data_module_of_ones_own_has_stored_is_looked_at(parts, error, message):
    with pytest.raises(error, match=message):
        Own(*parts).setup()


KINDS = {"bytes": BYTES.byte(), "shares": torch.rand(20, 1, 2, 2), "normalized": torch.randn(20, 1, 2, 2)}


@pytest.mark.parametrize("x", KINDS.values(), ids=KINDS)
def test_bytes_shares_and_normalized_images_are_stored(x):
    first, _ = next(iter(Own(x, torch.arange(20)).train_dataloader()))  # which sets it up
    assert first.shape == (4, 1, 2, 2)


def test_a_loop_of_ones_own_sees_another_order_in_every_epoch():
    """Whether it asks for the loader once or in every epoch; and the same as under a trainer."""
    data, other = (ep.DigitsDataModule(50, augmentation=lambda x: x + torch.rand_like(x)) for _ in range(2))
    data.setup()
    other.setup()
    asked = [torch.cat([x for x, _ in data.train_dataloader()]) for _ in range(3)]
    loader = other.train_dataloader()
    kept = [torch.cat([x for x, _ in loader]) for _ in range(3)]
    assert not torch.equal(asked[0], asked[1])
    assert not torch.equal(asked[0].sum(), asked[1].sum())  # the augmentation too
    assert all(torch.equal(a, b) for a, b in zip(asked, kept, strict=True))
