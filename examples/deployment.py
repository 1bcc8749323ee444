"""Test errors of the trained networks as plain snnTorch and Norse nets, over the number of steps:

    python examples/deployment.py --data-dir DATA

The picture, and the numbers in it, go to examples/results/.
"""

import warnings
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from matplotlib.figure import Figure
from torch import Tensor, nn

import ep_plugin as ep
from ep_plugin.files import origin, whole
from ep_plugin.progress import track

RESULTS = Path(__file__).parent / "results"
NETWORKS = {
    "mnist-2c2fc-max": ep.MNISTDataModule,
    "fashion-mnist-2c2fc-max": ep.FashionMNISTDataModule,
    "mnist-vgg": ep.MNISTDataModule,
    "mnist-2c2fc": ep.MNISTDataModule,
    "fashion-mnist-2c2fc": ep.FashionMNISTDataModule,
}
STEPS = (1, 2, 4, 8, 16, 25, 50, 100)
FEEDBACK = "snnTorch with the feedback"
COLOURS = {
    "snnTorch": "#4c72b0",
    "Norse": "#dd8452",
    FEEDBACK: "#55a868",
    "snnTorch, membranes start at 0": "#8fb0d8",
}
ORIGINAL = "snnTorch, the original's loop (leak 0.5)"


def nets(model: ep.ConvergentNetwork, num_steps: int) -> dict[str, nn.Module]:
    """The network as plain nets that also return their spikes."""
    plain, uncharged, original = (ep.to_snntorch(model, num_steps, spikes=True) for _ in range(3))
    for net in (uncharged, original):
        for node in list(net.graph.nodes):
            if node.target is torch.ones_like:
                node.target = torch.zeros_like
        net.recompile()
    for lif in original.layers.children():
        lif.beta.fill_(0.5)
        lif.reset_delay = True
    norse = ep.to_norse(model, num_steps, spikes=True)
    return {"snnTorch": plain, "Norse": norse, "snnTorch, membranes start at 0": uncharged, ORIGINAL: original}


@torch.no_grad()
def errors(net: nn.Module, x: Tensor, y: Tensor, steps: list[int]) -> Tensor:
    """How many of the images are taken for something else after so many steps: all are read from one run."""
    spikes = net(x)[1][-1].cumsum(0)
    return torch.tensor([int((net.readout(spikes[t - 1] / t).argmax(1) != y).sum()) for t in steps])


def main(
    data_dir: Annotated[Path, typer.Option(help="Directory that holds MNIST/raw and FashionMNIST/raw.")] = Path("data"),
    output_dir: Annotated[Path, typer.Option(help="Where the picture and its numbers go.")] = RESULTS,
    most: Annotated[int, typer.Option(help="Steps of the longest loop.")] = STEPS[-1],
) -> None:
    """Measures all test images."""
    rows: list[dict] = []
    for name, kind in NETWORKS.items():
        model, data = ep.pretrained(name), kind(data_dir, batch_size=100)
        data.setup()
        settled, seen = 0, 0
        steps = [t for t in STEPS if t <= most]
        short = [t for t in steps if t <= 25]
        loops = {
            **{loop: (net, steps) for loop, net in nets(model, steps[-1]).items() if loop in ("snnTorch", "Norse")},
            **{loop: (net, short) for loop, net in nets(model, short[-1]).items() if "," in loop},
        }
        # Its readout leaves out the first quarter, so that every length is a net of its own.
        longer = [t for t in short if t >= 4]
        through = {t: ep.to_snntorch(model, t, feedback=True, input_shape=(1, 28, 28)) for t in longer}
        wrong = {loop: torch.zeros(len(own)) for loop, (_, own) in loops.items()}
        wrong[FEEDBACK] = torch.zeros(len(longer))
        for x, y in track(data.test_dataloader(), name):
            with torch.no_grad():
                settled += int((model(x).argmax(1) != y).sum())
                found = [int((net(x).argmax(1) != y).sum()) for net in through.values()]
            wrong[FEEDBACK] += torch.tensor(found)
            for loop, (net, own) in loops.items():
                wrong[loop] += errors(net, x, y, own)
            seen += len(x)
        rows.append({"network": name, "loop": "settled", "steps": None, "test_error": 100 * settled / seen})
        for loop, own in [*((loop, own) for loop, (_, own) in loops.items()), (FEEDBACK, longer)]:
            rows += [
                {"network": name, "loop": loop, "steps": t, "test_error": 100 * float(n) / seen}
                for t, n in zip(own, wrong[loop], strict=True)
            ]
        print(pd.DataFrame(rows).to_string(), flush=True)
        output_dir.mkdir(parents=True, exist_ok=True)
        told = {"steps_of_the_longest": most, **origin()}
        with whole(output_dir / "deployment.csv") as part:
            pd.DataFrame([row | told for row in rows]).to_csv(part, index=False, float_format="%.5g")
    picture(pd.DataFrame(rows), output_dir)


def picture(table: pd.DataFrame, output_dir: Path) -> None:
    """Test error over steps, a panel a network."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axis, (name, own) in zip(figure.subplots(1, len(NETWORKS)), table.groupby("network", sort=False), strict=True):
        settled = own[own.loop == "settled"].test_error.item()
        axis.axhline(settled, color="#c44e52", linestyle="--", linewidth=1.2, label=f"settled: {settled:.2f} %")
        for loop, colour in COLOURS.items():
            line = own[own.loop == loop]
            style = "--" if loop == "Norse" else "-"  # it fires the same spikes
            width = 3 if loop == "snnTorch" else 1.5
            axis.plot(line.steps, line.test_error, style, color=colour, marker="o", markersize=4, lw=width, label=loop)
        original = own[(own.loop == ORIGINAL)].iloc[-1]
        axis.set(title=name, xlabel="steps of the loop", ylabel="test error (%)", xscale="log", ylim=(0, 2.6 * settled))
        measured = sorted({int(t) for t in own.steps.dropna()})
        axis.set_xticks(measured, [str(t) for t in measured])
        axis.minorticks_off()
        note = f"the original's loop, leak 0.5:\n{original.test_error:.1f} % at {original.steps:.0f} steps"
        axis.text(0.98, 0.03, note, transform=axis.transAxes, ha="right", va="bottom", fontsize=8)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    with whole(output_dir / "deployment.png") as part:
        figure.savefig(part, dpi=120)
    print("wrote deployment.png")


if __name__ == "__main__":
    warnings.simplefilter("ignore", ep.ConversionWarning)
    typer.run(main)
