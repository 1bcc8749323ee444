"""Which training images come when: a function of seed and epoch alone.

So a training that was interrupted goes on with the batch that would have come next, and an image's augmentation does
not depend on the number of processes that read.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

Place = tuple[int, int]  # epoch and number of an image


def mixed(*key: int) -> int:
    """A seed of 64 bits from whole numbers; others give another."""
    return int(np.random.SeedSequence([k % 2**64 for k in key]).generate_state(1, np.uint64)[0])


@contextmanager
def drawn_from(*key: int) -> Iterator[None]:
    """In which PyTorch's, NumPy's and Python's global generators draw by the key, and go on afterwards as before."""
    seed = mixed(*key)
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed the GPU's too
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])


class EpochOrder(DistributedSampler[Place]):
    """Epoch and number of every image, shuffled by seed and epoch; of several processes each has its share.

    Iterating advances the epoch; a trainer sets it (`set_epoch`). It is a `DistributedSampler` so that Lightning leaves
    it as it is.

    Args:
        images: how many there are is all that counts.
        seed: any whole number.
        processes: number of them. The last images are made up from the first, so that all have as many.
        process: this one's number.
    """

    def __init__(self, images: Dataset[Any], seed: int, processes: int = 1, process: int = 0) -> None:
        super().__init__(images, num_replicas=processes, rank=process, seed=seed)

    def __iter__(self) -> Iterator[Place]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        shuffle = torch.Generator().manual_seed(mixed(self.seed, epoch))
        order = torch.randperm(len(self.dataset), generator=shuffle)  # type: ignore[arg-type]
        order = order[torch.arange(self.total_size) % len(order)]
        return iter([(epoch, k) for k in order[self.rank :: self.num_replicas].tolist()])


class ResumableLoader(DataLoader[Any]):
    """A loader that can go on in the middle of an epoch, which Lightning saves and loads with its checkpoints.

    Batches that were there before are read and dropped.
    """

    _resumed: dict[str, Any] | None = None
    _epoch = _given = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Nothing is read, and no epoch taken, before the first batch is asked for: the trainer sets it after this."""
        self._epoch = getattr(self.sampler, "epoch", 0)
        resumed, self._resumed = self._resumed, None
        dropped = self._seen(resumed) if resumed and resumed["epoch"] == self._epoch else 0
        self._given = dropped
        for n, batch in enumerate(super().__iter__()):
            if n >= dropped:
                self._given += 1
                yield batch

    def _seen(self, resumed: dict[str, Any]) -> int:
        """How many batches of this epoch there were, which are these only in the same order and of the same size."""
        here = self._order()
        there = {name: resumed.get(name, value) for name, value in here.items()}
        if resumed["batches"] and there != here:
            was, now = (", ".join(f"{name}={value}" for name, value in told.items()) for told in (there, here))
            raise ValueError(
                f"the checkpoint is from the middle of an epoch, after {resumed['batches']} batches with {was}, and "
                f"now there is {now}: some images would be left out, and others seen twice. Go on with the same, or "
                "from a checkpoint of an epoch's end"
            )
        return resumed["batches"]

    def _order(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size, "seed": getattr(self.sampler, "seed", None)}

    def state_dict(self) -> dict[str, Any]:
        return self._resumed or {"epoch": self._epoch, "batches": self._given, **self._order()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._resumed = dict(state)
