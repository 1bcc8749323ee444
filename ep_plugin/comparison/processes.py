"""The training of a contender, in a fresh process that reports over a pipe."""

import multiprocessing as mp
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection as Pipe
from typing import Any

from ep_plugin.comparison.results import Result
from ep_plugin.comparison.settings import ComparisonSettings
from ep_plugin.out_of_memory import in_a_batch_of

OnEpoch = Callable[[Result], None]


def train(settings: ComparisonSettings, result: Result, on_epoch: OnEpoch | None) -> None:
    """Trains one contender; `result` holds its finished epochs at any time.

    Raises:
        ValueError: what the contender said of the settings or the net.
        RuntimeError: its process failed.
    """
    context = mp.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(result.contender, result.seed, settings, sender), daemon=True)
    process.start()
    sender.close()
    try:
        if on_epoch is not None:
            on_epoch(result)
        while not result.finished:
            message = receiver.recv()
            if isinstance(message, Exception):
                raise message
            for name, value in message.items():
                setattr(result, name, value)
            if on_epoch is not None and not result.finished:
                on_epoch(result)
    except EOFError:
        process.join()
        raise RuntimeError(f"the process of {result.contender} {_ended(process.exitcode)}") from None
    finally:
        process.terminate()
        process.join()


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"was ended by {name}" + ("; was it out of memory?" if name == "SIGKILL" else "")
    return f"ended with exit code {code}"


def _report(contender: str, seed: int, settings: ComparisonSettings, sender: Pipe) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        with in_a_batch_of(settings.batch_size):
            _fit(contender, seed, settings, sender)
    except (ValueError, TypeError) as error:  # of the settings or the net
        sender.send(ValueError(f"{contender}: {error}"))
    except Exception as error:  # in words, as not every error can be sent
        sender.send(RuntimeError(f"{contender} failed: {type(error).__name__}: {error}"))


def _end_with_the_parent() -> None:
    parent = mp.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # it was killed, and could not end this process


def _fit(contender: str, seed: int, settings: ComparisonSettings, sender: Pipe) -> None:
    import logging

    import lightning as L
    import torch

    from ep_plugin.analysis.operations import count_operations
    from ep_plugin.conversion import ConversionWarning, convert
    from ep_plugin.lightning.bptt_module import BPTTLightningModule
    from ep_plugin.lightning.module import EPLightningModule
    from ep_plugin.memory import peak_memory, reset_peak_memory

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", category=ConversionWarning)
    data = settings.data_module(seed)
    data.setup()
    torch.manual_seed(seed)
    net = settings.make_net()  # the same weights for both

    options: dict[str, Any] = {"lr": settings.learning_rate, "schedule": "cosine"}
    task: L.LightningModule
    if contender == "EP":
        task = EPLightningModule(convert(net, encoder=settings.encoder, feedback=settings.feedback), **options)
    else:
        task = BPTTLightningModule(net, settings.num_steps, **options)

    result = Result(contender, seed)
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
    x, y = next(iter(data.test_dataloader()))
    with suppress(ValueError):  # a module that is not known is not counted
        if isinstance(task, EPLightningModule):
            counts = count_operations(task.model, x, y)
        else:
            counts = count_operations(net, x, y, num_steps=settings.num_steps)
        result.operations = counts.training.synaptic_operations + counts.training.multiply_adds
    result.finished = True
    sender.send(asdict(result))
