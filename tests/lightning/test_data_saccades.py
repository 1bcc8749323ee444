"""MNIST as events, made whenever a batch is asked for."""

import math
import struct
import time

import numpy as np
import pytest
import torch

import ep_plugin as ep
from ep_plugin.lightning.data.saccades import CORNERS, DARK, SIZE, THRESHOLD, positions, saccade_events, thresholds

IMAGES = 40


def digit(seed):
    """Strokes of random brightness, `[1, 28, 28]` in [0, 1]."""
    random = np.random.default_rng(seed)
    x = np.zeros((1, 28, 28), dtype=np.float64)
    for _ in range(4):
        row, column = random.integers(4, 16, 2)
        x[0, row : row + 8, column : column + 3] = random.integers(1, 256) / 255
    return torch.tensor(x)


def brightness(image, row, column):
    """Between four pixels; black outside of the image."""

    def at(r, c):
        return float(image[r, c]) if 0 <= r < 28 and 0 <= c < 28 else 0.0

    r, c = math.floor(row), math.floor(column)
    upper = between(at(r, c), at(r, c + 1), column - c)
    return between(upper, between(at(r + 1, c), at(r + 1, c + 1), column - c), row - r)


def between(a, b, share):
    return a + share * (b - a)


def slowly(image, threshold, frames):
    """A pixel after the other, a step after the other, an event after the other."""
    places = positions(frames)
    steps = (len(places) - 1) // frames
    found = torch.zeros(frames, 2, SIZE, SIZE)
    for i in range(SIZE):
        for j in range(SIZE):
            levels = [math.log(DARK + brightness(image, i - row, j - column)) for row, column in places]
            sent = 0
            for step, level in enumerate(levels[1:]):
                rise = (level - levels[0]) / float(threshold[i, j])
                while rise - sent >= 1:
                    sent += 1
                    found[step // steps, 0, i, j] += 1
                while sent - rise >= 1:
                    sent -= 1
                    found[step // steps, 1, i, j] += 1
            assert sent == 0  # the digit is where it was, and all has been taken back
    return found


@pytest.mark.parametrize("frames", [1, 5, 12])
def test_events_are_those_of_a_loop_over_pixels_and_steps(frames, float64):
    images = torch.stack([digit(k) for k in range(2)])
    own = torch.stack([thresholds(3, k).double() for k in range(2)])
    found = saccade_events(images, own, frames)
    assert found.shape == (frames, 2, 2, SIZE, SIZE)
    for k in range(2):
        wanted = slowly(images[k, 0], own[k], frames).to(found.dtype)
        assert wanted.sum() > 100
        assert torch.equal(found[:, k], wanted)


def test_three_saccades_come_back_to_where_they_began():
    """Of N-MNIST's length and directions: to the right and down, to the right and up, to the left."""
    places = torch.tensor(positions(12))
    steps = places.diff(dim=0).view(3, -1, 2)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps))
    totals = steps.sum(1)
    torch.testing.assert_close(totals, torch.tensor(CORNERS).diff(dim=0))
    assert totals.sign().tolist() == [[1, 1], [-1, 1], [0, -1]]
    assert totals.norm(dim=1).tolist() == pytest.approx([7.826, 7.826, 7.0], abs=1e-3)
    torch.testing.assert_close(places[0], places[-1])


def test_both_polarities_tell_each_of_the_three_directions():
    """ON events lie ahead of OFF events in the direction in which the digit moves."""
    images = torch.stack([digit(k).float() for k in range(4)])
    found = saccade_events(images, torch.full((4, SIZE, SIZE), THRESHOLD), 3)
    row, column = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    assert (found.sum((-1, -2)) > 50).all()
    for frame, (down, right) in zip(found, torch.tensor(CORNERS).diff(dim=0), strict=True):
        ahead = (down * row + right * column) / torch.hypot(down, right)
        on, off = ((frame[:, p] * ahead).sum((-1, -2)) / frame[:, p].sum((-1, -2)) for p in (0, 1))
        assert (on > off + 1).all()


def test_no_more_of_dark_images_than_of_bright_ones():
    image = digit(0).float()[None]
    limit = torch.full((1, SIZE, SIZE), THRESHOLD)
    numbers = [saccade_events(image * share, limit, 4).sum().item() for share in (0, 0.2, 1)]
    assert numbers[0] == 0
    assert numbers[0] < numbers[1] < numbers[2]


@pytest.fixture
def files(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for k, part in enumerate(("train", "t10k")):
        pixels = torch.stack([digit(100 * k + n) for n in range(IMAGES)]).mul(255).byte().numpy()
        labels = (np.arange(IMAGES) % 10).astype(np.uint8)
        head = struct.pack(">4i", 2051, IMAGES, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, IMAGES) + labels.tobytes())
    return tmp_path


def batches(files, part="train", epochs=1, **settings):
    data = ep.SaccadeMNISTDataModule(files, **{"frames": 4, "batch_size": 8, "validation": "test"} | settings)
    data.setup()
    loader = getattr(data, f"{part}_dataloader")()
    return [batch for _ in range(epochs) for batch in loader]


def events(*args, **settings):
    found = batches(*args, **settings)
    return torch.cat([x for x, _ in found], 1), torch.cat([y for _, y in found])


def test_batches(files):
    x, y = batches(files)[0]
    assert x.shape == (4, 8, 2, SIZE, SIZE)
    assert x.dtype == torch.float32
    assert torch.equal(x, x.round())
    assert x.min() == 0
    assert x.max() > 1
    assert y.shape == (8,)
    assert events(files, "test")[1].tolist() == [k % 10 for k in range(IMAGES)]
    assert events(files, frames=1)[0].shape == (1, IMAGES, 2, SIZE, SIZE)


def by_number(files, **settings):
    """Number of a training image -> its events, in every epoch."""
    data = ep.SaccadeMNISTDataModule(files, **{"frames": 2, "batch_size": 8, "validation": "test"} | settings)
    data.setup()
    images = data._sets["train"]
    return {int(images.numbers[k]): images[k][0] for k in range(len(images))}


def test_events_are_a_function_of_seed_and_number(files):
    """Whatever batch an image comes in, and whatever was drawn before."""
    wanted = by_number(files, seed=1)
    torch.rand(3)
    few = by_number(files, seed=1, train_samples=9, batch_size=3)
    assert len(few) == 9
    assert all(torch.equal(few[n], wanted[n]) for n in few)
    other = by_number(files, seed=2)
    assert not any(torch.equal(other[n], wanted[n]) for n in other)
    first, second = (events(files, seed=1, frames=2), events(files, seed=1, frames=2, batch_size=5, num_workers=1))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_test_images_have_the_same_events_for_every_seed(files):
    assert torch.equal(events(files, "test", seed=0)[0], events(files, "test", seed=1)[0])
    held_out = (events(files, "val", validation="split", seed=seed)[0] for seed in (0, 1))
    assert torch.equal(*held_out)


def test_every_epoch_has_an_order_of_its_own(files):
    first, second = batches(files, epochs=2)[:5], batches(files, epochs=2)[5:]
    assert not torch.equal(torch.cat([y for _, y in first]), torch.cat([y for _, y in second]))
    assert sum(x.sum() for x, _ in first) == sum(x.sum() for x, _ in second)


def test_a_loader_goes_on_within_an_epoch(files):
    """With the batches that would have come next, augmentation and all."""

    def loader():
        data = ep.SaccadeMNISTDataModule(files, 2, 8, augmentation=lambda x: x * torch.rand(1), validation="test")
        data.setup()
        return data.train_dataloader()

    whole, later = loader(), loader()
    expected = [batch for _ in range(2) for batch in whole][7:]
    later.sampler.set_epoch(1)
    later.load_state_dict({"epoch": 1, "batches": 2})
    for (x, y), (x_wanted, y_wanted) in zip(later, expected, strict=True):
        assert torch.equal(x, x_wanted)
        assert torch.equal(y, y_wanted)


def test_augmentation_is_of_the_image_that_moves(files):
    x, _ = events(files, augmentation=torch.zeros_like)
    assert not x.any()
    assert events(files, "test", augmentation=torch.zeros_like)[0].any()


def test_what_is_wrong_is_told_at_the_door(tmp_path, files):
    with pytest.raises(ValueError, match="frames is 0"):
        ep.SaccadeMNISTDataModule(files, frames=0)
    with pytest.raises(ValueError, match=r"no MNIST in .*raw.*download=True"):
        ep.SaccadeMNISTDataModule(tmp_path / "elsewhere")


def test_a_batch_takes_milliseconds():
    """12 to 20 on a core; the limit leaves room for a busy machine."""
    images, limit = torch.rand(64, 1, 28, 28), torch.full((64, SIZE, SIZE), THRESHOLD)
    saccade_events(images, limit, 12)
    took = []
    for _ in range(5):
        start = time.perf_counter()
        saccade_events(images, limit, 12)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.2


def test_a_net_settles_on_them_and_backpropagation_sees_the_same_frames(files):
    net = ep.models.convolutional_2c2fc((2, 4), 16, shape=(2, SIZE, SIZE))
    x, _ = batches(files)[0]
    assert ep.convert(net, time_varying=True)(x).shape == (8, 10)
    assert ep.BPTTLightningModule(net, num_steps=8, time_varying=True)(x).shape == (8, 10)
