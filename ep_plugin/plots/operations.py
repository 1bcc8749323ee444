"""Where the operations are."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ep_plugin.analysis.operation_counts import INFERENCE, OperationCounts, Operations
from ep_plugin.plots.axes import BLUE, COLOURS, RED, on

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (RED, BLUE, *COLOURS[1:3], *COLOURS[4:])
_PALE = 0.45  # of an inference; a training step has the full colour


def operations(counts: Mapping[str, OperationCounts], axis: "Axes | None" = None) -> "Axes":
    """Operations per module, of an inference (pale) and of a training step, several nets side by side.

    An operation is a synapse that an event reaches, a multiply-add or a neuron's update. A training step includes its
    inference. The axis is linear and starts at 0, so that bars can be compared by their lengths; small ones are read
    by the numbers above them.

    A group of bars is a linear or convolutional module with the neurons behind it: of a converted network the stem
    and the first layer of neurons, then each connection to the next layer, and last the readout. What a layer sends
    up is drawn at the connection to the next layer, also where skips take a part of it farther; what it sends down is
    drawn at the connection to itself. Nets are set side by side by the order of their modules.

    Args:
        counts: name of the net -> what `count_operations` has found, with a target.
        axis: of matplotlib; by default one of a new figure.

    Returns:
        The axis.

    Raises:
        ValueError: there is nothing to draw.

    Example:
        >>> counts = {"EP": ep.count_operations(model, x, y), "BPTT": ep.count_operations(net, x, y, num_steps=25)}
        >>> axis = ep.plots.operations(counts)
    """
    if not counts:
        raise ValueError("there is nothing to draw; expected a name and a count, such as {'EP': count}")
    groups = {name: _converted(own) if _is_converted(own) else _plain(own) for name, own in counts.items()}
    # Module names say more than "0 -> 1": those of the original, if it is there, stand for both.
    titles = max(groups.values(), key=lambda own: (len(own), not any("->" in title for title in own)))
    bars = [
        (f"{name}, {what}: {_short(sum(values))} in all", colour, pale, values)
        for (name, own), colour in zip(groups.items(), _COLOURS * len(groups), strict=False)
        for what, pale, values in (
            ("inference", _PALE, [i for i, _ in own.values()]),
            ("training step", 1.0, [t for _, t in own.values()]),
        )
    ]
    axis = on(axis, (max(7.0, 2.2 + 0.28 * len(titles) * len(bars)), 4.2))
    width = 0.84 / len(bars)
    for k, (label, colour, pale, values) in enumerate(bars):
        places = [n + (k - (len(bars) - 1) / 2) * width for n in range(len(values))]
        drawn = axis.bar(places, values, 0.92 * width, color=colour, alpha=pale, label=label)
        axis.bar_label(drawn, [_short(v) for v in values], rotation=90, padding=3, fontsize=7)
    axis.margins(y=0.14)  # room for the numbers
    axis.set_xticks(range(len(titles)), list(titles), fontsize=8)
    if len(titles) * max(len(line) for title in titles for line in title.split("\n")) > 80:
        axis.set_xticks(range(len(titles)), list(titles), fontsize=8, rotation=35, ha="right")
    axis.set_ylabel("operations per sample")
    axis.yaxis.set_major_formatter(lambda value, _: _short(value))
    axis.legend(frameon=False, fontsize=8, ncols=len(groups), loc="lower left", bbox_to_anchor=(0, 1))
    return axis


_Group = tuple[float, float]  # of an inference, and of a training step


def _is_converted(counts: OperationCounts) -> bool:
    return any(row.name == "stem" for row in counts.rows)


def _plain(counts: OperationCounts) -> dict[str, _Group]:
    """Modules in their order, each with the neurons behind it."""
    modules = {row.name: row.neurons for row in counts.rows}
    groups: list[list[str]] = []
    behind_neurons = True
    for name, neurons in modules.items():
        if not groups or (behind_neurons and not neurons):
            groups.append([])
        groups[-1].append(name)
        behind_neurons = neurons > 0
    titles = {name: "\n".join([n for n in own if not modules[n]] or own) for own in groups for name in own}
    return _sums((titles[row.name], row.phase, _size(row)) for row in counts.rows)


def _converted(counts: OperationCounts) -> dict[str, _Group]:
    """The same groups of a converted network: what reaches layer l of neurons, with those neurons."""
    last = max((int(row.name.split()[1]) for row in counts.rows if row.name.startswith("layer ")), default=0)
    titles = ["stem", *(f"{l} -> {l + 1}" for l in range(last)), "readout"]
    parts = [(title, INFERENCE[0], 0.0) for title in titles[:-1]]  # so that they stand in their order
    for row in counts.rows:
        if row.name.startswith("layer "):
            l = int(row.name.split()[1])
            own = row.feedback_operations + row.neuron_updates
            parts.append((titles[l], row.phase, own))
            parts.append((titles[min(l + 1, last)], row.phase, _size(row) - own))
        else:
            title = titles[int(row.name.split(" -> ")[1])] if "->" in row.name else row.name
            parts.append((title, row.phase, _size(row)))
    return {title: group for title, group in _sums(parts).items() if title != "readout" or any(group)}


def _sums(parts: Iterable[tuple[str, str, float]]) -> dict[str, _Group]:
    sums: dict[str, _Group] = {}
    for title, phase, size in parts:
        inference, training = sums.get(title, (0.0, 0.0))
        sums[title] = (inference + (size if phase in INFERENCE else 0.0), training + size)
    return sums


def _size(row: Operations) -> float:
    return row.synaptic_operations + row.multiply_adds + row.neuron_updates


def _short(value: float) -> str:
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.0f}"
