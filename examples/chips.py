"""MNIST under the limits of chips, by EP and by BPTT that is rounded afterwards:

    python examples/chips.py --data-dir DATA

trains 2C2FC nets (plain, average pooling) and adds a row each to examples/results/chips.csv; rows that stand there
are not trained again.
"""

import copy
import csv
from collections.abc import Callable
from pathlib import Path
from time import time
from typing import Annotated

import lightning as L
import torch
import typer
from torch import Tensor, nn

import ep_plugin as ep
from ep_plugin.chips import add_mismatch, add_read_noise, quantize_weights
from ep_plugin.files import origin

RESULTS = Path(__file__).parent / "results" / "chips.csv"
FIXED = ep.AdaptiveDelta(event_weight="fixed")
SHAPE = (1, 28, 28)


def by_ep(
    bits: int = 0, mismatch: float = 0.0, noise: float = 0.0, fixed: bool = False, separate: bool = False
) -> Callable[[nn.Module], L.LightningModule]:
    """How a net is trained by EP under these limits."""

    def task(net: nn.Module) -> L.LightningModule:
        encoder: ep.AdaptiveDelta | str = FIXED if fixed else "adaptive_delta"
        model = ep.convert(
            quantize_weights(net, bits) if bits else net,
            encoder=encoder,  # type: ignore[arg-type]
            feedback_weights="separate" if separate else "tied",
        )
        if mismatch:
            add_mismatch(model, torch.zeros(1, *SHAPE), mismatch)
        return ep.EPLightningModule(add_read_noise(model, noise), optimizer=optimizer, schedule="cosine")

    return task


def optimizer(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.2)


EP = {
    "none": by_ep(),
    "weights of 8 bits": by_ep(bits=8),
    "weights of 4 bits": by_ep(bits=4),
    "separate feedback": by_ep(separate=True),
    "fixed spikes": by_ep(fixed=True),
    "mismatch 10 %": by_ep(mismatch=0.1),
    "read noise 10 %": by_ep(noise=0.1),
    "all, with 8 bits": by_ep(bits=8, mismatch=0.1, noise=0.1, fixed=True, separate=True),
    "all, with 4 bits": by_ep(bits=4, mismatch=0.1, noise=0.1, fixed=True, separate=True),
}


def after_bptt(net: nn.Module) -> dict[str, nn.Module]:
    """A net trained by BPTT, as a chip with these limits runs it."""

    def rounded(bits: int) -> nn.Module:
        return quantize_weights(copy.deepcopy(net), bits)

    def mismatched(own: nn.Module, std: float = 0.1) -> nn.Module:
        """A threshold of its own for every neuron; their number is known when the input comes."""
        own = copy.deepcopy(own)
        drawn = torch.Generator().manual_seed(0)

        def before(neuron: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if neuron.threshold.dim() == 0:
                factor = torch.randn(1, *inputs[0].shape[1:], generator=drawn).mul(std).exp()
                neuron.threshold = neuron.threshold * factor

        for module in own.modules():
            if type(module).__name__ == "Leaky":
                module.register_forward_pre_hook(before)
        return own

    return {
        "none": net,
        "weights of 8 bits": rounded(8),
        "weights of 4 bits": rounded(4),
        "mismatch 10 %": mismatched(net),
        "8 bits and mismatch": mismatched(rounded(8)),
        "4 bits and mismatch": mismatched(rounded(4)),
    }


def main(
    data_dir: Annotated[Path, typer.Option(help="Directory that holds MNIST/raw.")] = Path("data"),
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 3,
    seeds: Annotated[int, typer.Option(help="Seeds of each.")] = 1,
    only: Annotated[str, typer.Option(help="Only limits whose name has this in it; 'BPTT' for that.")] = "",
    results: Annotated[Path, typer.Option(help="Where the rows go.")] = RESULTS,
) -> None:
    """Trains what is not in the table yet."""
    data = ep.MNISTDataModule(data_dir, validation="test")
    for seed in range(seeds):
        for limit, task in EP.items():
            if only in limit and ("EP", limit, seed, epochs) not in written(results):
                start = time()
                error = trained(task(made(seed)), data, epochs)
                add(results, "EP", limit, seed, epochs, error, time() - start)
        if only in ("", "BPTT") and ("BPTT", "none", seed, epochs) not in written(results):
            start, net = time(), made(seed, leak=0.9)  # the rates that EP settles at do not depend on the leak
            task = ep.BPTTLightningModule(net, num_steps=25, optimizer=optimizer, schedule="cosine")
            trained(task, data, epochs)
            for limit, own in after_bptt(net).items():
                found = validated(ep.BPTTLightningModule(own, num_steps=25), data)
                add(results, "BPTT", limit, seed, epochs, found, time() - start)
                start = time()  # the others are not trained again


def made(seed: int, leak: float = 0.5) -> nn.Module:
    L.seed_everything(seed, verbose=False)
    return ep.models.convolutional_2c2fc(
        hidden=256, gain=2.0, normalize=(0.1307, 0.3081), centered=True, pooling="average", leak=leak
    )


def trainer(epochs: int) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(max_epochs=epochs, enable_checkpointing=False, num_sanity_val_steps=0, accelerator="cpu", **quiet)


def trained(task: L.LightningModule, data: L.LightningDataModule, epochs: int) -> float:
    """The test error after the last epoch, in per cent."""
    run = trainer(epochs)
    run.fit(task, data)
    return 100 * (1 - run.callback_metrics["val/accuracy"].item())


def validated(task: L.LightningModule, data: L.LightningDataModule) -> float:
    run = trainer(1)
    run.validate(task, data, verbose=False)
    return 100 * (1 - run.callback_metrics["val/accuracy"].item())


def written(results: Path) -> set[tuple[str, str, int, int]]:
    if not results.exists():
        return set()
    with results.open() as file:
        return {(r["rule"], r["limit"], int(r["seed"]), int(r["epochs"])) for r in csv.DictReader(file)}


def add(results: Path, rule: str, limit: str, seed: int, epochs: int, error: float, seconds: float) -> None:
    """A line of the table, when it has been measured; its seconds are those of training and testing."""
    row = {"rule": rule, "limit": limit, "seed": seed, "epochs": epochs}
    row |= {"error": f"{error:.2f}", "seconds": f"{seconds:.2f}", **origin()}
    print(row, flush=True)
    is_new = not results.exists()
    with results.open("a", newline="") as file:
        table = csv.DictWriter(file, list(row), lineterminator="\n")
        if is_new:
            table.writeheader()
        table.writerow(row)


if __name__ == "__main__":
    typer.run(main)
