"""Small event data sets in their own formats, written here: N-MNIST's .bin, DVS Gesture's .npy, SHD's .h5."""

import numpy as np

MICROSECONDS = 300_000


def random_events(random, number, width, height=1):
    """Columns x, y, p, t of so many events, in time."""
    t = np.sort(random.integers(0, MICROSECONDS, number))
    return random.integers(0, width, number), random.integers(0, height, number), random.integers(0, 2, number), t


def packed(x, y, p, t):
    """As N-MNIST has them: five bytes an event, a bit of polarity and 23 of time."""
    columns = [x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255]
    return np.stack(columns, 1).astype(np.uint8).tobytes()


def write_nmnist(place, recordings=2, events=200, classes=10, seed=0):
    """Part and class -> the recordings' columns."""
    random, written = np.random.default_rng(seed), {}
    for part in ("Train", "Test"):
        for k in range(classes):
            folder = place / "NMNIST" / part / str(k)
            folder.mkdir(parents=True)
            written[part, k] = [random_events(random, events, 34, 34) for _ in range(recordings)]
            for n, columns in enumerate(written[part, k]):
                (folder / f"{n:05}.bin").write_bytes(packed(*columns))
    return written


def write_dvs_gesture(place, users=2, events=300, seed=0):
    """As tonic stores it: a folder a user and lighting, a file a gesture, columns x, y, p and milliseconds."""
    random, written = np.random.default_rng(seed), {}
    for part in ("Train", "Test"):
        for user in range(users):
            folder = place / "DVSGesture" / f"ibmGesture{part}" / f"user{user + 1:02}_led"
            folder.mkdir(parents=True)
            for k in range(11):
                x, y, p, t = random_events(random, events, 128, 128)
                written[part, user, k] = x, y, p, t // 1000
                np.save(folder / f"{k}.npy", np.stack(written[part, user, k], 1))
    return written


def write_shd(place, recordings=6, events=150, seed=0):
    """Part -> times in seconds, channels and classes."""
    import h5py

    random, written = np.random.default_rng(seed), {}
    (place / "SHD").mkdir(parents=True)
    for part in ("train", "test"):
        columns = [random_events(random, events, 700) for _ in range(recordings)]
        times = [(t / 1e6).astype(np.float32) for *_, t in columns]
        units, labels = [x for x, *_ in columns], np.arange(recordings) % 3
        with h5py.File(place / "SHD" / f"shd_{part}.h5", "w") as file:
            for name, values, kind in (("times", times, np.float32), ("units", units, np.int64)):
                own = file.create_dataset(f"spikes/{name}", (recordings,), h5py.vlen_dtype(kind))
                for n, value in enumerate(values):
                    own[n] = value
            file["labels"] = labels
            file["extra/keys"] = np.array([b"zero", b"one", b"two"])
            file["extra/speaker"] = np.zeros(recordings, np.int64)
        written[part] = times, units, labels
    return written
