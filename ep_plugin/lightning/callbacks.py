"""Callbacks for Lightning's trainer."""

import json
import os
import platform
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch

from ep_plugin.checks import count
from ep_plugin.gradients.equilibrium_propagation import EquilibriumPropagation
from ep_plugin.lightning.module import EPLightningModule


class RecordErrors(L.Callback):
    """Appends a line of JSON to a file after every epoch: the error so far and how it came about.

    Nothing is rewritten, so an interrupted run keeps its epochs, and runs may share a file.

    Args:
        path: of the file; its directory is made if it is not there.
        name: what the run is called in every line.

    A line holds `name`, `started` (time of the run's start, UTC), `seed`, `epoch` and `epochs`;
    `error` in percent of the images that `watched` names ("test", or "held out" training images);
    `seconds` of training so far; the model's `estimator`, `encoder`, `observe` and `relaxation`;
    `augmented`, `batch_size`, and the environment.

    Raises:
        ValueError: the directory cannot be made.
    """

    def __init__(self, path: str | Path, name: str) -> None:
        self.path, self.name = Path(path), name
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot make the directory of {self.path}: {error.strerror}") from error

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started, self.seconds = datetime.now(UTC).isoformat(timespec="seconds"), 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begun = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.seconds += time.perf_counter() - self.begun

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        line = {
            "name": self.name,
            "started": self.started,
            "seed": int(os.environ.get("PL_GLOBAL_SEED", -1)),
            "epoch": trainer.current_epoch + 1,
            "epochs": trainer.max_epochs,
            "error": round(100 * (1 - trainer.callback_metrics["val/accuracy"].item()), 3),
            "seconds": round(self.seconds, 3),
            **_model(pl_module),
            **_data(trainer),
            **_environment(trainer),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


class FewStepsFirst(L.Callback):
    """Short phases in the first epochs, where a rough gradient does; then those that the model was given.

    Args:
        epochs: how many epochs have short phases, 1 or more.
        free, nudged: their steps, 1 or more.

    Raises:
        ValueError, TypeError: a number is out of its range, or the module is not an
            `EPLightningModule` trained by `EquilibriumPropagation`.
    """

    def __init__(self, epochs: int, free: int = 8, nudged: int = 4) -> None:
        self.epochs, self.free, self.nudged = count("epochs", epochs), count("free", free), count("nudged", nudged)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not isinstance(pl_module, EPLightningModule) or not isinstance(
            pl_module.model.gradient, EquilibriumPropagation
        ):
            raise TypeError(
                f"FewStepsFirst was given a {type(pl_module).__name__}; expected an EPLightningModule whose model "
                "has EquilibriumPropagation as its gradient"
            )
        self.given = pl_module.model.relaxation, pl_module.model.gradient

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, EPLightningModule)
        relaxation, gradient = self.given
        if trainer.current_epoch < self.epochs:
            relaxation, gradient = replace(relaxation, steps=self.free), replace(gradient, steps=self.nudged)
        pl_module.model.relaxation, pl_module.model.gradient = relaxation, gradient

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, EPLightningModule)
        pl_module.model.relaxation, pl_module.model.gradient = self.given


def _model(module: L.LightningModule) -> dict[str, Any]:
    if not isinstance(module, EPLightningModule):
        return {"estimator": f"{type(module).__name__}({getattr(module, 'num_steps', '')})"}
    model = module.model
    return {
        "estimator": repr(model.gradient),
        "encoder": repr(model.encoder),
        "observe": model.observe,
        "relaxation": repr(model.relaxation),
        "feedback": list(model.feedback),
    }


def _data(trainer: L.Trainer) -> dict[str, Any]:
    data = trainer.datamodule  # type: ignore[attr-defined]
    return {
        "data": type(data).__name__,
        "watched": "test" if getattr(data, "validation", None) == "test" else "held out",
        "augmented": getattr(data, "augmentation", None) is not None,
        "batch_size": getattr(data, "batch_size", None),
    }


def _environment(trainer: L.Trainer) -> dict[str, Any]:
    return {
        "device": trainer.strategy.root_device.type,
        "precision": trainer.precision,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
