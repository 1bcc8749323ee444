"""How figures.py draws what it has measured: a function per figure, from its table to a figure of matplotlib."""

import pandas as pd
from figure_networks import LAYERS, TOLD
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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


def depth(table: pd.DataFrame) -> Figure:
    """Of every chain the worst weight's cosine, as 1 - cosine, and the range of the norms."""
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    for column, (shortcuts, title) in zip(axes.T, ((True, "with shortcuts"), (False, "without")), strict=True):
        for told, colour, style in zip(TOLD, COLOURS[1:], ("-", "--", "-"), strict=True):
            own = table[(table.told == told) & ((table.shortcuts == shortcuts) | (table.hidden == 1))].groupby("hidden")
            apart = (1 - own.cosine.min()).clip(lower=LEAST)
            column[0].plot(apart.index, apart, style, color=colour, marker="o", markersize=4, label=TOLD[told])
            norm = own.norm
            column[1].plot(apart.index, norm.median(), style, color=colour, marker="o", markersize=4)
            column[1].fill_between(apart.index, norm.min().clip(lower=1e-9), norm.max(), color=colour, alpha=0.2)
        errors = table[(table.shortcuts == shortcuts) | (table.hidden == 1)].groupby("hidden").error.first()
        known = ", ".join(f"{error:.0f}" for error in errors)
        column[0].set_title(f"{title}: {known} % of the images wrong", fontsize=10)
        column[0].set(yscale="log", ylim=(0.7 * LEAST, 3))
        column[1].set(xlabel="hidden layers of 128 neurons", xscale="log", yscale="log", ylim=(0.1, 10))
        column[1].set_xticks(apart.index, [str(n) for n in apart.index])
        column[1].set_yticks([0.1, 0.5, 1, 2, 10], ["0.1", "0.5", "1", "2", "10"])
        column[1].minorticks_off()
        for axis in column:
            axis.axhline(1, color="0.6", linewidth=0.8, zorder=0)
    axes[0, 0].set_ylabel("1 - cosine of the worst weight")
    axes[1, 0].set_ylabel("norm over that of the reference:\nmedian and range of the weights")
    axes[0, 0].legend(frameon=False, fontsize=8, loc="lower left")
    plain(*axes.flat)
    return figure


def strengths(table: pd.DataFrame) -> Figure:
    """Each training a dot, and a line through the means."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axis = figure.subplots()
    for place, (weight, own), colour in zip(
        (-0.06, 0, 0.06), table.groupby("weight", sort=False), COLOURS, strict=False
    ):
        mean = own.groupby("digits").error.mean()
        axis.plot(mean.index + place, mean, color=colour, linewidth=1, label=weight)
        axis.plot(own.digits + place, own.error, ".", color=colour)
    axis.set(xlabel="events a neuron may send in a step (digits)", ylabel="test error (%)", ylim=(0, None))
    axis.set_xticks(table.digits.unique())
    axis.legend(frameon=False, title="what an event stands for")
    plain(axis)
    return figure


def cost(table: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    labels = {"hidden": "hidden layers of {} channels", "channels": "channels of {} hidden layers"}
    for axis, (over, other) in zip(axes, (("hidden", "channels"), ("channels", "hidden")), strict=True):
        own = table[table.over == over]
        for (method, line), colour in zip(
            own.groupby("method", sort=False), (COLOURS[3], COLOURS[0], COLOURS[2]), strict=True
        ):
            axis.plot(line[over], line.ms, color=colour, marker="o", markersize=4, label=method)
        axis.set(xlabel=labels[over].format(own[other].iloc[0]), xscale="log", yscale="log")
        axis.set_xticks(own[over].unique(), own[over].unique())
        axis.xaxis.minorticks_off()
    axes[0].set_ylabel("ms of one core, a step of 32 images")
    axes[0].legend(frameon=False, fontsize=8)
    plain(*axes)
    return figure


# What follows a recipe's name -> how its net is trained.
SIBLINGS = {
    "": ("spiking EP", COLOURS[3]),
    "-feedforward": ("feedforward backpropagation", COLOURS[2]),
    "-bptt-snntorch": ("snnTorch BPTT", COLOURS[0]),
    "-bptt-same-dynamics": ("BPTT, same dynamics", COLOURS[1]),
}


def training(table: pd.DataFrame) -> Figure:
    """Of every recipe that has another method beside it: the newest run of each seed; two epochs are no curve.

    The first seed alone has its minutes shown: others ran on other machines.
    """
    names = set(table[table.epochs > 2].name)
    families = [name for name in sorted(names) if any(name + end in names for end in SIBLINGS if end)]
    figure = Figure(figsize=(9, 3.2 * len(families)), layout="constrained")
    rows = figure.subplots(len(families), 2, sharey="row", squeeze=False)
    for row, family in zip(rows, families, strict=True):
        for end, (label, colour) in SIBLINGS.items():
            for number, (_, runs) in enumerate(table[table.name == family + end].groupby("seed")):
                run = runs[runs.started == runs.started.max()].sort_values("epoch")
                own = {"color": colour, "label": label if not number else None, "marker": ".", "linewidth": 1}
                row[0].plot(run.epoch, run.error, **own)
                if not number:
                    row[1].plot(run.seconds / 60, run.error, **own)
        row[0].set(ylabel="test error (%)", xlabel="epoch")
        row[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        row[1].set(xlabel="minutes, the other core busy")
        row[0].set_title(family, fontsize=10)
        row[0].legend(frameon=False, fontsize=8)
    plain(*rows.flat)
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
