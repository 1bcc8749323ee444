"""Figures of the dynamics and of the gradients, each by one command:

    python examples/figures.py agreement --data-dir DATA

`agreement`, `depth`, `strengths`, `pooling`, `memory`, `cost`, `energy`, `raster`, `operations`, `curves`, `training`;
the pictures, and the numbers in them, go to examples/results/. With `--redraw` a picture is drawn anew from the numbers
that lie there, and nothing is measured.
"""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import figure_depth
import figure_drawings as drawings
import pandas as pd
import snntorch as snn
import torch
import torch.nn.functional as F
import typer
from figure_networks import (
    LAYERS,
    TOLD,
    ThroughTime,
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
    wrong,
)
from matplotlib.figure import Figure
from norse import torch as norse
from torch import Tensor, nn

import ep_plugin as ep
from ep_plugin.files import origin, whole
from ep_plugin.models import convolutional_2c2fc
from ep_plugin.progress import track

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
DataDir = Annotated[Path, typer.Option(help="Directory that holds MNIST/raw.")]
OutputDir = Annotated[Path, typer.Option(help="Where the picture and its numbers go.")]
Batches = Annotated[int, typer.Option(help="Batches of 64 images that a network is trained on.")]
Images = Annotated[int, typer.Option(help="Batches of 64 images over which gradients are compared.")]
Redraw = Annotated[bool, typer.Option("--redraw", help="Draw the numbers in --output-dir; measure nothing.")]
RESULTS = Path(__file__).parent / "results"
# Free steps over which the figure of agreement goes. A step of events has three digits; one of full phases a spike.
STEPS = {"graded": (1, 2, 3, 4, 8, 15), "events": (1, 2, 3, 4, 8, 15), "full": (4, 8, 15, 30, 60)}


Rows = list[dict]


def finish(
    name: str, output_dir: Path, redraw: bool, measured: Callable[[], Rows], digits: int = 5, **settings: int
) -> None:
    """Measures, writes the numbers, and draws what was written: so a picture that is drawn anew is the same."""
    output_dir.mkdir(parents=True, exist_ok=True)
    numbers = output_dir / f"{name}.csv"
    if not redraw:
        told = {**settings, **origin()}
        table = pd.DataFrame([{"seed": 0} | row | told for row in measured()])
        with whole(numbers) as part:
            table.to_csv(part, index=False, float_format=f"%.{digits}g")
    save(getattr(drawings, name)(pd.read_csv(numbers)), output_dir, name)


def save(figure: Figure, output_dir: Path, name: str) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    with whole(output_dir / f"{name}.png") as part:
        figure.savefig(part, dpi=120)
    print(f"wrote {name}.png")


@app.command()
def agreement(
    data_dir: DataDir = Path("data"),
    output_dir: OutputDir = RESULTS,
    train_batches: Batches = 200,
    images: Images = 8,
    redraw: Redraw = False,
) -> None:
    """EP's gradient against BPTT through settled graded states: over steps, over beta and over depth."""

    def measured() -> Rows:
        seen = list(batches(ep.MNISTDataModule(data_dir, seed=1), images))
        rows: Rows = []
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
        return rows

    finish("agreement", output_dir, redraw, measured, digits=7, train_batches=train_batches, images=images)


@app.command()
def depth(
    data_dir: DataDir = Path("data"),
    output_dir: OutputDir = RESULTS,
    train_batches: Batches = 200,
    images: Images = 16,
    redraw: Redraw = False,
) -> None:
    """EP's gradient against BPTT through settled graded states in 1 to 32 hidden layers: cosine and norm."""

    def measured() -> Rows:
        seen = list(batches(ep.MNISTDataModule(data_dir, seed=1), images))
        return figure_depth.agreement(data_dir, train_batches, seen)

    finish("depth", output_dir, redraw, measured, digits=7, train_batches=train_batches, images=images)


@app.command()
def strengths(
    data_dir: DataDir = Path("data"),
    output_dir: OutputDir = RESULTS,
    train_batches: Batches = 400,
    seeds: Annotated[int, typer.Option(help="Trainings of each.")] = 3,
    redraw: Redraw = False,
) -> None:
    """Test error of 2C2FC by what an event stands for, and by how many a neuron may send in a step."""

    def measured() -> Rows:
        rows: Rows = []
        _, (x, y) = ep.MNISTDataModule(data_dir).load()
        for weight in ("sample", "power_of_two", "fixed"):
            for digits in (1, 2, 3):
                encoder = ep.AdaptiveDelta(weight, digits)
                for seed in range(seeds):
                    model = network(seed=seed).variant(encoder=encoder)
                    trained(model, ep.MNISTDataModule(data_dir, seed=seed), train_batches)
                    error = wrong(model.eval(), list(zip(x.split(500), y.split(500), strict=True)))
                    rows.append({"weight": weight, "digits": digits, "seed": seed, "error": error})
                    print(encoder, seed, f"{error:.2f} %", flush=True)
        return rows

    finish("strengths", output_dir, redraw, measured, train_batches=train_batches)


@app.command()
def cost(
    output_dir: OutputDir = RESULTS,
    turns: Annotated[int, typer.Option(help="Steps of each net and method, of which the median counts.")] = 5,
    redraw: Redraw = False,
) -> None:
    """Time of a training step over depth and width: EP, snnTorch BPTT and feedforward backpropagation."""
    finish("cost", output_dir, redraw, lambda: figure_depth.cost(turns), turns=turns)


@app.command()
def pooling(
    data_dir: DataDir = Path("data"),
    output_dir: OutputDir = RESULTS,
    train_batches: Batches = 100,
    images: Images = 4,
    redraw: Redraw = False,
) -> None:
    """Average against max pooling between neurons: a training curve, and the gradients at its end."""

    def measured() -> Rows:
        seen = list(batches(ep.MNISTDataModule(data_dir, seed=1), images))
        _, (x_test, y_test) = ep.MNISTDataModule(data_dir).load()
        curve: Rows = []
        bars: Rows = []
        for told in ("events", "full"):
            for pool in ("average", "max"):
                kind = {"told": told, "pooling": pool}
                model = network(told, pool)
                for n in train(model, ep.MNISTDataModule(data_dir), train_batches):
                    if n % max(1, train_batches // 5) == 0:
                        with torch.no_grad():
                            wrong = sum(
                                (model(x).argmax(1) != y).sum().item()
                                for x, y in zip(x_test[:1000].split(250), y_test[:1000].split(250), strict=True)
                            )
                        curve.append({"what": "error", **kind, "batch": n, "error": wrong / 10})
                found = cosines(gradients(model, LAYERS, seen), gradients(settled(model), LAYERS, seen))
                bars += [
                    {"what": "cosine", **kind, "layer": l, "cosine": c}
                    for l, c in zip(LAYERS.values(), found, strict=True)
                ]
                print(told, pool, curve[-1]["error"], found, flush=True)
        return curve + bars

    finish("pooling", output_dir, redraw, measured, train_batches=train_batches, images=images)


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
    redraw: Redraw = False,
) -> None:
    """Peak memory of a training step against the number of steps, each in a process of its own."""

    def measured() -> Rows:
        rows: Rows = []
        tried = [(method, n) for method in drawings.METHODS for n in (3, 5, 10, 25, 50, 100) if n <= most]
        for method, steps in track(tried, "Measuring"):
            done = subprocess.run(
                [sys.executable, "-c", PEAK, method, str(steps)], capture_output=True, text=True, check=True
            )
            rows.append({"method": method, "steps": steps, "peak_mb": float(done.stdout)})
        return rows

    finish("memory", output_dir, redraw, measured)


@app.command()
def energy(
    data_dir: DataDir = Path("data"),
    output_dir: OutputDir = RESULTS,
    train_batches: Batches = 200,
    redraw: Redraw = False,
) -> None:
    """The free phase's energy and residual, and how deviations settle in the nudged phase."""

    def measured() -> Rows:
        model = trained(network(), ep.MNISTDataModule(data_dir), train_batches)
        x, y = next(iter(batches(ep.MNISTDataModule(data_dir, seed=1), 1)))
        free, nudged = 20, 8
        spiking = [encoder for encoder in drawings.ENCODERS if encoder != "graded"]
        rows = [
            {"what": "energy", "encoder": line.get_label(), "step": int(step), "value": value}
            for line in ep.plots.energy(model, x, free, encoders=spiking).lines
            if line.get_label() in drawings.ENCODERS
            for step, value in line.get_xydata()
        ]
        model, x = model.double(), x.double()
        for encoder in track(drawings.ENCODERS, "Settling"):
            for step in range(1, free + 1):
                own = model.variant(encoder=encoder, relaxation=ep.Relaxation(step))
                residual = own.free_phase(x).residual.mean().item()
                rows.append({"what": "residual", "encoder": encoder, "step": step, "value": residual})
        own = model.variant(relaxation=ep.Relaxation(30), estimator=ep.EquilibriumPropagation(steps=nudged))
        exact = own.variant(encoder="graded", estimator=ep.EquilibriumPropagation(steps=50))
        exact = exact.nudged_phase(x, y, F.cross_entropy).values
        known = own.nudged_phase(x, y, F.cross_entropy, record=True).trajectory.traces
        return rows + [
            {
                "what": f"layer {l}",
                "encoder": "adaptive_delta",
                "step": step,
                "value": ((d - end).norm() / end.norm()).item(),
            }
            for l, (steps, end) in enumerate(zip(known, exact, strict=True))
            for step, d in enumerate(steps, start=1)
        ]

    finish("energy", output_dir, redraw, measured, train_batches=train_batches)


@app.command()
def raster(
    data_dir: DataDir = Path("data"),
    output_dir: OutputDir = RESULTS,
    image: Annotated[
        int | None,
        typer.Option(
            help="Of the test images.", show_default="of the first 1,000 that come out right, the least certain one"
        ),
    ] = None,
    neurons: Annotated[int, typer.Option(help="Of each layer.")] = 50,
) -> None:
    """Signed events of one image, slot by slot: some neurons of every layer, in the free and in the nudged phase."""
    model = ep.pretrained("mnist-2c2fc")
    _, (x, y) = ep.MNISTDataModule(data_dir).load()
    if image is None:
        image = least_certain(model, x[:1000], y[:1000])
    x, y = x[image : image + 1], y[image : image + 1]
    settling = model.free_phase(x, record=True).trajectory
    with torch.no_grad():
        scores = torch.cat([model.readout(u).softmax(1) for u in settling.traces[-1]])
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 5, width_ratios=[0.7, 1.2, 1.2, 1.2, 0.9])
    axes[0].imshow(x[0, 0], cmap="gray_r")
    axes[0].set(xticks=[], yticks=[])
    axes[0].set_title(f"test image {image}: a {y.item()}", fontsize=9)
    for l, axis in enumerate(axes[1:4]):
        ep.plots.raster(model, x, y, l, neurons, axis=axis)
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, ncols=2, loc="outside lower center", frameon=False, markerscale=2)
    steps = range(1, len(scores) + 1)
    likeliest = scores[-1].topk(3).indices.tolist()
    for k, line in enumerate(scores.T):
        axes[4].plot(steps, line, color=drawings.COLOURS[3] if k == y else "0.7", marker=".")
        if k in likeliest and line[-1] > 0.02:
            axes[4].annotate(f"{k}", (steps[-1], line[-1].item()), (5, 0), textcoords="offset points", va="center")
    axes[4].set(xlabel="step of the free phase", xticks=steps, ylim=(-0.02, 1.02))
    axes[4].set_title("probability of each digit", fontsize=9)
    drawings.plain(axes[4])
    save(figure, output_dir, "raster")


@torch.no_grad()
def least_certain(model: ep.ConvergentNetwork, x: Tensor, y: Tensor) -> int:
    """Of the images that come out right, the one whose answer is the least probable."""
    scores = torch.cat([model(part).softmax(1) for part in track(x.split(250), "Looking for an image")])
    sure = scores[range(len(y)), y]
    sure[scores.argmax(1) != y] = 1
    return int(sure.argmin())


@app.command()
def operations(
    data_dir: DataDir = Path("data"),
    output_dir: OutputDir = RESULTS,
    train_batches: Batches = 20,
    num_steps: Annotated[int, typer.Option(help="Of BPTT.")] = 25,
    redraw: Redraw = False,
) -> None:
    """Operations of 2C2FC module by module, EP beside BPTT.

    Each net has trained before it is counted: layers of a net that has not may send nothing.
    """

    def measured() -> Rows:
        x, y = next(iter(batches(ep.MNISTDataModule(data_dir, seed=1), 1)))
        torch.manual_seed(0)
        net = ep.initialize_(convolutional_2c2fc(leak=0.9))
        model = trained(converted(copy.deepcopy(net)), ep.MNISTDataModule(data_dir), train_batches)
        trained(ThroughTime(net, num_steps), ep.MNISTDataModule(data_dir), train_batches)
        counts = {
            "EP": ep.count_operations(model, x, y),
            f"BPTT, {num_steps} steps": ep.count_operations(net, x, y, num_steps=num_steps),
        }
        return [{"net": name, **row} for name, own in counts.items() for row in own.table()]

    finish("operations", output_dir, redraw, measured, train_batches=train_batches)


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
def training(output_dir: OutputDir = RESULTS) -> None:
    """Test errors over epochs and over seconds: recipes beside other methods for the same net, from results.jsonl."""
    table = pd.read_json(output_dir / "results.jsonl", lines=True)
    ended = table.groupby(["name", "seed", "started"]).epoch.transform("max") == table.epochs
    save(drawings.training(table[ended & (table.watched == "test") & (table.parameters > 0)]), output_dir, "training")


@app.command()
def curves(output_dir: OutputDir = RESULTS, redraw: Redraw = False) -> None:
    """Steady rates of the originals beside the equilibria of the converted neurons."""
    finish("curves", output_dir, redraw, steady_rates)


@torch.no_grad()
def steady_rates() -> Rows:
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
    current, rows = torch.linspace(0, 1.5, 61).unsqueeze(1), []
    for name, neuron in neurons.items():
        linear = nn.Linear(1, 1, bias=False)
        linear.weight.fill_(1.0)
        equilibrium = converted(nn.Sequential(linear, neuron), encoder="graded").free_phase(current).states[0]
        # In units of the current at which the converted neuron saturates.
        drive = current * (equilibrium[1] / current[1])
        rows += [
            {"neuron": name, "drive": d.item(), "rate": o.item(), "equilibrium": s.item()}
            for d, o, s in zip(drive, rates(neuron, current), equilibrium, strict=True)
        ]
    return rows


if __name__ == "__main__":
    app()
