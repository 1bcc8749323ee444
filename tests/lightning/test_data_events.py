"""Recordings of events, in the sets' own formats, written here."""

import pickle
import shutil
import threading

import numpy as np
import pytest
import threads
import torch
from event_files import write_dvs_gesture, write_nmnist, write_shd

import ep_plugin as ep

tonic = pytest.importorskip("tonic", reason="tonic is not installed: pip install tonic")


def counted(columns, bounds, pool=1, width=34, height=34):
    """Frames of events between such times, by a loop over the events."""
    frames = np.zeros((len(bounds) - 1, 2, height // pool, width // pool))
    for x, y, p, t in zip(*columns, strict=True):
        for n in range(len(bounds) - 1):
            if bounds[n] <= t < bounds[n + 1]:
                frames[n, p, y // pool, x // pool] += 1
    return torch.tensor(frames, dtype=torch.float32)


def read(data, part="test"):
    data.prepare_data()
    data.setup()
    batches = list(getattr(data, f"{part}_dataloader")())
    return torch.cat([x for x, _ in batches], 1), torch.cat([y for _, y in batches])


def test_windows_of_nmnist_hold_its_events(tmp_path):
    written = write_nmnist(tmp_path)
    x, y = read(ep.EventDataModule("nmnist", tmp_path, frames=4, time_window=80_000))
    assert x.shape == (4, 20, 2, 34, 34)
    assert y.tolist() == [k for k in range(10) for _ in range(2)]
    for k in (0, 7):
        for n in (0, 1):
            columns = written["Test", k][n]
            start = columns[3][0]
            wanted = counted(columns, [start + 80_000 * i for i in range(5)])
            assert torch.equal(x[:, 2 * k + n], wanted)


def test_what_comes_after_the_last_frame_is_left_out_and_what_is_missing_is_empty(tmp_path):
    written = write_nmnist(tmp_path, recordings=1)
    columns = written["Test", 3][0]
    start = columns[3][0]
    few, _ = read(ep.EventDataModule("nmnist", tmp_path, frames=2, time_window=50_000))
    many, _ = read(ep.EventDataModule("nmnist", tmp_path, frames=9, time_window=50_000))
    wanted = counted(columns, [start + 50_000 * i for i in range(10)])
    assert torch.equal(few[:, 3], wanted[:2])
    assert torch.equal(many[:, 3], wanted)
    assert not many[-1].any()


def test_equal_parts_of_each_recording_hold_all_its_events(tmp_path):
    write_nmnist(tmp_path, events=90)
    x, _ = read(ep.EventDataModule("nmnist", tmp_path, frames=3))
    assert x.sum((2, 3, 4)).shape == (3, 20)
    assert (x.sum((0, 2, 3, 4)) >= 88).all()  # tonic's last part may end before the last event
    assert (x.sum((2, 3, 4)) > 10).all()


def test_dvs_gesture_with_pixels_taken_together(tmp_path):
    written = write_dvs_gesture(tmp_path)
    data = ep.EventDataModule("dvsgesture", tmp_path, frames=2, time_window=200_000, pool=4)
    x, y = read(data)
    assert x.shape == (2, 22, 2, 32, 32)
    assert sorted(y.tolist()) == sorted(list(range(11)) * 2)
    for n, (user, k) in enumerate((user, k) for user in (0, 1) for k in sorted(range(11), key=str)):
        assert y[n] == k  # by the names of the files, and not as the disk lists them
        columns = [*written["Test", user, k][:3], written["Test", user, k][3] * 1000]
        start = columns[3][0]
        assert torch.equal(x[:, n], counted(columns, [start, start + 200_000, start + 400_000], 4, 128, 128))


def test_spiking_heidelberg_digits(tmp_path):
    times, units, labels = write_shd(tmp_path)["test"]
    x, y = read(ep.EventDataModule("shd", tmp_path, frames=5, time_window=70_000, pool=7, validation="test"))
    assert x.shape == (5, 6, 1, 100)
    assert y.tolist() == labels.tolist()
    for k in range(6):
        wanted = torch.zeros(100)
        wanted.index_add_(0, torch.tensor(units[k] // 7), torch.ones(len(units[k])))
        assert torch.equal(x[:, k].sum((0, 1)), wanted)
        first = np.floor(times[k].astype(np.float64) * 1e6)
        assert x[0, k].sum() == (first < first[0] + 70_000).sum()


def test_a_class_and_a_function_of_ones_own(tmp_path, capsys):
    write_nmnist(tmp_path)

    def first_saccade(data_dir, train):
        made = tonic.datasets.NMNIST.__new__(Small)
        made.__init__(data_dir, train=train, first_saccade_only=True)
        return made

    settings = {"frames": 2, "time_window": 150_000}
    by_name, by_class, by_function = (
        read(ep.EventDataModule(events, tmp_path, **settings))[0]
        for events in ("NMNIST", tonic.datasets.NMNIST, first_saccade)
    )
    assert torch.equal(by_name, by_class)
    assert 0 < by_function.sum() < 0.5 * by_name.sum()
    assert not by_function[1].any()
    assert len(list(tmp_path.glob("ep-plugin-*"))) == 4  # of the class alone


class Small(tonic.datasets.NMNIST):
    """Beside no archive, and smaller than the whole set."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.location_on_system = self.location_on_system.replace("Small", "NMNIST")

    def _check_exists(self):
        self.location_on_system = self.location_on_system.replace("Small", "NMNIST")
        return True


def test_frames_are_made_once_and_anew_after_a_change(tmp_path, monkeypatch):
    written = write_nmnist(tmp_path)
    making, parts = ep.EventDataModule._read, []

    def watched(self, made, frames, train):
        parts.append(train)
        return making(self, made, frames, train)

    monkeypatch.setattr(ep.EventDataModule, "_read", watched)

    def made(**settings):
        parts.clear()
        x, _ = read(ep.EventDataModule("nmnist", tmp_path, **{"frames": 3} | settings))
        return x, False in parts  # those of the test recordings

    first, was_made = made()
    assert was_made
    again, was_made = made()
    assert not was_made
    assert torch.equal(first, again)
    assert made(frames=2)[1]
    assert not made()[1]
    for other in ("4", "5"):  # the same events, of other classes
        file = tmp_path / "NMNIST" / "Test" / other / "00000.bin"
        file.write_bytes((tmp_path / "NMNIST" / "Test" / "9" / "00001.bin").read_bytes())
    changed, was_made = made()
    assert was_made
    assert [n for n in range(20) if not torch.equal(changed[:, n], first[:, n])] == [8, 10]
    assert torch.equal(changed[:, 8], first[:, 19])
    assert written


def test_an_interrupted_reading_leaves_no_frames(tmp_path, monkeypatch):
    write_nmnist(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(ep.EventDataModule, "_one", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ep.EventDataModule("nmnist", tmp_path).stored()
    assert not [file for file in tmp_path.iterdir() if file.is_file()]
    (tmp_path / "ep-plugin-NMNIST-train-2-00000000.pt").write_bytes(b"no frames")
    assert read(ep.EventDataModule("nmnist", tmp_path, frames=2))[0].any()


def test_frames_elsewhere(tmp_path, tmp_path_factory):
    write_nmnist(tmp_path)
    elsewhere = tmp_path_factory.mktemp("cache")
    read(ep.EventDataModule("nmnist", tmp_path, frames=2, cache=elsewhere / "new"))
    assert len(list((elsewhere / "new").iterdir())) == 4
    assert [file.name for file in tmp_path.iterdir()] == ["NMNIST"]
    (elsewhere / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write .*file.*name another directory"):
        ep.EventDataModule("nmnist", tmp_path, cache=elsewhere / "file").stored()


def test_a_full_disk_is_told_before_anything_is_read(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    write_nmnist(tmp_path)
    monkeypatch.setattr("os.posix_fallocate", full)
    monkeypatch.setattr(ep.EventDataModule, "_one", lambda *_: pytest.fail("a recording was read"))
    with pytest.raises(ValueError, match=r"cannot write .*NMNIST-train.*: No space left on device; make room there"):
        ep.EventDataModule("nmnist", tmp_path).stored()
    assert [file.name for file in tmp_path.iterdir()] == ["NMNIST"]


def test_reading_takes_as_long_a_recording_in_a_larger_set(tmp_path, monkeypatch):
    """The files' names are gone through once a set, and not once a recording."""
    from ep_plugin.lightning.data import event_sets

    write_nmnist(tmp_path)
    calls, files = [], event_sets.files
    monkeypatch.setattr(event_sets, "files", lambda made: calls.append(1) or files(made))
    ep.EventDataModule("nmnist", tmp_path, frames=2).stored()
    assert len(calls) < 10


def test_the_order_is_a_function_of_seed_and_epoch(tmp_path):
    write_nmnist(tmp_path)

    def epochs(**settings):
        data = ep.EventDataModule("nmnist", tmp_path, frames=2, batch_size=5, **settings)
        data.setup()
        loader = data.train_dataloader()
        return [torch.cat([x for x, _ in loader], 1) for _ in range(2)]

    first, second = epochs()
    again = epochs()
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert not torch.equal(first, second)
    assert not torch.equal(first, epochs(seed=1)[0])
    assert torch.equal(first, epochs(num_workers=1)[0])
    assert torch.equal(second.sum(), first.sum())


def test_augmentation_changes_training_recordings_alone(tmp_path):
    write_nmnist(tmp_path)
    plain, flipped = (
        {
            part: read(ep.EventDataModule("nmnist", tmp_path, frames=2, augmentation=how), part)[0]
            for part in ("train", "test")
        }
        for how in (None, lambda x: x.flip(-1))
    )
    assert torch.equal(plain["test"], flipped["test"])
    assert torch.equal(plain["train"].flip(-1), flipped["train"])


def test_held_out_recordings(tmp_path):
    write_nmnist(tmp_path)
    data = ep.EventDataModule("nmnist", tmp_path, frames=2, validation="split")
    assert [read(data, part)[1].numel() for part in ("train", "val", "test")] == [18, 2, 20]
    watched = ep.EventDataModule("nmnist", tmp_path, frames=2, validation="test")
    assert [read(watched, part)[1].numel() for part in ("train", "val", "test")] == [20, 20, 20]


def test_a_module_travels_to_another_process(tmp_path):
    write_nmnist(tmp_path)
    data = ep.EventDataModule("nmnist", tmp_path, frames=2)
    x, _ = read(data)
    again, _ = read(pickle.loads(pickle.dumps(ep.EventDataModule("nmnist", tmp_path, frames=2))))
    assert torch.equal(x, again)


@pytest.mark.parametrize(
    ("events", "settings", "error", "message"),
    [
        ("nmnits", {}, ValueError, r"no data set 'nmnits'; expected one of its classes, such as nmnist"),
        (3, {}, TypeError, "events is 3; expected the name"),
        ("shd", {}, ValueError, r"no recordings of SHD in .*/SHD; unpack them there .* download=True"),
        ("nmnist", {"frames": 0}, ValueError, "frames is 0"),
        ("nmnist", {"time_window": 0}, ValueError, "time_window is 0"),
        ("nmnist", {"pool": 1.5}, TypeError, "pool is 1.5"),
        ("nmnist", {"batch_size": 0}, ValueError, "batch_size is 0"),
    ],
)
def test_what_is_wrong_is_told_at_the_door(events, settings, error, message, tmp_path):
    (tmp_path / "NMNIST").mkdir()
    with pytest.raises(error, match=message) as found:
        ep.EventDataModule(events, tmp_path, **settings)
    assert "\n" not in str(found.value)


OUTSIDE = bytes([200, 1, 0, 0, 0] * 9 + [1, 1, 0, 9, 0])  # events of a pixel that N-MNIST has not


def cut(file, at):
    file.write_bytes(file.read_bytes()[:at])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda place: cut(place / "Train/3/00001.bin", 998), r"Train/3/00001\.bin is not whole: it has 998 bytes"),
        (lambda place: cut(place / "Test/0/00000.bin", 0), r"Test/0/00000\.bin is not whole: it has 0 bytes"),
        (lambda place: shutil.rmtree(place / "Test"), r"no recordings of NMNIST in .*/NMNIST; unpack them"),
        (lambda place: shutil.rmtree(place / "Train/9"), r"no training recording of NMNIST is of class 9"),
        (
            lambda place: (place / "Train/1/00000.bin").write_bytes(OUTSIDE),
            r"cannot read .*Train/1/00000\.bin: .*bounds",
        ),
    ],
)
def test_recordings_that_are_missing_or_not_whole_are_named(change, message, tmp_path):
    write_nmnist(tmp_path)
    change(tmp_path / "NMNIST")
    with pytest.raises(ValueError, match=message) as found:
        ep.EventDataModule("nmnist", tmp_path, frames=2).stored()
    assert "\n" not in str(found.value)


def test_cut_files_of_the_other_formats_are_named(tmp_path):
    write_dvs_gesture(tmp_path)
    cut(tmp_path / "DVSGesture" / "ibmGestureTest" / "user02_led" / "7.npy", 900)
    before = threading.active_count()
    with pytest.raises(ValueError, match=r"cannot read .*ibmGestureTest/user02_led/7\.npy: .*; copy it anew") as error:
        ep.EventDataModule("dvsgesture", tmp_path, frames=2).stored()
    assert threads.are_again(before), f"one has outlived {error}, and may lock the next reading"
    write_shd(tmp_path)
    cut(tmp_path / "SHD" / "shd_train.h5", 5000)
    with pytest.raises(ValueError, match=r"cannot open the training recordings of SHD in .*; copy them anew"):
        ep.EventDataModule("shd", tmp_path).stored()
    (tmp_path / "SHD" / "shd_train.h5").unlink()
    with pytest.raises(ValueError, match=r"cannot open the training recordings of SHD in .*shd_train\.h5"):
        ep.EventDataModule("shd", tmp_path).stored()


def test_a_pool_that_does_not_divide_the_sensor(tmp_path):
    write_nmnist(tmp_path)
    with pytest.raises(ValueError, match=r"pool is 4, and the sensor has 34 x 34 pixels; expected a number"):
        ep.EventDataModule("nmnist", tmp_path, pool=4).stored()


def test_nothing_is_fetched(tmp_path, monkeypatch):
    """Where tonic would: without an archive, and with fewer recordings than the whole set has."""
    monkeypatch.setattr("tonic.dataset.download_and_extract_archive", lambda *_, **__: pytest.fail("a download"))
    write_nmnist(tmp_path)
    assert len(ep.EventDataModule("nmnist", tmp_path, frames=2).stored()[0][1]) == 20
    shutil.rmtree(tmp_path / "NMNIST" / "Train")
    with pytest.raises(ValueError, match="no recordings of NMNIST"):
        ep.EventDataModule("nmnist", tmp_path, frames=2, cache=tmp_path / "other").stored()


def test_downloads_are_tonics(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("tonic.dataset.download_and_extract_archive", lambda url, *_, **__: asked.append(url))
    with pytest.raises(ValueError, match="no recordings of NMNIST"):
        ep.EventDataModule("nmnist", tmp_path, download=True).prepare_data()
    assert len(asked) == 1


class Crowded:
    """A set whose recordings have all their events in one row of pixels."""

    sensor_size = (4, 4, 2)

    def __init__(self, events):
        self.events = events

    def __len__(self):
        return 2

    def __getitem__(self, i):
        made = np.zeros(self.events, [("x", int), ("y", int), ("t", int), ("p", int)])
        made["x"], made["t"] = np.arange(self.events) % 4, np.arange(self.events)
        return made, i


@pytest.mark.parametrize(("events", "frames", "pool"), [(120_000, 1, 4), (140_000, 1, 1), (400_000, 1, 1)])
def test_more_events_than_a_frame_can_hold_are_refused(events, frames, pool, tmp_path):
    data = ep.EventDataModule(lambda data_dir, train: Crowded(events), tmp_path, frames=frames, pool=pool)
    with pytest.raises(ValueError, match=r"more than 32,767 events in a frame, .*; expected more frames, or a smaller"):
        data.setup()


def test_as_many_events_as_a_frame_can_hold_are_counted(tmp_path):
    data = ep.EventDataModule(lambda data_dir, train: Crowded(120_000), tmp_path, frames=4, pool=4, validation="test")
    x, _ = read(data)
    # Tonic's equal parts are whole microseconds, so that the last event of each is left out here.
    assert set(x[:, :, 0].flatten().tolist()) == {29_999.0}
