"""What a comparison has found: figures, tables and a picture."""

from collections.abc import Iterator, Sequence
from csv import DictWriter
from dataclasses import dataclass, field
from itertools import accumulate, zip_longest
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from ep_plugin.comparison.settings import ComparisonSettings
from ep_plugin.files import origin, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES = {"EP": ("#c44e52", "-"), "BPTT": ("#4c72b0", "--")}
_NAMES = {"EP": "EP", "BPTT": "BPTT, surrogate gradients"}


@dataclass
class Result:
    """Figures of one contender and seed. Lists have one entry per epoch.

    Attributes:
        contender: "EP" or "BPTT".
        seed: of the weights and of the order of the images.
        accuracy: of the test images.
        seconds: of training alone.
        peak_memory_mb: the process's highest memory in training, above what it was before the first step.
        spikes: mean number of spikes of the whole net in one inference; None for graded neurons.
        operations: synaptic operations and multiply-adds of a training step per image, of the trained net; None if a
            module is not known.
        finished: whether all epochs are done.

    Example:
        >>> result = ep.comparison.Result("EP", seed=0, accuracy=[0.91, 0.95], seconds=[2.0, 1.0])
        >>> result.row()["test_accuracy"]
        0.95
    """

    contender: str
    seed: int
    accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peak_memory_mb: float = 0.0
    spikes: float | None = None
    operations: float | None = None
    finished: bool = False

    def row(self) -> dict[str, Any]:
        """What the table and the CSV show."""
        return {
            "contender": self.contender,
            "seed": self.seed,
            "test_accuracy": self.accuracy[-1],
            "seconds_per_epoch": sum(self.seconds) / len(self.seconds),
            "peak_memory_mb": self.peak_memory_mb,
            "spikes_per_inference": self.spikes,
            "operations_per_trained_image": self.operations,
        }


def write(results: Sequence[Result], settings: ComparisonSettings, place: Path) -> None:
    """Writes comparison.csv, history.csv and comparison.png, each whole or not at all.

    Raises:
        ValueError: one cannot be written.
    """
    begun = [r for r in results if r.accuracy]
    if not begun:
        return
    told = {**settings.plain(), **origin()}
    finished = [{**r.row(), **told} for r in begun if r.finished]
    history = [
        {"contender": r.contender, "seed": r.seed, "epoch": e, "seconds": s, "test_accuracy": a, **told}
        for r in begun
        for e, (s, a) in enumerate(zip(r.seconds, r.accuracy, strict=True), start=1)
    ]
    for name, rows in (("comparison.csv", finished), ("history.csv", history)):
        if rows:
            with whole(place / name) as part, part.open("w", newline="") as file:
                table = DictWriter(file, list(rows[0]), lineterminator="\n")
                table.writeheader()
                table.writerows(rows)
    with whole(place / "comparison.png") as part:
        picture(begun, settings).savefig(part, dpi=130)


def picture(results: Sequence[Result], settings: ComparisonSettings) -> "Figure":
    """Test accuracy over epochs and over seconds of training, a colour per contender.

    Of several seeds: the mean, and a band from the lowest to the highest.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    contenders = by_contender(results)
    for contender, own in contenders.items():
        colour, dashes = _STYLES[contender]
        label = f"{_NAMES[contender]}: {spread([100 * r.accuracy[-1] for r in own], 1)} %"
        accuracy = list(_by_epoch([[100 * a for a in r.accuracy] for r in own]))
        mean = [_mean(epoch) for epoch in accuracy]
        seconds = list(accumulate(_mean(epoch) for epoch in _by_epoch([r.seconds for r in own])))
        for axes, at in ((left, list(range(1, len(mean) + 1))), (right, seconds)):
            axes.plot(at, mean, dashes, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=label)
            if len(own) > 1:
                axes.fill_between(
                    at,
                    [min(epoch) for epoch in accuracy],
                    [max(epoch) for epoch in accuracy],
                    color=colour,
                    alpha=0.18,
                    linewidth=0,
                )
    left.set(xlabel="epoch", ylabel="test accuracy (%)")
    right.set(xlabel="seconds of training", xlim=(0, None))
    left.xaxis.get_major_locator().set_params(integer=True)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(loc="lower right", frameon=False, fontsize=9)
    title = "trained by equilibrium propagation (EP) and by backpropagation through time (BPTT)"
    figure.suptitle(f"The same spiking net on {settings.data}, {title}", fontsize=10)
    several = max(len(own) for own in contenders.values())
    seeds = f"Mean of {several} seeds; bands: from the lowest to the highest. " if several > 1 else ""
    figure.supxlabel(fill(f"{seeds}{settings.described()}", 140), fontsize=7, color="0.35")
    return figure


def _by_epoch(runs: Sequence[Sequence[float]]) -> Iterator[list[float]]:
    """What the runs have in each epoch; of a run that is not done, nothing after its last one."""
    for values in zip_longest(*runs):
        yield [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def by_contender(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results that have an epoch, contender by contender."""
    names = dict.fromkeys(r.contender for r in results)
    found = {name: [r for r in results if r.contender == name and r.accuracy] for name in names}
    return {name: own for name, own in found.items() if own}


def spread(values: Sequence[float], digits: int) -> str:
    """The mean and, of several, the standard deviation: "97.2" or "97.2 ± 0.3"."""
    from statistics import mean, stdev

    shown = f"{mean(values):,.{digits}f}"
    return shown if len(values) == 1 else f"{shown} ± {stdev(values):,.{digits}f}"
