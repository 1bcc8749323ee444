"""Callbacks for Lightning's trainer."""

import json
import math
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from ep_plugin.estimators.equilibrium_propagation import EquilibriumPropagation
from ep_plugin.estimators.full_phases import FullPhaseEP
from ep_plugin.files import append, require_writable
from ep_plugin.lightning.module import EPLightningModule
from ep_plugin.lightning.monitors import GradientMonitor
from ep_plugin.validation import count


class RecordErrors(L.Callback):
    """Appends a line of JSON to a file after every epoch: the error so far and how it was reached.

    Nothing is rewritten, so an interrupted run keeps its epochs, and runs may share a file. A run that continues from a
    checkpoint keeps its start and its seconds, and does not write an epoch again.

    A line holds:

    - `name`, `started` (time of the run's start, UTC), `seed`, `epoch` and `epochs`;
    - `error` in percent of the images that `watched` names ("test", or "held out" training images), or their `loss` if
      the outputs are not classes;
    - `seconds` of training so far, and `spikes` per inference;
    - `cosine`: the smallest cosine of any parameter's gradient with the exact one, if a `GradientMonitor` has looked;
    - the number of `parameters`, the model's settings, and the `steps` of its free and nudged phase;
    - `optimizer`, its `lr` at the start and its `schedule`, `augmented`, `batch_size`, and the environment.

    Args:
        path: of the file; its directory is made if it does not exist.
        name: of the run, in every line.

    Raises:
        ValueError: the directory or the file cannot be written. In fitting: there is no validation, or nothing that
            it logs is "val/accuracy" or "val/loss".

    Example:
        >>> trainer = L.Trainer(callbacks=[ep.RecordErrors("results.jsonl", "mnist")])
    """

    def __init__(self, path: str | Path, name: str) -> None:
        self.path, self.name = Path(path), name
        require_writable(self.path.parent)
        self.started, self.seed, self.seconds = "", -1, 0.0
        self._running: float | None = None  # since when; None: the training's clock stands
        self._written: set[int] = set()
        self._line: dict[str, Any] | None = None  # of the epoch that is going on, after a validation

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._resumed = False

    @property
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name, path=str(self.path))  # a trainer may have several

    def state_dict(self) -> dict[str, Any]:
        self._stop_clock(go_on=True)
        return {"started": self.started, "seed": self.seed, "seconds": self.seconds, "line": self._line}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.started, self.seed, self.seconds = (state_dict[name] for name in ("started", "seed", "seconds"))
        self._line = state_dict.get("line")
        self._resumed = True

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.enable_validation:
            raise ValueError(
                "RecordErrors writes what a validation finds, and this training has none; expected validation data, "
                "and no limit_val_batches=0"
            )
        if not self._resumed:
            self._line = None
            self.started, self.seconds = datetime.now(UTC).isoformat(timespec="seconds"), 0.0
            self.seed = int(os.environ.get("PL_GLOBAL_SEED", -1))
        # What the run wrote after the checkpoint that it goes on from.
        self._written = _epochs(self.path, self._run()) if self._resumed else set()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._running = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._running = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_clock()
        line, self._line = self._line, None
        if line is not None and trainer.is_global_zero and line["epoch"] not in self._written:
            append(self.path, json.dumps(line) + "\n")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_clock()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self._running = time.perf_counter()
        self._line = {  # of the epoch's last validation, if it has several
            **self._run(),
            "epoch": trainer.current_epoch + 1,
            "epochs": trainer.max_epochs,
            **_watched(trainer.callback_metrics),
            "seconds": round(self.seconds, 3),
            **_seen(trainer),
            **_model(pl_module),
            **_optimizer(trainer, pl_module),
            **_data(trainer),
            **_environment(trainer),
        }

    def _run(self) -> dict[str, Any]:
        """By which a run's lines are told from others'."""
        return {"name": self.name, "started": self.started, "seed": self.seed}

    def _stop_clock(self, go_on: bool = False) -> None:
        if self._running is not None:
            now = time.perf_counter()
            self.seconds += now - self._running
            self._running = now if go_on else None


class FewStepsFirst(L.Callback):
    """Short phases in the first epochs, where a rough gradient is enough; after them the model's own phases.

    For encoders of one digit per step, binary spikes and deep networks, whose phases are long. (With one digit, 4 free
    and 2 nudged steps, a training step of 2C2FC takes three fifths of the time, and the gradient has cosines of .94
    and more after 200 batches of MNIST.) A phase that is already this short does not change.

    Args:
        epochs: how many epochs have short phases, 1 or more.
        free: steps of the short free phase, 1 or more.
        nudged: steps of the short nudged phase, 1 or more.

    Raises:
        ValueError: a number is below 1. In fitting: the model's events have fixed weights.
        TypeError: a number is not a whole number. In fitting: the module is not an `EPLightningModule` whose model is
            trained by `EquilibriumPropagation` or `FullPhaseEP`.

    Example:
        >>> trainer = L.Trainer(max_epochs=8, callbacks=[ep.FewStepsFirst(4)])
    """

    def __init__(self, epochs: int, free: int = 4, nudged: int = 2) -> None:
        self.epochs, self.free, self.nudged = count("epochs", epochs), count("free", free), count("nudged", nudged)
        self._given: Any = None  # the model's own, while others may be in their place

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        model = pl_module.model if isinstance(pl_module, EPLightningModule) else None
        if model is None or not isinstance(model.estimator, (EquilibriumPropagation, FullPhaseEP)):
            raise TypeError(
                f"FewStepsFirst was given a {type(pl_module).__name__}; expected an EPLightningModule whose model "
                "has EquilibriumPropagation or FullPhaseEP as its estimator"
            )
        if model.event_weights is not None:
            raise ValueError(
                "FewStepsFirst cannot shorten the phases of events with fixed weights: these are constants of every "
                'step, and hold for the number of steps that they were found with. Use AdaptiveDelta("sample"), '
                "or leave FewStepsFirst out"
            )
        self._given = model.relaxation, model.estimator

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # a run that goes on within an epoch does not start it

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, EPLightningModule)
        model = pl_module.model
        model.relaxation, model.estimator = self._given
        if trainer.current_epoch < self.epochs:
            free, nudged = model.steps
            model.relaxation = replace(model.relaxation, steps=min(self.free, free))
            assert isinstance(model.estimator, (EquilibriumPropagation, FullPhaseEP))
            model.estimator = replace(model.estimator, steps=min(self.nudged, nudged))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")  # which Lightning then leaves out

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._given is not None and isinstance(pl_module, EPLightningModule):
            pl_module.model.relaxation, pl_module.model.estimator = self._given
            self._given = None


def _epochs(path: Path, run: dict[str, Any]) -> set[int]:
    """Those that a file has of a run."""
    found = set()
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:  # a line that was interrupted
            continue
        if run.items() <= line.items():
            found.add(line["epoch"])
    return found


def _watched(logged: Mapping[str, Tensor]) -> dict[str, float]:
    if "val/accuracy" in logged:
        return {"error": round(100 * (1 - logged["val/accuracy"].item()), 3)}
    if "val/loss" not in logged:
        raise ValueError(
            'RecordErrors expects "val/accuracy" or "val/loss" among what the module logs, and there is '
            f"{', '.join(map(repr, logged)) or 'nothing'}"
        )
    return {"loss": logged["val/loss"].item()}


def _seen(trainer: L.Trainer) -> dict[str, float]:
    """What is known of the spikes and of the gradients."""
    found = {}
    if "val/spikes" in trainer.callback_metrics:
        found["spikes"] = round(trainer.callback_metrics["val/spikes"].item(), 1)
    looks = [c.latest for c in trainer.callbacks if isinstance(c, GradientMonitor)]  # type: ignore[attr-defined]
    known = [v for look in looks for name, v in look.items() if name.startswith("cosine/")]
    if cosines := [v for v in known if not math.isnan(v)]:  # which a weight without any gradient has
        found["cosine"] = round(min(cosines), 4)
    return found


def _model(module: L.LightningModule) -> dict[str, Any]:
    known: dict[str, Any] = {"parameters": sum(p.numel() for p in module.parameters() if p.requires_grad)}
    if not isinstance(module, EPLightningModule):
        return known | {"estimator": f"{type(module).__name__}({getattr(module, 'num_steps', '')})"}
    return known | {**module.model.settings.plain(), "steps": list(module.model.steps)}


def _optimizer(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    known: dict[str, Any] = {"schedule": getattr(module, "schedule", None), "max_steps": trainer.max_steps}
    for optimizer in trainer.optimizers[:1]:
        first = optimizer.param_groups[0]
        known |= {"optimizer": type(optimizer).__name__, "lr": first.get("initial_lr", first.get("lr"))}
    return known


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
        "ep_plugin": version("ep-plugin"),
    }
