"""Figures of the dynamics and of the gradients, each by one command:

    python examples/figures.py agreement --data-dir DATA

`agreement`, `pooling`, `memory`, `energy`, `raster` and `curves`; the pictures, and the numbers in them, go to
examples/results/.
"""

import copy
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pandas as pd
import snntorch as snn
import torch
import torch.nn.functional as F
import typer
from matplotlib.figure import Figure
from norse import torch as norse
from torch import Tensor, nn

import ep_plugin as ep
from ep_plugin.models import convolutional_2c2fc

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
DataDir = Annotated[Path, typer.Option(help="Directory that holds MNIST/raw.")]
OutputDir = Annotated[Path, typer.Option(help="Where the picture and its numbers go.")]
RESULTS = Path(__file__).parent / "results"
ENCODERS = {"graded": "graded", "sigma_delta": "sigma-delta", "predictive": "predictive"}
LAYERS = {
    "stem.0.weight": "conv 1",
    "connections.0.module.0.weight": "conv 2",
    "connections.1.module.1.weight": "linear",
    "readout.0.weight": "readout",
}
COLOURS = ["#4c72b0", "#dd8452", "#55a868", "#c44e52"]


def network(encoder: str = "predictive", pooling: str = "average") -> ep.ConvergentNetwork:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the conversion changes
        return ep.convert(convolutional_2c2fc(gain=2.0, pooling=pooling), encoder=encoder, pooling="keep")


def batches(data: ep.MNISTDataModule, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    data.setup()
    for _, batch in zip(range(count), data.train_dataloader(), strict=False):
        yield batch


def train(model: ep.ConvergentNetwork, data: ep.MNISTDataModule, count: int = 200) -> Iterator[int]:
    """Trains for so many batches; yields the number of each when it is done."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for n, (x, y) in enumerate(batches(data, count), start=1):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield n


def trained(data: ep.MNISTDataModule) -> ep.ConvergentNetwork:
    model = network()
    for _ in train(model, data):
        pass
    return model


def cosines(model: ep.ConvergentNetwork, reference: ep.ConvergentNetwork, images: list) -> dict[str, float]:
    """Cosine of each layer's gradient over all the images."""
    parameters = dict(model.named_parameters())
    wanted = [parameters[name] for name in LAYERS]
    sums = []
    for network in (model, reference):
        own = [torch.autograd.grad(F.cross_entropy(network(x), y), wanted) for x, y in images]
        sums.append([sum(g) for g in zip(*own, strict=True)])
    return {
        label: F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()
        for label, a, b in zip(LAYERS.values(), *sums, strict=True)
    }


def with_settings(
    model: ep.ConvergentNetwork, encoder: str, steps: int = 15, gradient: ep.EquilibriumPropagation | None = None
) -> tuple[ep.ConvergentNetwork, ep.ConvergentNetwork]:
    """The model with EP, and with BPTT through the same free phase."""
    settled = copy.copy(model)
    settled.encoder, settled.relaxation = encoder, ep.Relaxation(steps)
    settled.gradient = gradient or ep.EquilibriumPropagation(steps=-(-steps // 2))
    reference = copy.copy(settled)
    reference.gradient = ep.BackpropThroughTime()
    return settled, reference


def finish(figure: Figure, axes: list, rows: list[dict], output_dir: Path, name: str) -> None:
    for one in axes:
        one.grid(alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    output_dir.mkdir(parents=True, exist_ok=True)
    if rows:
        pd.DataFrame(rows).round(5).to_csv(output_dir / f"{name}.csv", index=False)
    figure.savefig(output_dir / f"{name}.png", dpi=120)
    print(f"wrote {output_dir / name}.png")


@app.command()
def agreement(data_dir: DataDir = Path("data"), output_dir: OutputDir = RESULTS) -> None:
    """EP's gradient against BPTT through the same dynamics, over time and over beta."""
    data = ep.MNISTDataModule(data_dir)
    model = trained(data)
    images = list(batches(ep.MNISTDataModule(data_dir, seed=1), 8))
    rows = []
    for encoder in ENCODERS:
        for steps in (4, 8, 15, 30, 60):
            found = cosines(*with_settings(model, encoder, steps), images)
            rows += [
                {"over": "steps", "encoder": encoder, "at": steps, "layer": l, "cosine": c} for l, c in found.items()
            ]
        for beta in (0.03, 0.1, 0.3, 1.0, 3.0, 10.0):
            found = cosines(*with_settings(model, encoder, 30, ep.EquilibriumPropagation(beta, 15)), images)
            rows += [
                {"over": "beta", "encoder": encoder, "at": beta, "layer": l, "cosine": c} for l, c in found.items()
            ]
        print(encoder, "done", flush=True)
    table = pd.DataFrame(rows)
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharey=True)
    for row, (over, label) in enumerate(
        {"steps": "free steps (half as many nudged, beta 5)", "beta": "beta (30 free, 15 nudged steps)"}.items()
    ):
        for axis, encoder in zip(axes[row], ENCODERS, strict=True):
            own = table[(table.over == over) & (table.encoder == encoder)]
            for colour, layer in zip(COLOURS, LAYERS.values(), strict=True):
                line = own[own.layer == layer]
                axis.plot(line["at"], line.cosine, color=colour, marker="o", markersize=3.5, label=layer)
            axis.set(xscale="log", xlabel=label, ylim=(min(0.5, table.cosine.min()), 1.02))
            axis.set_xticks(own["at"].unique(), [f"{at:g}" for at in own["at"].unique()])
            axis.minorticks_off()
            axis.set_title(ENCODERS[encoder], fontsize=10)
        axes[row][0].set_ylabel("cosine with BPTT through\nthe same dynamics")
    axes[0][0].legend(frameon=False, fontsize=8, loc="lower right")
    finish(figure, list(axes.flat), rows, output_dir, "agreement")


@app.command()
def pooling(data_dir: DataDir = Path("data"), output_dir: OutputDir = RESULTS) -> None:
    """Average against max pooling between neurons: a training curve, and the gradients along it."""
    images = list(batches(ep.MNISTDataModule(data_dir, seed=1), 4))
    data = ep.MNISTDataModule(data_dir)
    _, (x_test, y_test) = data.load()
    curve, gradients = [], []
    for encoder in ("graded", "predictive"):
        for pool in ("average", "max"):
            model = network(encoder, pool)
            for n in train(model, ep.MNISTDataModule(data_dir), 200):
                if n % 25 == 0:
                    with torch.no_grad():
                        wrong = sum(
                            (model(x).argmax(1) != y).sum().item()
                            for x, y in zip(x_test[:2000].split(250), y_test[:2000].split(250), strict=True)
                        )
                    curve.append({"encoder": encoder, "pooling": pool, "batch": n, "error": wrong / 20})
            found = cosines(*with_settings(model, encoder, 30), images)
            gradients += [{"encoder": encoder, "pooling": pool, "layer": l, "cosine": c} for l, c in found.items()]
            print(encoder, pool, curve[-1]["error"], found, flush=True)
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = {"graded": "--", "predictive": "-"}
    colours = {"average": COLOURS[0], "max": COLOURS[3]}
    lines, bars = pd.DataFrame(curve), pd.DataFrame(gradients)
    for (encoder, pool), own in lines.groupby(["encoder", "pooling"]):
        left.plot(own.batch, own.error, styles[encoder], color=colours[pool], label=f"{encoder}, {pool} pooling")
    left.set(xlabel="batches of 64", ylabel="error on 2,000 test images (%)", yscale="log")
    left.minorticks_off()
    left.set_yticks([3, 5, 10, 20], ["3", "5", "10", "20"])
    left.legend(frameon=False, fontsize=8)
    for k, ((encoder, pool), own) in enumerate(bars.groupby(["encoder", "pooling"])):
        places = [l + 0.2 * k - 0.3 for l in range(len(LAYERS))]
        right.bar(places, own.cosine, 0.18, color=colours[pool], alpha=1 if encoder == "predictive" else 0.45,
                  label=f"{encoder}, {pool}")  # fmt: skip
    right.set_xticks(range(len(LAYERS)), LAYERS.values())
    right.set(ylabel="cosine with BPTT through the same dynamics", ylim=(min(0, bars.cosine.min()), 1.3))
    right.legend(frameon=False, fontsize=8, ncols=2, loc="upper left")
    rows = [{"what": "error", **r} for r in curve] + [{"what": "cosine", **r} for r in gradients]
    finish(figure, [left, right], rows, output_dir, "pooling")


METHODS = {"EP": COLOURS[3], "BPTT, same dynamics": COLOURS[1], "BPTT, snnTorch": COLOURS[0]}
PEAK = """
import sys, warnings; warnings.simplefilter("ignore")
import torch, torch.nn.functional as F, ep_plugin as ep
from snntorch import utils
from ep_plugin.comparison import _peak, _reset_peak
from ep_plugin.models import convolutional_2c2fc
method, steps = sys.argv[1], int(sys.argv[2])
net, x, y = convolutional_2c2fc(), torch.rand(64, 1, 28, 28), torch.randint(10, (64,))
model = ep.convert(net, relaxation=ep.Relaxation(steps), gradient=ep.EquilibriumPropagation(steps=-(-steps // 2)))
if method == "BPTT, same dynamics":
    model.gradient = ep.BackpropThroughTime()
start = _reset_peak()
if method == "BPTT, snnTorch":
    utils.reset(net)
    output = torch.stack([net(x) for _ in range(steps)]).mean(0)
else:
    output = model(x)
F.cross_entropy(output, y).backward()
print(_peak() - start)
"""


@app.command()
def memory(output_dir: OutputDir = RESULTS) -> None:
    """Peak memory of a training step against the number of steps, each in a process of its own."""
    rows = []
    for method in METHODS:
        for steps in (5, 10, 25, 50, 100):
            done = subprocess.run(
                [sys.executable, "-c", PEAK, method, str(steps)], capture_output=True, text=True, check=True
            )
            rows.append({"method": method, "steps": steps, "peak_mb": float(done.stdout)})
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    table = pd.DataFrame(rows)
    for method, colour in METHODS.items():
        own = table[table.method == method]
        axis.plot(own.steps, own.peak_mb, color=colour, marker="o", label=method)
    axis.set(xlabel="time steps (EP: free steps, half as many nudged)", ylabel="peak memory above the start (MB)",
             xscale="log", yscale="log", title="2C2FC, a training step of 64 images")  # fmt: skip
    axis.set_xticks(table.steps.unique(), table.steps.unique(), minor=False)
    axis.set_yticks([50, 100, 200, 500, 1000], [50, 100, 200, 500, 1000])
    axis.minorticks_off()
    axis.legend(frameon=False)
    finish(figure, [axis], rows, output_dir, "memory")


@app.command()
def energy(data_dir: DataDir = Path("data"), output_dir: OutputDir = RESULTS) -> None:
    """Energy and residual of graded and spiking states over a free and the two nudged phases."""
    data = ep.MNISTDataModule(data_dir)
    model = trained(data).double()  # the last of the energy's fall is below float32's rounding
    x, y = next(iter(batches(ep.MNISTDataModule(data_dir, seed=1), 1)))
    x = x.double()
    free_steps, nudged_steps = 30, 15
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = []
    for encoder in ("graded", "predictive"):
        model.encoder = encoder
        with torch.no_grad():
            values, dynamics = model._values(x), model.dynamics()
            ready, neurons = dynamics.prepared(values), dynamics.rest(values)
            neurons = run(encoder, "free", dynamics, values, ready, neurons, None, 0, free_steps, rows)
        output = neurons[-1].membrane.clone().requires_grad_()
        loss = F.cross_entropy(model.readout(output), y, reduction="sum")
        direction = F.normalize(torch.autograd.grad(loss, output)[0], dim=1)
        for phase, sign in {"nudged by +beta": -1.0, "nudged by -beta": 1.0}.items():
            with torch.no_grad():
                run(encoder, phase, dynamics, values, ready, neurons, sign * model.gradient.beta * direction,
                    free_steps, nudged_steps, rows)  # fmt: skip
    table = pd.DataFrame(rows)
    lowest = table.energy.min()
    for encoder, style in {"graded": "-", "predictive": ":"}.items():
        for colour, (phase, own) in zip(COLOURS, table[table.encoder == encoder].groupby("phase"), strict=False):
            left.plot(own.step, (own.energy - lowest).clip(lower=1e-9), style, color=colour)
            right.plot(own.step, own.residual, style, color=colour, label=f"{encoder}, {phase}")
    left.set(xlabel="step", ylabel="energy above the lowest (mean of samples,\nwithout the cost)", yscale="log")
    right.set(xlabel="step", ylabel="mean of the largest change of a state", yscale="log")
    right.legend(frameon=False, fontsize=8, loc="lower left")
    finish(figure, [left, right], rows, output_dir, "energy")


def run(encoder, phase, dynamics, values, ready, neurons, force, time, steps, rows):
    """Steps of a phase, each recorded."""
    for step in range(time + 1, time + steps + 1):
        before, (neurons, _) = neurons, dynamics.sweep(neurons, ready, step, force)
        states = [n.membrane for n in neurons]
        change = torch.stack(
            [(n.membrane - b.membrane).abs().flatten(1).amax(1) for n, b in zip(neurons, before, strict=True)]
        )
        rows.append({
            "encoder": encoder, "phase": phase, "step": step,
            "energy": dynamics.energy(states, values).mean().item(), "residual": change.amax(0).mean().item(),
        })  # fmt: skip
    return neurons


@app.command()
def raster(
    data_dir: DataDir = Path("data"), output_dir: OutputDir = RESULTS, image: int = 0, neurons: int = 50
) -> None:
    """Spikes of one inference: some neurons of every layer, and what the readout makes of their traces."""
    model = ep.pretrained("mnist-2c2fc")
    _, (x, y) = ep.MNISTDataModule(data_dir).load()
    steps = 2 * model.relaxation.steps
    with torch.no_grad():
        values, dynamics = model._values(x[image : image + 1]), model.dynamics()
        ready, states = dynamics.prepared(values), dynamics.rest(values)
        fired, scores = [], []
        for step in range(1, steps + 1):
            states, spikes = dynamics.sweep(states, ready, step)
            fired.append([s.flatten() for s in spikes])
            scores.append(model.readout(states[-1].trace).softmax(1)[0])
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 5, width_ratios=[0.8, 1, 1, 1, 1.2])
    axes[0].imshow(x[image, 0], cmap="gray_r")
    axes[0].set(xticks=[], yticks=[], title=f"test image {image}: a {y[image].item()}")
    generator = torch.Generator().manual_seed(0)
    for l, axis in enumerate(axes[1:4]):
        layer = torch.stack([f[l] for f in fired])
        active = layer.sum(0).nonzero().flatten()
        shown = active[torch.randperm(len(active), generator=generator)[:neurons]]
        at, which = layer[:, shown].nonzero(as_tuple=True)
        axis.scatter(at + 1, which, s=6, marker="|", color="black")
        axis.set(xlabel="step", yticks=[], xlim=(0, steps + 1))
        axis.set_title(
            f"layer {l}: {layer.sum():.0f} spikes,\n{len(active)} of {layer.shape[1]} neurons fire", fontsize=9
        )
    for k, line in enumerate(torch.stack(scores).T):
        axes[4].plot(range(1, steps + 1), line, color=COLOURS[3] if k == y[image] else "0.7")
    axes[4].set(xlabel="step", ylabel="probability of each class", ylim=(0, 1.02))
    finish(figure, [axes[4]], [], output_dir, "raster")


def rates(neuron: nn.Module, current: Tensor, steps: int = 1000) -> Tensor:
    """How often each of the neurons fires in a step, under a steady current `[N, 1]`."""
    state, total = None, torch.zeros_like(current)
    for _ in range(steps):
        if type(neuron).__module__.startswith("norse"):
            spikes, state = neuron(current, state)
        else:
            spikes = neuron(current)
        total += spikes
    return total / steps


@app.command()
@torch.no_grad()
def curves(output_dir: OutputDir = RESULTS) -> None:
    """Steady rates of the originals beside the equilibria of the converted neurons."""
    hidden = {"init_hidden": True}
    neurons = {
        "Leaky, beta = 1 (integrate and fire)": snn.Leaky(beta=1.0, reset_delay=False, **hidden),
        "Leaky, beta = 0.9": snn.Leaky(beta=0.9, **hidden),
        "Leaky, beta = 0.5": snn.Leaky(beta=0.5, **hidden),
        "Leaky, beta = 0.9, reset to zero": snn.Leaky(beta=0.9, reset_mechanism="zero", **hidden),
        "Synaptic, alpha = 0.5, beta = 0.9": snn.Synaptic(alpha=0.5, beta=0.9, **hidden),
        "Norse IAFCell": norse.IAFCell(),
        "Norse LIFBoxCell": norse.LIFBoxCell(),
        "Norse LIFCell": norse.LIFCell(),
    }
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = list(figure.subplots(2, 4, sharex=True, sharey=True).flat)
    current, rows = torch.linspace(0, 1.5, 61).unsqueeze(1), []
    for axis, (name, neuron) in zip(axes, neurons.items(), strict=True):
        linear = nn.Linear(1, 1, bias=False)
        linear.weight.fill_(1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the conversion changes
            model = ep.convert(nn.Sequential(linear, neuron), encoder="graded")
        settled = model.relax(current).states[0]
        # In units of the current at which the converted neuron saturates.
        drive = current * (settled[1] / current[1])
        own = rates(neuron, current)
        axis.plot(drive, own, color=COLOURS[0], label="original's rate")
        axis.plot(drive, settled, "--", color=COLOURS[3], label="converted")
        axis.set_title(name, fontsize=9)
        axis.set(xlim=(0, 1.5))
        rows += [
            {"neuron": name, "drive": d.item(), "rate": o.item(), "equilibrium": s.item()}
            for d, o, s in zip(drive, own, settled, strict=True)
        ]
    for axis in axes[4:]:
        axis.set_xlabel("steady drive over threshold")
    for axis in axes[::4]:
        axis.set_ylabel("spikes a step")
    axes[0].legend(frameon=False, fontsize=8)
    finish(figure, axes, rows, output_dir, "curves")


if __name__ == "__main__":
    app()
