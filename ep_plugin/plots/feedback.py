"""How feedback weights of their own turn to the transpose of the weights up."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from ep_plugin.linear import separate
from ep_plugin.plots.axes import BLUE, COLOURS, on

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def feedback_angles(
    angles: nn.Module | Mapping[str, float | Sequence[float]],
    steps: Sequence[float] | None = None,
    axis: "Axes | None" = None,
) -> "Axes":
    """Angles between weights and their feedback weights, in degrees: about 90 at the start, 0 where they agree.

    Of a network: a bar per module. Of angles that were written down in a training: a line per module.

    Args:
        angles: a network with `feedback_weights="separate"`; or the module's name -> its angle, as
            `chips.feedback_angles` finds it, or -> its angles one after the other, as `FeedbackMonitor` logs them.
        steps: when the angles of a line were measured, such as the log's column "step". By default 1, 2, 3 ...
        axis: of matplotlib; by default one of a new figure.

    Returns:
        The axis.

    Raises:
        ValueError: the network's feedback has no weights of its own, there are no angles, or there are more or fewer
            of them than `steps`.

    Example:
        >>> separate = ep.convert(net, feedback_weights="separate")
        >>> ep.plots.feedback_angles(separate).figure.savefig("angles.png")
        >>> log = {"feedback_angle/fc": [90.0, 60.0, 40.0]}  # columns of a FeedbackMonitor's metrics.csv
        >>> axis = ep.plots.feedback_angles(log, steps=[0, 100, 200])
    """
    found = dict(separate.feedback_angles(angles) if isinstance(angles, nn.Module) else angles)
    if not found:
        raise ValueError(
            "there are no angles to draw: the network's feedback has no weights of its own; expected "
            'ep.convert(net, feedback_weights="separate")'
        )
    axis = on(axis)
    axis.axhline(90, color="0.7", linewidth=0.8, zorder=0)
    names = [name.removeprefix("feedback_angle/") for name in found]
    if any(isinstance(angle, Sequence) for angle in found.values()):
        for n, (name, values) in enumerate(zip(names, found.values(), strict=True)):
            own = list(values) if isinstance(values, Sequence) else [values]
            at = range(1, len(own) + 1) if steps is None else list(steps)
            if len(at) != len(own):
                raise ValueError(f"{name!r} has {len(own)} angles, and there are {len(at)} steps; expected as many")
            axis.plot(at, own, color=COLOURS[n % len(COLOURS)], marker=".", label=name)
        axis.set_xlabel("measurement" if steps is None else "training step")
        axis.legend(frameon=False, fontsize=8)
    else:
        bars = axis.bar(range(len(found)), list(found.values()), color=BLUE)
        axis.bar_label(bars, fmt="%.1f", fontsize=8)
        axis.set_xticks(range(len(found)), names, rotation=45, ha="right", fontsize=8)
    axis.set_ylim(0, 100)
    axis.set_yticks([0, 30, 60, 90])
    axis.set_ylabel("angle between weights\nand feedback weights (degrees)")
    return axis
