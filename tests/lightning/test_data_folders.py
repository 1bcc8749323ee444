"""Folders of images, written here."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

import ep_plugin as ep

HEIGHT, WIDTH = 6, 5


def write(folder, name, mode="RGB", size=(HEIGHT, WIDTH), seed=0):
    """A random image; its pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = size if mode == "L" else (*size, len(mode))
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(values, mode).save(folder / name)
    return values


@pytest.fixture
def folders(tmp_path):
    """Three training images of a class, two test images."""
    for part, number in (("train", 3), ("test", 2)):
        for k, name in enumerate(("cats", "dogs")):
            for n in range(number):
                write(tmp_path / part / name, f"{n}.png", seed=10 * n + k)
    return tmp_path


def module(place, **settings):
    return ep.ImageFolderDataModule(place, **{"size": (HEIGHT, WIDTH), "validation": "test"} | settings)


def test_images_and_classes(folders):
    data = module(folders)
    assert data.classes == ["cats", "dogs"]
    data.prepare_data()
    data.setup()
    (x, y), (x_test, y_test) = data.load()
    assert (x.shape, x_test.shape) == ((6, 3, HEIGHT, WIDTH), (4, 3, HEIGHT, WIDTH))
    assert (y.tolist(), y_test.tolist()) == ([0, 0, 0, 1, 1, 1], [0, 0, 1, 1])
    for k in range(2):
        for n in range(3):
            wanted = write(folders / "elsewhere", "image.png", seed=10 * n + k)
            assert torch.equal(x[3 * k + n], torch.tensor(wanted).permute(2, 0, 1) / 255)
    batch, classes = next(iter(data.train_dataloader()))
    assert batch.dtype == torch.float32
    assert sorted(classes.tolist()) == y.tolist()


def test_held_out_images_are_of_the_training_folder(folders):
    data = module(folders, validation=0.5)
    data.setup()
    count = {part: sum(len(y) for _, y in getattr(data, f"{part}_dataloader")()) for part in ("train", "val", "test")}
    assert count == {"train": 3, "val": 3, "test": 4}


def reads(monkeypatch):
    """The images that are read from now on."""
    from ep_plugin.lightning.data import folders as reader

    opened, image = [], reader._image
    monkeypatch.setattr(reader, "_image", lambda file, *how: (opened.append(file), image(file, *how))[1])
    return opened


def test_it_is_read_once_and_anew_after_a_change(folders, monkeypatch):
    opened = reads(monkeypatch)

    def read(**settings):
        opened.clear()
        return module(folders, **settings).load()[0][0], any("train" in file.parts for file in opened)

    first, was_read = read()
    assert was_read
    again, was_read = read()
    assert not was_read
    assert torch.equal(first, again)
    assert read(channels=1)[1]  # a file of its own
    assert not read()[1]
    write(folders / "train" / "cats", "1.png", seed=99)
    changed, was_read = read()
    assert was_read
    assert [n for n in range(6) if not torch.equal(changed[n], first[n])] == [1]
    (folders / "train" / "cats" / "2.png").unlink()
    assert len(read()[0]) == 5


def test_an_interrupted_reading_leaves_no_cache(folders, monkeypatch):
    from ep_plugin.lightning.data import folders as reader

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reader, "_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            module(folders).load()
    assert not [p for p in folders.iterdir() if p.is_file()]
    assert len(module(folders).load()[0][0]) == 6
    assert sorted(p.name for p in folders.iterdir() if p.is_file()) == [
        "ep-plugin-test-3x6x5.pt",
        "ep-plugin-train-3x6x5.pt",
    ]


def test_a_cache_that_is_no_cache_is_written_anew(folders):
    wanted = module(folders).load()[0][0]
    place = folders / "ep-plugin-train-3x6x5.pt"
    for content in (b"", b"something else", place.read_bytes()[:200]):
        place.write_bytes(content)
        assert torch.equal(module(folders).load()[0][0], wanted)


def test_a_cache_elsewhere(folders, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("cache") / "images"
    module(folders, cache=elsewhere).load()
    assert len(list(elsewhere.iterdir())) == 2
    assert not [p for p in folders.iterdir() if p.is_file()]


def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_read(folders, tmp_path_factory, monkeypatch):
    opened = reads(monkeypatch)
    taken = tmp_path_factory.mktemp("place") / "file"
    taken.touch()
    with pytest.raises(ValueError, match=r"cannot write .*file.*name another directory with cache"):
        module(folders, cache=taken).load()
    assert not opened
    module(folders, cache=taken.parent).load()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_grey_and_colour_become_what_is_asked_for(mode, channels, tmp_path):
    for part in ("train", "test"):
        values = write(tmp_path / part / "a", "0.png", mode)
    x = module(tmp_path, channels=channels).load()[0][0][0]
    assert x.shape == (channels, HEIGHT, WIDTH)
    wanted = torch.tensor(np.atleast_3d(values)[..., :3]).permute(2, 0, 1).float() / 255
    if channels < len(wanted):  # the luma of ITU-R 601-2
        wanted = (wanted * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
    torch.testing.assert_close(x, wanted.expand(channels, -1, -1), atol=1.01 / 255, rtol=0)


def test_other_sizes_are_resized(tmp_path):
    for part in ("train", "test"):
        values = write(tmp_path / part / "a", "0.png", "L", (8, 12))
    x = module(tmp_path, size=4, channels=1).load()[0][0]
    assert x.shape == (1, 1, 4, 4)
    assert abs(x.mean() - values.mean() / 255) < 0.03
    with Image.open(tmp_path / "train" / "a" / "0.png") as image:
        wanted = np.array(image.resize((4, 4), Image.Resampling.BILINEAR))
    assert torch.equal(x[0, 0], torch.tensor(wanted) / 255)


def test_an_image_that_cannot_be_read_is_named(folders):
    bad = folders / "train" / "dogs" / "1.png"
    content = bad.read_bytes()
    bad.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        ValueError, match=r"cannot read the image .*train/dogs/1\.png: .*take it out of its folder"
    ) as error:
        module(folders).load()
    assert "\n" not in str(error.value)
    bad.unlink()
    assert len(module(folders).load()[0][0]) == 5


def test_sixteen_bits_are_refused_and_not_clipped(folders):
    place = folders / "train" / "dogs" / "1.png"
    Image.fromarray(np.full((HEIGHT, WIDTH), 40_000, np.uint16)).save(place)
    with pytest.raises(ValueError, match=r"1\.png: its mode is I;16; expected 8 bits a channel"):
        module(folders).load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda place: os.rename(place / "test", place / "testing"),
            r"there is no folder .*/test; expected train and test",
        ),
        (lambda place: (place / "test" / "birds").mkdir(), r"different classes: only one of them has birds; expected"),
    ],
)
def test_folders_are_checked_at_the_door(folders, change, message):
    change(folders)
    with pytest.raises(ValueError, match=message):
        module(folders)


def test_no_class_and_no_image(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
    with pytest.raises(ValueError, match=r"no class in .*/train; expected a folder of images for each"):
        module(tmp_path)
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir()
        (tmp_path / part / "a" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"no image in .*/train/a; expected files that end in .*\.jpg"):
        module(tmp_path).load()
    for part in ("train", "test"):
        write(tmp_path / part / "a", "0.JPG")
    assert module(tmp_path).load()[0][0].shape == (1, 3, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"channels": 2}, ValueError, "channels is 2; expected 1"),
        ({"size": 0}, ValueError, "size is 0"),
        ({"size": 2.5}, TypeError, "size"),
        ({"size": (1, 2, 3)}, ValueError, r"size is \(1, 2, 3\); expected one number, or height and width"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
    ],
)
def test_numbers_are_checked(folders, settings, error, message):
    with pytest.raises(error, match=message):
        module(folders, **settings)


def test_images_in_hidden_folders_are_left_out(folders):
    data = module(folders)
    data.setup()
    expected = len(data.load()[0][0])
    for name in ("train/cats/.thumbnails", "train/dogs/.ipynb_checkpoints"):
        write(folders / name, "hidden.png")
    data = module(folders)
    data.setup()
    assert len(data.load()[0][0]) == expected == 6
