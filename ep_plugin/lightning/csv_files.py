"""Lightning's CSV logs, written whole or not at all, in a directory that no other run has."""

import csv
import io
import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from ep_plugin.files import append, whole


class _Rows(ExperimentWriter):
    """Adds rows in one piece; a file whose columns change is written anew, and then takes the place of the old one."""

    def save(self) -> None:
        if not self.metrics:
            return
        place, there = Path(self.metrics_file_path), Path(self.metrics_file_path).exists()
        if self._record_new_keys() and there:
            with place.open(newline="") as file:
                before = list(csv.DictReader(file))
            with whole(place) as part:
                part.write_text(self._text([*before, *self.metrics], header=True), newline="")
        else:
            append(place, self._text(self.metrics, header=not there))
        self.metrics = []

    def log_hparams(self, params: dict[str, Any]) -> None:
        self.hparams.update(params)
        with whole(Path(self.log_dir) / self.NAME_HPARAMS_FILE) as part:
            save_hparams_to_yaml(part, self.hparams)

    def _text(self, rows: list[Any], header: bool) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.metrics_keys)
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


class _Whole(CSVLogger):
    @property
    def experiment(self) -> Any:
        made = super().experiment
        if type(made) is ExperimentWriter:
            made.__class__ = _Rows  # Lightning makes no room for another class
        return made

    def _get_next_version(self) -> int:
        """The next one, made at once: of two runs that begin together each has its own."""
        while True:
            found = super()._get_next_version()
            if getattr(rank_zero_only, "rank", 0) != 0:
                return found
            try:
                os.makedirs(Path(self.root_dir) / f"version_{found}")
            except FileExistsError:
                continue
            return found


def write_whole(trainer: L.Trainer) -> None:
    """Lets a trainer's CSV loggers write so; those of other classes stay as they are."""
    for logger in trainer.loggers:
        if type(logger) is CSVLogger and "://" not in str(logger.save_dir):
            logger.__class__ = _Whole
