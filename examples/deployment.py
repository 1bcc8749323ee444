"""Test errors of the trained networks as plain snnTorch and Norse nets, over the number of steps:

    python examples/deployment.py --data-dir DATA

The picture, and the numbers in it, go to examples/results/.
"""

import json
import re
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
NETWORKS = {  # name -> its images, and the recipe that it was trained by
    "mnist-2c2fc-max": (ep.MNISTDataModule, "mnist-2c2fc-max"),
    "fashion-mnist-2c2fc-max": (ep.FashionMNISTDataModule, "fashion-2c2fc-max"),
    "mnist-vgg": (ep.MNISTDataModule, "mnist-vgg"),
    "mnist-2c2fc": (ep.MNISTDataModule, "mnist-2c2fc-average"),
    "fashion-mnist-2c2fc": (ep.FashionMNISTDataModule, "fashion-2c2fc-average"),
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
    only: Annotated[list[str] | None, typer.Option(help="Networks to measure; the others' rows stay.")] = None,
    redraw: Annotated[bool, typer.Option("--redraw", help="Only draw what has been measured.")] = False,
) -> None:
    """Measures all test images."""
    path = output_dir / "deployment.csv"
    output_dir.mkdir(parents=True, exist_ok=True)
    for name in [] if redraw else only or NETWORKS:
        measured = pd.DataFrame(rows(name, data_dir, most)).assign(steps_of_the_longest=most, **origin())
        kept = pd.read_csv(path) if path.exists() else measured[:0]
        table = pd.concat([kept[kept.network != name], measured])
        with whole(path) as part:
            table.to_csv(part, index=False, float_format="%.5g")
        print(measured[["network", "loop", "steps", "test_error"]].to_string(), flush=True)
    with whole(output_dir / "deployment.png") as part:
        picture(pd.read_csv(path)).savefig(part, dpi=120)
    print("wrote deployment.png")


def rows(name: str, data_dir: Path, most: int) -> list[dict]:
    """Test error of the settled network and of its plain nets."""
    model, data = ep.pretrained(name), NETWORKS[name][0](data_dir, batch_size=50)
    data.setup()
    settled, seen = 0, 0
    steps = [t for t in STEPS if t <= most]
    short = [t for t in steps if t <= 25]
    loops = {
        loop: (net, own)
        for own, wanted in ((steps, ("snnTorch",)), (short, (*tuple(COLOURS)[1:], ORIGINAL)))
        for loop, net in nets(model, own[-1]).items()
        if loop in wanted
    }
    through = with_feedback(model, [t for t in short if t >= 4])
    wrong = {loop: torch.zeros(len(own)) for loop, (_, own) in loops.items()}
    back = torch.zeros(len(through))
    for x, y in track(data.test_dataloader(), name):
        with torch.no_grad():
            settled += int((model(x).argmax(1) != y).sum())
            back += torch.tensor([int((net(x).argmax(1) != y).sum()) for net in through.values()])
        for loop, (net, own) in loops.items():
            wrong[loop] += errors(net, x, y, own)
        seen += len(x)
    found = [("settled", None, settled)]
    found += [(loop, t, n) for loop, (_, own) in loops.items() for t, n in zip(own, wrong[loop].tolist(), strict=True)]
    found += [(FEEDBACK, t, n) for t, n in zip(through, back.tolist(), strict=True)]
    return [{"network": name, "loop": l, "steps": t, "test_error": 100 * n / seen} for l, t, n in found]


def with_feedback(model: ep.ConvergentNetwork, steps: list[int]) -> dict[int, nn.Module]:
    """The plain nets that have the feedback too. Their readout leaves out the first quarter of the steps, so that every
    length is a separate net. None of a net with max pooling, or deeper than three layers, where it would take long."""
    if len(model.layers) > 3 or not all(c.is_linear for c in model.connections):
        return {}
    return {t: ep.to_snntorch(model, t, feedback=True, input_shape=(1, 28, 28)) for t in steps}


def bptt(name: str, results: Path) -> tuple[int, float] | None:
    """Steps and mean test error of the same net trained by BPTT, if that was recorded."""
    recipe = f"{NETWORKS[name][1]}-bptt-snntorch"
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    ends = [r for r in lines if r["name"] == recipe and r["epoch"] == r["epochs"] and r["watched"] == "test"]
    if not ends:
        return None
    return int(re.findall(r"\d+", ends[-1]["estimator"])[0]), sum(r["error"] for r in ends) / len(ends)


def picture(table: pd.DataFrame, results: Path = RESULTS / "results.jsonl") -> Figure:
    """Test error over steps, a panel per network."""
    names = [name for name in NETWORKS if (table.network == name).any()]
    figure = Figure(figsize=(11, 3.6 * -(-len(names) // 3)), layout="constrained")
    for k, name in enumerate(names):
        axis, own = figure.add_subplot(-(-len(names) // 3), 3, k + 1), table[table.network == name]
        settled = own[own.loop == "settled"].test_error.item()
        axis.axhline(settled, color="#c44e52", linestyle="--", linewidth=1.2, label=f"settled: {settled:.2f} %")
        for loop, colour in COLOURS.items():
            line = own[own.loop == loop]
            if line.empty:
                continue
            style = "--" if loop == "Norse" else "-"  # it fires the same spikes
            width = 3 if loop == "snnTorch" else 1.5
            axis.plot(line.steps, line.test_error, style, color=colour, marker="o", markersize=4, lw=width, label=loop)
        if found := bptt(name, results):
            axis.plot(*found, "D", color="#8172b3", label=f"trained by BPTT: {found[1]:.2f} %")
        axis.set(title=name, xlabel="steps of the loop", ylabel="test error (%)", xscale="log", ylim=(0, 3 * settled))
        measured = sorted({int(t) for t in own.steps.dropna()})
        axis.set_xticks(measured, [str(t) for t in measured])
        axis.minorticks_off()
        original = own[own.loop == ORIGINAL].iloc[-1]
        note = f"the original's loop, leak 0.5:\n{original.test_error:.1f} % at {original.steps:.0f} steps"
        axis.text(0.98, 0.03, note, transform=axis.transAxes, ha="right", va="bottom", fontsize=8)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="upper right", frameon=False, fontsize=7)
    return figure


if __name__ == "__main__":
    warnings.simplefilter("ignore", ep.ConversionWarning)
    typer.run(main)
