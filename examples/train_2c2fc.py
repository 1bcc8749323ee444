"""Trains a spiking 2C2FC net by equilibrium propagation in a plain PyTorch loop.

    python examples/train_2c2fc.py DATA_DIR --epochs 3 --output examples/results/mnist-membrane.json

It prints the test error after every epoch and writes it, with the settings and the environment, to
the output as soon as it is known. `--batches` stops an epoch early.
"""

import json
import platform
import time
import warnings
from itertools import islice
from pathlib import Path
from typing import Annotated

import snntorch as snn
import torch
import torch.nn.functional as F
import torchvision
import typer
from torch import Tensor, nn

import ep_plugin as ep


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 5), nn.AvgPool2d(2), snn.Leaky(beta=0.5)),
        *(nn.Conv2d(32, 64, 5), nn.AvgPool2d(2), snn.Leaky(beta=0.5)),
        *(nn.Flatten(), nn.Linear(1024, 256), snn.Leaky(beta=0.5)),
        nn.Linear(256, 10),
    )


@torch.no_grad()
def error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Test error in percent."""
    wrong = sum((model(a).argmax(1) != b).sum().item() for a, b in zip(x.split(500), y.split(500), strict=True))
    return 100 * wrong / len(x)


def main(
    data_dir: Annotated[Path, typer.Argument(help="Directory with MNIST/raw or FashionMNIST/raw.")],
    data: Annotated[str, typer.Option(help="MNIST or FashionMNIST.")] = "MNIST",
    epochs: Annotated[int, typer.Option(min=1)] = 3,
    batches: Annotated[int | None, typer.Option(help="Batches an epoch; default: all.", min=1)] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    learning_rate: float = 1e-3,
    encoder: str = "predictive",
    observe: str = "membrane",
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Products in bfloat16, by autocast.")] = False,
    seed: int = 0,
    output: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
) -> None:
    """Trains with Adam and cosine decay over all epochs; default settings of ep.convert otherwise."""
    torch.manual_seed(seed)
    dataset = getattr(torchvision.datasets, data)
    (x, y), (x_test, y_test) = (
        (d.data.float().div(255).unsqueeze(1), d.targets)
        for d in (dataset(data_dir, train=True), dataset(data_dir, train=False))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the note that leak and reset are replaced
        model = ep.convert(ep.initialize_(network()), encoder=encoder, observe=observe)
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    steps = min(batches or len(x), -(-len(x) // batch_size))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    record = {
        "data": data, "epochs": epochs, "batches": steps, "batch_size": batch_size, "seed": seed,
        "learning_rate": learning_rate, "encoder": encoder, "observe": observe, "bfloat16": bfloat16,
        "feedback": model.feedback, "relaxation": str(model.relaxation), "gradient": str(model.gradient),
        "environment": {
            "python": platform.python_version(), "torch": torch.__version__,
            "threads": torch.get_num_threads(), "machine": platform.machine(),
        },
        "test_error": [], "seconds": [],
    }  # fmt: skip
    start = time.perf_counter()
    for epoch in range(epochs):
        for batch in islice(torch.randperm(len(x)).split(batch_size), steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = F.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        record["test_error"].append(error(model, x_test, y_test))
        record["seconds"].append(time.perf_counter() - start)
        print(
            f"epoch {epoch + 1}: test error {record['test_error'][-1]:.2f} %, {record['seconds'][-1]:.0f} s",
            flush=True,
        )
        if output is not None:
            output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
