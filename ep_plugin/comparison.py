"""Equilibrium propagation and snnTorch's backpropagation through time, side by side.

Every contender trains in a process of its own, so that its peak memory is its own.
"""

import multiprocessing as mp
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from textwrap import fill
from typing import Any

from ep_plugin.dynamics.encoders import Encoder, EncoderName, as_encoder
from ep_plugin.memory import peak_memory, reset_peak_memory
from ep_plugin.settings import FEEDBACK
from ep_plugin.validation import chosen, count, fraction, plain_numbers, positive

DATA = {"digits": "DigitsDataModule", "mnist": "MNISTDataModule", "fashion-mnist": "FashionMNISTDataModule"}
# Adam's.
LEARNING_RATES = {"digits": 1e-2, "mnist": 1e-3, "fashion-mnist": 1e-3}
CONTENDERS = {"EP": "equilibrium propagation", "BPTT": "snnTorch, surrogate gradients"}


_COLOURS = {"EP": "#c44e52", "BPTT": "#4c72b0"}


@dataclass(frozen=True)
class ComparisonSettings:
    """What `compare` trains: one net, by both contenders.

    Args:
        data: "digits", "mnist" or "fashion-mnist". Digits come with the package; they train a net of one
            convolution, the others 2C2FC.
        data_dir: where MNIST or FashionMNIST lie, in torchvision's layout.
        epochs: passes over the training images, 1 or more.
        batch_size: images per step, 1 or more.
        train_samples: use only the first `train_samples` of the shuffled training images.
        encoder: what EP's neurons send, as in `ConvergentNetwork`.
        seed: of the weights and of the order of the images.
        num_steps: BPTT's time steps, 1 or more.
        lr: Adam's learning rate, above 0. None is the data's own.
        feedback: EP's, in (0, 1]. None is the package's default.

    Raises:
        ValueError: a setting is out of its range or unknown, or the data are not there.
        TypeError: a setting is of a wrong type.

    Example:
        >>> results = compare(ComparisonSettings(epochs=5))
    """

    data: str = "digits"
    data_dir: str | Path = "data"
    epochs: int = 15
    batch_size: int = 32
    train_samples: int | None = None
    encoder: EncoderName | Encoder = "adaptive_delta"
    seed: int = 0
    num_steps: int = 25
    lr: float | None = None
    feedback: float | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        chosen("data", self.data, DATA)
        as_encoder(self.encoder)
        for name in ("epochs", "batch_size", "num_steps"):
            count(name, getattr(self, name))
        if self.lr is not None:
            positive("lr", self.lr)
        if self.feedback is not None:
            fraction("feedback", self.feedback)
        self.data_module()

    @property
    def learning_rate(self) -> float:
        """Adam's."""
        return LEARNING_RATES[self.data] if self.lr is None else self.lr

    def data_module(self) -> Any:
        """The data; a ValueError if the directory does not hold them."""
        from ep_plugin.lightning import data

        kind = getattr(data, DATA[self.data])
        place = {} if self.data == "digits" else {"data_dir": self.data_dir}
        return kind(**place, batch_size=self.batch_size, train_samples=self.train_samples, seed=self.seed)

    def described(self) -> str:
        """One line: what is compared with what."""
        net = "1 convolution + 2 linear layers, max pooling," if self.data == "digits" else "2C2FC net"
        samples = "" if self.train_samples is None else f", {self.train_samples} training images"
        feedback = FEEDBACK if self.feedback is None else self.feedback
        return (
            f"EP ({self.encoder} encoder, default steps, feedback {feedback:g}) against snnTorch "
            f"BPTT ({self.num_steps} steps): the same {net} on {self.data}{samples}, {self.epochs} epochs, batch "
            f"{self.batch_size}, Adam {self.learning_rate:g} with cosine decay, seed {self.seed}"
        )


@dataclass
class Result:
    """One contender's figures. Lists have one entry per epoch; seconds are of training alone.

    `peak_memory_mb` is the process's highest memory in training above what it was before the first
    step; `spikes` the mean number of spikes of the whole net in one inference (None: graded).
    """

    contender: str
    accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peak_memory_mb: float = 0.0
    spikes: float | None = None
    finished: bool = False

    def row(self) -> dict[str, Any]:
        """What the table and the CSV show."""
        return {
            "contender": self.contender,
            "test_accuracy": self.accuracy[-1],
            "seconds_per_epoch": sum(self.seconds) / len(self.seconds),
            "peak_memory_mb": self.peak_memory_mb,
            "spikes_per_inference": self.spikes,
        }


def compare(
    settings: ComparisonSettings | None = None,
    output_dir: str | Path = "ep-plugin-compare",
    on_epoch: Callable[[str, int, float], None] | None = None,
) -> list[Result]:
    """Trains EP and BPTT in turn and writes comparison.csv, history.csv and comparison.png.

    Args:
        settings: what is trained, and how; by default digits.
        output_dir: made if it is not there; files of an earlier run are replaced.
        on_epoch: called with the contender, the epoch (from 1) and the test accuracy.

    Returns:
        The results in the order of `CONTENDERS`. What has finished is on disk as soon as it has.

    Raises:
        ValueError: the directory cannot be written.
        RuntimeError: a contender's process failed.

    Example:
        >>> ep, bptt = compare()
    """
    settings = settings or ComparisonSettings()
    place = _writable(Path(output_dir))
    results: list[Result] = []
    try:
        for contender in CONTENDERS:
            results.append(Result(contender))
            _run(settings, results[-1], on_epoch)
            _write(results, place, settings)
    except KeyboardInterrupt:
        _write(results, place, settings)
        raise
    return results


def _writable(place: Path) -> Path:
    try:
        place.mkdir(parents=True, exist_ok=True)
        probe = place / ".write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write to the output directory {place}: {error.strerror}") from error
    return place


def _write(results: list[Result], place: Path, settings: ComparisonSettings) -> None:
    import pandas as pd

    begun = [r for r in results if r.accuracy]
    pd.DataFrame([r.row() for r in begun if r.finished]).to_csv(place / "comparison.csv", index=False)
    history = [
        {"contender": r.contender, "epoch": e, "seconds": s, "test_accuracy": a}
        for r in begun
        for e, (s, a) in enumerate(zip(r.seconds, r.accuracy, strict=True), start=1)
    ]
    pd.DataFrame(history).to_csv(place / "history.csv", index=False)
    if begun:
        _plot(begun, settings.described(), place / "comparison.png")


def _plot(results: list[Result], title: str, path: Path) -> None:
    """Test accuracy over epochs and over seconds of training, one line per contender, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for result in results:
        accuracy = [100 * a for a in result.accuracy]
        style: dict[str, Any] = {"color": _COLOURS[result.contender], "marker": "o", "markersize": 3.5}
        label = f"{result.contender}: {accuracy[-1]:.1f} %"
        left.plot(range(1, len(accuracy) + 1), accuracy, label=label, linewidth=1.6, **style)
        right.plot(list(accumulate(result.seconds)), accuracy, label=label, linewidth=1.6, **style)
    left.set(xlabel="epoch", ylabel="test accuracy (%)")
    right.set(xlabel="seconds of training", xlim=(0, None))
    left.xaxis.get_major_locator().set_params(integer=True)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(loc="lower right", frameon=False)
    figure.suptitle(fill(title, 120), fontsize=8)
    figure.savefig(path, dpi=130)


def _run(settings: ComparisonSettings, result: Result, on_epoch: Callable[[str, int, float], None] | None) -> None:
    """One contender in a fresh process, which reports over a pipe."""
    context = mp.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(result.contender, settings, sender), daemon=True)
    process.start()
    sender.close()
    try:
        while True:
            message = receiver.recv()
            if isinstance(message, Exception):
                raise message
            for name, value in message.items():
                setattr(result, name, value)
            if result.finished:
                break
            if on_epoch is not None:
                on_epoch(result.contender, len(result.accuracy), result.accuracy[-1])
    except EOFError:
        process.join()
        raise RuntimeError(
            f"the process of {result.contender} ended with exit code {process.exitcode}; was it out of memory?"
        ) from None
    finally:
        process.terminate()
        process.join()


def _train(contender: str, settings: ComparisonSettings, sender: Pipe) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    try:
        _fit(contender, settings, sender)
    except Exception as error:  # told where the user sees it
        sender.send(error)


def _fit(contender: str, settings: ComparisonSettings, sender: Pipe) -> None:
    import logging

    import lightning as L
    import torch

    from ep_plugin.conversion import ConversionWarning, convert
    from ep_plugin.initialization import initialize_
    from ep_plugin.lightning.module import BPTTLightningModule, EPLightningModule
    from ep_plugin.models import convolutional_2c2fc, small_convolutional

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", category=ConversionWarning)
    data = settings.data_module()
    data.setup()
    torch.manual_seed(settings.seed)
    # The same weights to start from, which suit both, and the leak at which BPTT does best; to the
    # converted net a leak makes no difference.
    if settings.data == "digits":
        net = initialize_(small_convolutional(leak=0.9, channels=32, hidden=128, pooling="max"), gain=1.0)
    else:
        net = initialize_(convolutional_2c2fc(leak=0.9))

    options: dict[str, Any] = {"lr": settings.learning_rate, "schedule": "cosine"}
    task: L.LightningModule
    if contender == "EP":
        task = EPLightningModule(convert(net, encoder=settings.encoder, feedback=settings.feedback), **options)
    else:
        task = BPTTLightningModule(net, settings.num_steps, **options)

    result = Result(contender)
    start = reset_peak_memory()

    class Report(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            self.begun = time.perf_counter()

        def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            result.seconds.append(time.perf_counter() - self.begun)
            result.peak_memory_mb = max(result.peak_memory_mb, peak_memory() - start)

        def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            logged = trainer.callback_metrics
            result.accuracy.append(logged["val/accuracy"].item())
            result.spikes = logged["val/spikes"].item() if "val/spikes" in logged else None
            sender.send(asdict(result))

    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=settings.epochs,
        logger=False,
        callbacks=[Report()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    # No choice is made by these curves, so the test images may stand in for the validation.
    trainer.fit(task, data.train_dataloader(), data.test_dataloader())
    result.finished = True
    sender.send(asdict(result))
