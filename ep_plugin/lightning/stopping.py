"""A training that is told to stop by Ctrl-C, SIGTERM or SIGHUP keeps the batches that it has done."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L

from ep_plugin.signals import STOPPING


class Stopped(KeyboardInterrupt):
    """Raised where a signal stops a training, so that a trainer ends in order."""


class Stopping(L.Callback):
    """Writes a checkpoint at the end of the batch in which a signal comes, and stops there.

    Elsewhere, in a validation or while images are read, and at a second signal it stops at once: what had been kept
    before stays. So it does with several processes, which would have to write a checkpoint together.

    Attributes:
        signal: the number of the one that came; None before.
        checkpoint: what was written then, if it was.
        started: the time since which this training writes checkpoints, in seconds of the system's clock.
    """

    signal: int | None = None
    checkpoint: Path | None = None

    def __init__(self) -> None:
        self.started = time.time()
        self._training = False  # from a batch to the end of the epoch's batches

    def on_train_batch_start(self, *_: Any) -> None:
        self._training = True

    def on_validation_start(self, *_: Any) -> None:
        self._training = False

    def on_train_epoch_end(self, *_: Any) -> None:
        self._training = False

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.signal is None:
            return
        self._training = False  # the next signal does not wait
        if place := _place(trainer):
            trainer.save_checkpoint(place, weights_only=False)
            self.checkpoint = place
        raise Stopped

    def _heard(self, trainer: L.Trainer, number: int) -> None:
        again, self.signal = self.signal is not None, number
        if again or not self._training or trainer.world_size > 1:
            raise Stopped

    @contextmanager
    def listening(self, trainer: L.Trainer) -> Iterator[None]:
        """In which Ctrl-C, SIGTERM and SIGHUP are heard, unless they were to be ignored."""

        def hear(number: int, _: FrameType | None) -> None:
            self._heard(trainer, number)

        before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *STOPPING):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, hear)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _place(trainer: L.Trainer) -> Path | None:
    """Beside the other checkpoints; None where none are kept."""
    directory = getattr(trainer.checkpoint_callback, "dirpath", None)
    if not directory:
        return None
    return Path(directory) / f"stopped-epoch={trainer.current_epoch}-step={trainer.global_step}.ckpt"
