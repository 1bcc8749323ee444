"""Pictures."""

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ep_plugin.comparison import Result

_COLOURS = {"EP": "#c44e52", "BPTT": "#4c72b0"}


def plot_comparison(results: "list[Result]", title: str, path: Path) -> None:
    """Test accuracy over epochs and over seconds of training, one line a contender, as a PNG."""
    from itertools import accumulate

    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for result in results:
        accuracy = [100 * a for a in result.accuracy]
        style = {"color": _COLOURS.get(result.contender), "marker": "o", "markersize": 3.5, "linewidth": 1.6}
        label = f"{result.contender}: {accuracy[-1]:.1f} %"
        left.plot(range(1, len(accuracy) + 1), accuracy, label=label, **style)
        right.plot(list(accumulate(result.seconds)), accuracy, label=label, **style)
    left.set(xlabel="epoch", ylabel="test accuracy (%)")
    right.set(xlabel="seconds of training", xlim=(0, None))
    left.xaxis.get_major_locator().set_params(integer=True)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(loc="lower right", frameon=False)
    figure.suptitle(fill(title, 120), fontsize=8)
    figure.savefig(path, dpi=130)
