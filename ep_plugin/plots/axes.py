"""What all pictures share."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, RED = "#4c72b0", "#dd8452", "#55a868", "#c44e52"
COLOURS = (BLUE, ORANGE, GREEN, RED, "#8172b3", "#937860", "#da8bc3", "#8c8c8c")


def on(axis: "Axes | None", size: tuple[float, float] = (6.4, 3.8)) -> "Axes":
    """The axis that was given, or one of a new figure."""
    if axis is None:
        from matplotlib.figure import Figure  # not pyplot, which would choose a window system

        axis = Figure(figsize=size, layout="constrained").subplots()
    axis.spines[["top", "right"]].set_visible(False)
    return axis


def whole_steps(axis: "Axes") -> None:
    """No half steps among the ticks."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
