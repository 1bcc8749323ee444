"""Checkpoints that are written whole or not at all."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins import TorchCheckpointIO

from ep_plugin.files import require_writable, save


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's way to keep checkpoints; a local file takes its name when all of it is on the disk.

    Lightning's own writes to the system's directory for temporary files. Where that is on another disk, the file is
    then copied to its name, and a run that is killed meanwhile leaves half of it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        place = Path(path)
        require_writable(place.parent)
        save(checkpoint, place, ending=".part")  # no search for checkpoints finds what a kill leaves


def write_whole(trainer: L.Trainer) -> None:
    """Lets a trainer write its checkpoints so, unless it was given a plugin that writes them."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpoints()
