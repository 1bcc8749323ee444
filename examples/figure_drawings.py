"""How figures.py draws what it has measured: a function per figure, from its table to a figure of matplotlib."""

import pandas as pd
from figure_networks import LAYERS, TOLD
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ep_plugin import plots
from ep_plugin.analysis.operation_counts import Memory, OperationCounts, Operations

COLOURS = ["#4c72b0", "#dd8452", "#55a868", "#c44e52"]
METHODS = {"EP": COLOURS[3], "BPTT, same dynamics": COLOURS[1], "BPTT, snnTorch": COLOURS[0]}
ENCODERS = {
    "graded": ("-", "graded"),
    "adaptive_delta": ("--", "signed events"),
    "predictive_sigma_delta": (":", "binary spikes"),
}
LEAST = 1e-5  # of 1 - cosine: what is below it is float32's rounding, and the table's


def plain(*axes: Axes) -> None:
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)


def agreement(table: pd.DataFrame) -> Figure:
    """1 - cosine, on a log axis: most cosines are so near to 1 that they would be one flat line."""
    figure = Figure(figsize=(11, 8.5), layout="constrained")
    axes = figure.subplots(3, 3, sharey=True)
    labels = {
        "steps": "free steps, half as many nudged (rounded up)",
        "beta": "beta (30 free, 15 nudged steps)",
        "depth": "hidden layers (default steps)",
    }
    table = table.assign(apart=(1 - table.cosine).clip(lower=LEAST))
    for row, (over, label) in zip(axes, labels.items(), strict=True):
        for axis, told in zip(row, TOLD, strict=True):
            own = table[(table.over == over) & (table.told == told)]
            if over == "depth":
                axis.plot(own["at"], own.apart, ".", color=COLOURS[0], alpha=0.6, label="each weight")
                worst = own.groupby("at").apart.max()
                axis.plot(worst.index, worst, color=COLOURS[3], linewidth=1, label="the worst weight")
            else:
                for colour, l in zip(COLOURS, LAYERS.values(), strict=True):
                    line = own[own.layer == l]
                    axis.plot(line["at"], line.apart, color=colour, marker="o", markersize=3.5, label=l)
                axis.set(xscale="log")
            axis.axhline(1, color="0.6", linewidth=0.8, zorder=0)
            axis.set(xlabel=label, yscale="log", ylim=(0.7 * LEAST, 3))
            axis.set_xticks(own["at"].unique(), [f"{at:g}" for at in own["at"].unique()])
            axis.xaxis.minorticks_off()
            axis.set_title(TOLD[told], fontsize=10)
        row[0].set_ylabel("1 - cosine with BPTT through\nsettled graded states")
        row[0].legend(frameon=False, fontsize=8, loc="upper center", ncols=2, bbox_to_anchor=(0.5, 0.93))
    axes[0, 2].text(4, 1.3 * LEAST, "lowest points of all panels: 1e-5 or less", fontsize=8, color="0.4")
    axes[0, 2].text(60, 1.1, "1: no relation", fontsize=8, color="0.4", ha="right", va="bottom")
    plain(*axes.flat)
    return figure


def pooling(table: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles, colours = {"events": "-", "full": "--"}, {"average": COLOURS[0], "max": COLOURS[3]}
    for (told, pool), own in table[table.what == "error"].groupby(["told", "pooling"]):
        left.plot(own.batch, own.error, styles[told], color=colours[pool], label=f"{TOLD[told]}, {pool}")
    left.set(xlabel="batches of 64", ylabel="error on 1,000 test images (%)", yscale="log")
    left.minorticks_off()
    left.set_yticks([3, 5, 10, 20, 50], ["3", "5", "10", "20", "50"])
    left.legend(frameon=False, fontsize=8)
    bars = table[table.what == "cosine"]
    for k, ((told, pool), own) in enumerate(bars.groupby(["told", "pooling"])):
        places = [l + 0.2 * k - 0.3 for l in range(len(LAYERS))]
        right.bar(places, own.cosine, 0.18, color=colours[pool], alpha=1 if told == "events" else 0.45,
                  label=f"{TOLD[told]}, {pool}")  # fmt: skip
    right.set_xticks(range(len(LAYERS)), LAYERS.values())
    right.set(ylabel="cosine with BPTT through\nsettled graded states", ylim=(min(0, bars.cosine.min()), 1.5))
    right.set_yticks([0, 0.25, 0.5, 0.75, 1])
    right.legend(frameon=False, fontsize=8, loc="upper left")
    plain(left, right)
    return figure


def memory(table: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for method, colour in METHODS.items():
        own = table[table.method == method]
        axis.plot(own.steps, own.peak_mb, color=colour, marker="o", label=method)
    axis.set(xlabel="time steps (EP: free steps, half as many nudged)", ylabel="peak memory above the start (MB)",
             xscale="log", yscale="log", title="2C2FC, a training step of 64 images")  # fmt: skip
    axis.set_xticks(table.steps.unique(), table.steps.unique(), minor=False)
    axis.set_yticks([50, 100, 200, 500, 1000], [50, 100, 200, 500, 1000])
    axis.minorticks_off()
    axis.legend(frameon=False)
    plain(axis)
    return figure


def energy(table: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(12.5, 3.8), layout="constrained")
    figure.get_layout_engine().set(wspace=0.08)
    axes = figure.subplots(1, 3)
    labels = {
        "energy": "energy above the lowest\n(mean of the samples)",
        "residual": "residual: largest |rho(h) - u|\n(mean of the samples)",
    }
    for axis, (what, label) in zip(axes, labels.items(), strict=False):
        for (encoder, (style, name)), colour in zip(ENCODERS.items(), COLOURS, strict=False):
            own = table[(table.what == what) & (table.encoder == encoder)]
            axis.plot(own.step, own.value.clip(lower=1e-12), style, color=colour, label=name)
        axis.set(xlabel="step of the free phase", ylabel=label, yscale="log", ylim=(1e-9, None))
    axes[1].legend(frameon=False, fontsize=8, loc="center right")
    layers = [what for what in table.what.unique() if what.startswith("layer ")]
    for layer, colour in zip(layers, COLOURS, strict=False):
        own = table[table.what == layer]
        axes[2].plot(own.step, own.value, color=colour, label=layer)
    axes[2].set(xlabel="step of the nudged phase", ylabel="relative error of the deviations", yscale="log")
    axes[2].legend(frameon=False, fontsize=8)
    plain(*axes)
    return figure


def operations(table: pd.DataFrame) -> Figure:
    names = [field for field in Operations.__dataclass_fields__ if field in table]
    counts = {
        net: OperationCounts(tuple(Operations(**row) for row in own[names].to_dict("records")), Memory(0, 0))
        for net, own in table.groupby("net", sort=False)
    }
    figure = Figure(figsize=(8.5, 4.2), layout="constrained")
    plots.operations(counts, figure.subplots())
    return figure


def curves(table: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = list(figure.subplots(2, 4, sharex=True, sharey=True).flat)
    for axis, (name, own) in zip(axes, table.groupby("neuron", sort=False), strict=True):
        axis.plot(own.drive, own.rate, color=COLOURS[0], label="original's rate")
        axis.plot(own.drive, own.equilibrium, "--", color=COLOURS[3], label="converted")
        axis.set_title(name, fontsize=9)
        axis.set(xlim=(0, 1.5))
    for axis in axes[4:]:
        axis.set_xlabel("steady drive over threshold")
    for axis in axes[::4]:
        axis.set_ylabel("spikes per step")
    axes[0].legend(frameon=False, fontsize=8)
    plain(*axes)
    return figure
