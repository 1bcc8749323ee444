"""Gradients of the trained networks, beside those of the settled network and of feedforward backpropagation:

    python examples/gradients.py --data-dir DATA

The cosines, weight by weight, go to examples/results/gradients.csv.
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from figure_networks import Samples, cosines, gradients

import ep_plugin as ep
from ep_plugin.files import origin, whole
from ep_plugin.trained import PRETRAINED

RESULTS = Path(__file__).parent / "results"
FEEDBACKS = (0.02, 0.01)


def settled(model: ep.ConvergentNetwork) -> ep.ConvergentNetwork:
    """Its gradient is the exact one of the network at equilibrium."""
    return model.variant(encoder="graded", relaxation=ep.Relaxation(40), estimator=ep.ImplicitDifferentiation())


def feedforward(model: ep.ConvergentNetwork) -> ep.ConvergentNetwork:
    """Backpropagation: one step of graded neurons from rest feeds nothing back, so the net is one of clips."""
    return model.variant(encoder="graded", relaxation=ep.Relaxation(1), estimator=ep.BackpropThroughTime())


def test_images(data: ep.ImageFolderDataModule | ep.MNISTDataModule, number: int) -> Samples:
    """So many of the test images, the same in every run."""
    x, y = data.stored()[1]
    drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:number]
    return [(x[some] / 255, y[some]) for some in drawn.split(128)]


def main(
    data_dir: Annotated[Path, typer.Option(help="Directory of the images, as torchvision keeps it.")] = Path("data"),
    folders: Annotated[Path | None, typer.Option(help="Where CIFAR-10 lies as train/CLASS and test/CLASS.")] = None,
    images: Annotated[int, typer.Option(help="Test images over which gradients are summed.")] = 1024,
    only: Annotated[list[str] | None, typer.Option(help="Networks to measure; the others' rows stay.")] = None,
    output_dir: Annotated[Path, typer.Option(help="Where the numbers go.")] = RESULTS,
) -> None:
    """Measures, at the feedback that a network was trained with and at others."""
    path = output_dir / "gradients.csv"
    for name in only or PRETRAINED:
        module, (channels, *size) = PRETRAINED[name]
        if channels == 3 and folders is not None:
            data = ep.ImageFolderDataModule(folders, size, channels)
        else:
            data = getattr(ep, module)(data_dir)
        rows = pd.DataFrame(cosines_of(ep.pretrained(name), test_images(data, images)))
        rows = rows.assign(network=name, images=images, **origin())
        kept = pd.read_csv(path) if path.exists() else rows[:0]
        with whole(path) as part:
            pd.concat([kept[kept.network != name], rows]).to_csv(part, index=False, float_format="%.4g")
        print(name, rows.groupby(["feedback", "reference"]).cosine.agg(["min", "max"]), sep="\n", flush=True)


def cosines_of(model: ep.ConvergentNetwork, images: Samples) -> list[dict]:
    """Of every weight: at its own feedback with both references, at another with backpropagation alone."""
    weights = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    backward = gradients(feedforward(model), weights, images)
    references = {(model.feedback, "settled"): gradients(settled(model), weights, images)}
    references |= {(feedback, "feedforward"): backward for feedback in (model.feedback, *FEEDBACKS)}
    rows = []
    for (feedback, reference), wanted in references.items():
        found = gradients(model.variant(feedback=feedback), weights, images)
        rows += [
            {"feedback": feedback, "reference": reference, "weight": weight, "cosine": cosine}
            for weight, cosine in zip(weights, cosines(found, wanted), strict=True)
        ]
    return rows


if __name__ == "__main__":
    typer.run(main)
