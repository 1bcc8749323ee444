"""Figures of the dynamics and of the gradients, each by one command:

    python examples/figures.py agreement --data-dir DATA

`agreement`, `pooling`, `memory`, `energy`, `raster` and `curves`; the pictures, and the numbers in them, go to
examples/results/.
"""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pandas as pd
import snntorch as snn
import torch
import torch.nn.functional as F
import typer
from figure_networks import (
    LAYERS,
    TOLD,
    batches,
    chain,
    converted,
    cosines,
    gradients,
    network,
    settled,
    telling,
    train,
    trained,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from norse import torch as norse
from torch import Tensor, nn

import ep_plugin as ep
from ep_plugin.files import origin, whole
from ep_plugin.progress import track

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
DataDir = Annotated[Path, typer.Option(help="Directory that holds MNIST/raw.")]
OutputDir = Annotated[Path, typer.Option(help="Where the picture and its numbers go.")]
Batches = Annotated[int, typer.Option(help="Batches of 64 images that a network is trained on.")]
Images = Annotated[int, typer.Option(help="Batches of 64 images over which gradients are compared.")]
RESULTS = Path(__file__).parent / "results"
# Free steps over which the figure of agreement goes. A step of events has three digits; one of full phases a spike.
STEPS = {"graded": (1, 2, 3, 4, 8, 15), "events": (1, 2, 3, 4, 8, 15), "full": (4, 8, 15, 30, 60)}
COLOURS = ["#4c72b0", "#dd8452", "#55a868", "#c44e52"]


def finish(figure: Figure, axes: list[Axes], rows: list[dict], output_dir: Path, name: str, **settings: int) -> None:
    for one in axes:
        one.grid(alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    output_dir.mkdir(parents=True, exist_ok=True)
    if rows:
        told = {"seed": 0, **settings, **origin()}
        with whole(output_dir / f"{name}.csv") as part:
            pd.DataFrame([row | told for row in rows]).to_csv(part, index=False, float_format="%.5g")
    with whole(output_dir / f"{name}.png") as part:
        figure.savefig(part, dpi=120)
    print(f"wrote {name}.png")


@app.command()
def agreement(
    data_dir: DataDir = Path("data"), output_dir: OutputDir = RESULTS, train_batches: Batches = 200, images: Images = 8
) -> None:
    """EP's gradient against BPTT through settled graded states: over steps, over beta and over depth."""
    seen = list(batches(ep.MNISTDataModule(data_dir, seed=1), images))
    rows: list[dict] = []
    model = trained(network(), ep.MNISTDataModule(data_dir), train_batches)
    for told in TOLD:
        reference = gradients(settled(telling(model, told)), LAYERS, seen)
        tried = [("steps", s, telling(model, told, s)) for s in STEPS[told]]
        tried += [("beta", b, telling(model, told, 30, b)) for b in (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)]
        for over, at, own in tried:
            found = cosines(gradients(own, LAYERS, seen), reference)
            rows += [
                {"over": over, "told": told, "at": at, "layer": l, "cosine": c}
                for l, c in zip(LAYERS.values(), found, strict=True)
            ]
        print(told, "done", flush=True)
    for hidden in (1, 3, 5, 8):
        model = trained(chain(hidden), ep.MNISTDataModule(data_dir), train_batches)
        names = [name for name, _ in model.named_parameters() if name.endswith("weight")]
        for told in TOLD:
            own = telling(model, told)
            found = cosines(gradients(own, names, seen), gradients(settled(own), names, seen))
            rows += [
                {"over": "depth", "told": told, "at": hidden, "layer": f"weight {k}", "cosine": c}
                for k, c in enumerate(found, start=1)
            ]
        print(hidden, "hidden layers done", flush=True)
    table = pd.DataFrame(rows)
    figure = Figure(figsize=(11, 8.5), layout="constrained")
    axes = figure.subplots(3, 3, sharey=True)
    labels = {
        "steps": "free steps, half as many nudged (rounded up)",
        "beta": "beta (30 free, 15 nudged steps)",
        "depth": "hidden layers (default steps)",
    }
    for row, (over, label) in zip(axes, labels.items(), strict=True):
        for axis, told in zip(row, TOLD, strict=True):
            own = table[(table.over == over) & (table.told == told)]
            if over == "depth":
                groups = own.groupby("at").cosine
                lines = {"first weight": groups.first(), "worst weight": groups.min()}
            else:
                lines = {l: own[own.layer == l].set_index("at").cosine for l in LAYERS.values()}
                axis.set(xscale="log")
            for colour, (name, line) in zip(COLOURS, lines.items(), strict=False):
                axis.plot(line.index, line, color=colour, marker="o", markersize=3.5, label=name)
            axis.set(xlabel=label, ylim=(min(-0.02, table.cosine.min() - 0.02), 1.03))
            axis.set_xticks(own["at"].unique(), [f"{at:g}" for at in own["at"].unique()])
            axis.minorticks_off()
            axis.set_title(TOLD[told], fontsize=10)
        row[0].set_ylabel("cosine with BPTT through\nsettled graded states")
        row[0].legend(frameon=False, fontsize=8, loc="lower right")
    finish(figure, list(axes.flat), rows, output_dir, "agreement", train_batches=train_batches, images=images)


@app.command()
def pooling(
    data_dir: DataDir = Path("data"), output_dir: OutputDir = RESULTS, train_batches: Batches = 100, images: Images = 4
) -> None:
    """Average against max pooling between neurons: a training curve, and the gradients at its end."""
    seen = list(batches(ep.MNISTDataModule(data_dir, seed=1), images))
    _, (x_test, y_test) = ep.MNISTDataModule(data_dir).load()
    curve, bars = [], []
    for told in ("events", "full"):
        for pool in ("average", "max"):
            model = network(told, pool)
            for n in train(model, ep.MNISTDataModule(data_dir), train_batches):
                if n % max(1, train_batches // 5) == 0:
                    with torch.no_grad():
                        wrong = sum(
                            (model(x).argmax(1) != y).sum().item()
                            for x, y in zip(x_test[:1000].split(250), y_test[:1000].split(250), strict=True)
                        )
                    curve.append({"told": told, "pooling": pool, "batch": n, "error": wrong / 10})
            found = cosines(gradients(model, LAYERS, seen), gradients(settled(model), LAYERS, seen))
            bars += [
                {"told": told, "pooling": pool, "layer": l, "cosine": c}
                for l, c in zip(LAYERS.values(), found, strict=True)
            ]
            print(told, pool, curve[-1]["error"], found, flush=True)
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles, colours = {"events": "-", "full": "--"}, {"average": COLOURS[0], "max": COLOURS[3]}
    for (told, pool), own in pd.DataFrame(curve).groupby(["told", "pooling"]):
        left.plot(own.batch, own.error, styles[told], color=colours[pool], label=f"{TOLD[told]}, {pool}")
    left.set(xlabel="batches of 64", ylabel="error on 1,000 test images (%)", yscale="log")
    left.minorticks_off()
    left.set_yticks([3, 5, 10, 20, 50], ["3", "5", "10", "20", "50"])
    left.legend(frameon=False, fontsize=8)
    for k, ((told, pool), own) in enumerate(pd.DataFrame(bars).groupby(["told", "pooling"])):
        places = [l + 0.2 * k - 0.3 for l in range(len(LAYERS))]
        right.bar(places, own.cosine, 0.18, color=colours[pool], alpha=1 if told == "events" else 0.45,
                  label=f"{TOLD[told]}, {pool}")  # fmt: skip
    right.set_xticks(range(len(LAYERS)), LAYERS.values())
    lowest = min(0, *(b["cosine"] for b in bars))
    right.set(ylabel="cosine with BPTT through\nsettled graded states", ylim=(lowest, 1.5))
    right.set_yticks([0, 0.25, 0.5, 0.75, 1])
    right.legend(frameon=False, fontsize=8, loc="upper left")
    rows = [{"what": "error", **r} for r in curve] + [{"what": "cosine", **r} for r in bars]
    finish(figure, [left, right], rows, output_dir, "pooling", train_batches=train_batches, images=images)


METHODS = {"EP": COLOURS[3], "BPTT, same dynamics": COLOURS[1], "BPTT, snnTorch": COLOURS[0]}
PEAK = """
import sys, warnings; warnings.simplefilter("ignore")
import torch, torch.nn.functional as F, ep_plugin as ep
from snntorch import utils
from ep_plugin.memory import peak_memory, reset_peak_memory
from ep_plugin.models import convolutional_2c2fc
method, steps = sys.argv[1], int(sys.argv[2])
net, x, y = convolutional_2c2fc(), torch.rand(64, 1, 28, 28), torch.randint(10, (64,))
same = method == "BPTT, same dynamics"
estimator = ep.BackpropThroughTime() if same else ep.EquilibriumPropagation(steps=-(-steps // 2))
model = ep.convert(net, relaxation=ep.Relaxation(steps), estimator=estimator)
start = reset_peak_memory()
if method == "BPTT, snnTorch":
    utils.reset(net)
    output = torch.stack([net(x) for _ in range(steps)]).mean(0)
else:
    output = model(x)
F.cross_entropy(output, y).backward()
print(peak_memory() - start)
"""


@app.command()
def memory(
    output_dir: OutputDir = RESULTS,
    most: Annotated[int, typer.Option(help="The largest number of steps.")] = 100,
) -> None:
    """Peak memory of a training step against the number of steps, each in a process of its own."""
    rows = []
    measured = [(method, n) for method in METHODS for n in (3, 5, 10, 25, 50, 100) if n <= most]
    for method, steps in track(measured, "Measuring"):
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


ENCODERS = {
    "graded": ("-", "graded"),
    "adaptive_delta": ("--", "signed events"),
    "predictive_sigma_delta": (":", "binary spikes"),
}


@app.command()
def energy(data_dir: DataDir = Path("data"), output_dir: OutputDir = RESULTS, train_batches: Batches = 200) -> None:
    """The free phase's energy and residual, and how deviations settle in the nudged phase."""
    data = ep.MNISTDataModule(data_dir)
    model = trained(network(), data, train_batches).double()  # the energy's last fall is below float32's rounding
    x, y = next(iter(batches(ep.MNISTDataModule(data_dir, seed=1), 1)))
    x = x.double()
    free, nudged, rows = 20, 8, []
    graded = model.variant(encoder="graded", relaxation=ep.Relaxation(100))
    with torch.no_grad():
        lowest = model.energy(graded.free_phase(x).states, x).mean().item()
    for encoder in ENCODERS:
        own = model.variant(encoder=encoder, relaxation=ep.Relaxation(free))
        trajectory = own.free_phase(x, record=True).trajectory
        for step in range(1, free + 1):
            with torch.no_grad():
                above = own.energy([s[step - 1] for s in trajectory.states], x).mean().item() - lowest
            residual = own.variant(relaxation=ep.Relaxation(step)).free_phase(x).residual.mean().item()
            rows += [
                {"what": "energy", "encoder": encoder, "step": step, "value": above},
                {"what": "residual", "encoder": encoder, "step": step, "value": residual},
            ]
    own = model.variant(relaxation=ep.Relaxation(30), estimator=ep.EquilibriumPropagation(steps=nudged))
    exact = own.variant(encoder="graded", estimator=ep.EquilibriumPropagation(steps=50))
    exact = exact.nudged_phase(x, y, F.cross_entropy).values
    known = own.nudged_phase(x, y, F.cross_entropy, record=True).trajectory.traces
    rows += [
        {
            "what": f"layer {l}",
            "encoder": "adaptive_delta",
            "step": step,
            "value": ((d - end).norm() / end.norm()).item(),
        }
        for l, (steps, end) in enumerate(zip(known, exact, strict=True))
        for step, d in enumerate(steps, start=1)
    ]
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    axes = figure.subplots(1, 3)
    table = pd.DataFrame(rows)
    labels = {
        "energy": "energy above the lowest (mean of samples)",
        "residual": "|rho(h) - u|, the largest of a sample",
    }
    for axis, (what, label) in zip(axes, labels.items(), strict=False):
        for (encoder, (style, name)), colour in zip(ENCODERS.items(), COLOURS, strict=False):
            own = table[(table.what == what) & (table.encoder == encoder)]
            axis.plot(own.step, own.value.clip(lower=1e-12), style, color=colour, label=name)
        axis.set(xlabel="step of the free phase", ylabel=label, yscale="log", ylim=(1e-9, None))
    axes[1].legend(frameon=False, fontsize=8, loc="center right")
    for l, colour in zip(range(len(model.layers)), COLOURS, strict=False):
        own = table[table.what == f"layer {l}"]
        axes[2].plot(own.step, own.value, color=colour, label=f"layer {l}")
    axes[2].set(
        xlabel="step of the nudged phase",
        ylabel="known deviations: distance from\nthe settled ones, of their length",
        yscale="log",
    )
    axes[2].legend(frameon=False, fontsize=8)
    finish(figure, list(axes), rows, output_dir, "energy", train_batches=train_batches)


@app.command()
def raster(
    data_dir: DataDir = Path("data"), output_dir: OutputDir = RESULTS, image: int = 0, neurons: int = 50
) -> None:
    """Signed events of one image, slot by slot: some neurons of every layer, in the free and in the nudged phase."""
    model = ep.pretrained("mnist-2c2fc")
    _, (x, y) = ep.MNISTDataModule(data_dir).load()
    x, y = x[image : image + 1], y[image : image + 1]
    settling = model.free_phase(x, record=True).trajectory
    with torch.no_grad():
        scores = torch.cat([model.readout(u).softmax(1) for u in settling.traces[-1]])
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 5, width_ratios=[0.7, 1.2, 1.2, 1.2, 0.9])
    axes[0].imshow(x[0, 0], cmap="gray_r")
    axes[0].set(xticks=[], yticks=[], title=f"test image {image}: a {y.item()}")
    for l, axis in enumerate(axes[1:4]):
        ep.plots.raster(model, x, y, l, neurons, axis=axis)
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, ncols=2, loc="outside lower center", frameon=False, markerscale=2)
    for k, line in enumerate(scores.T):
        axes[4].plot(range(1, len(scores) + 1), line, color=COLOURS[3] if k == y else "0.7")
    axes[4].set(xlabel="step of the free phase", ylabel="probability of each class", ylim=(0, 1.02))
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
        equilibrium = converted(nn.Sequential(linear, neuron), encoder="graded").free_phase(current).states[0]
        # In units of the current at which the converted neuron saturates.
        drive = current * (equilibrium[1] / current[1])
        own = rates(neuron, current)
        axis.plot(drive, own, color=COLOURS[0], label="original's rate")
        axis.plot(drive, equilibrium, "--", color=COLOURS[3], label="converted")
        axis.set_title(name, fontsize=9)
        axis.set(xlim=(0, 1.5))
        rows += [
            {"neuron": name, "drive": d.item(), "rate": o.item(), "equilibrium": s.item()}
            for d, o, s in zip(drive, own, equilibrium, strict=True)
        ]
    for axis in axes[4:]:
        axis.set_xlabel("steady drive over threshold")
    for axis in axes[::4]:
        axis.set_ylabel("spikes a step")
    axes[0].legend(frameon=False, fontsize=8)
    finish(figure, axes, rows, output_dir, "curves")


if __name__ == "__main__":
    app()
