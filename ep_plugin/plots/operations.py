"""Where the operations are."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ep_plugin.analysis.operation_counts import INFERENCE, OperationCounts, Operations
from ep_plugin.plots.axes import BLUE, ORANGE, on

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INFERENCE, _TRAINING = BLUE, ORANGE


def operations(counts: Mapping[str, OperationCounts], axis: "Axes | None" = None) -> "Axes":
    """Operations a layer, of an inference and of a training step, several nets side by side.

    An operation is a synapse that an event reaches, a multiply-add or a neuron's update.

    Args:
        counts: name of the net -> what `count_operations` has found, with a target.
        axis: of matplotlib; by default one of a new figure.

    Returns:
        The axis.

    Raises:
        ValueError: there is nothing to draw.

    Example:
        >>> axis = operations({"EP": count_operations(model, x, y), "BPTT": count_operations(net, x, y, num_steps=25)})
    """
    if not counts:
        raise ValueError("there is nothing to draw; expected a name and a count, such as {'EP': count}")
    axis = on(axis, (10, 4.2))
    place, ticks, labels = 0.0, [], []
    for name, own in counts.items():
        parts = dict.fromkeys(row.name for row in own.rows)
        inference = [sum(_size(r) for r in own.rows if r.name == part and r.phase in INFERENCE) for part in parts]
        training = [sum(_size(r) for r in own.rows if r.name == part) for part in parts]
        shown = [k for k, size in enumerate(training) if size]
        at = [place + k for k in range(len(shown))]
        axis.bar([p - 0.2 for p in at], [inference[k] for k in shown], 0.4, color=_INFERENCE)
        axis.bar([p + 0.2 for p in at], [training[k] for k in shown], 0.4, color=_TRAINING)
        title = f"{name}\ninference {_short(sum(inference))}, training step {_short(sum(training))}"
        axis.text((at[0] + at[-1]) / 2, 0.985, title, transform=axis.get_xaxis_transform(), ha="center", va="top")
        ticks += at
        labels += [list(parts)[k] for k in shown]
        place = at[-1] + 2
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.set_ylim(low, high * (high / low) ** 0.25)  # room for the names
    axis.set_xticks(ticks, labels, rotation=45, ha="right", fontsize=8)
    axis.set_ylabel("operations a sample")
    for label, colour in (("inference", _INFERENCE), ("training step", _TRAINING)):
        axis.bar([0], [0], color=colour, label=label)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return axis


def _size(row: Operations) -> float:
    return row.synaptic_operations + row.multiply_adds + row.neuron_updates


def _short(value: float) -> str:
    return f"{value / 1e6:.3g} M" if value >= 1e6 else f"{value / 1e3:.3g} k" if value >= 1e3 else f"{value:.0f}"
