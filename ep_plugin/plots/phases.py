"""What neurons do from step to step, in the free and in the nudged phase."""

from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ep_plugin.dynamics.relaxation import Trajectory
from ep_plugin.network import ConvergentNetwork, Loss
from ep_plugin.plots.axes import COLOURS, RED, on, whole_steps
from ep_plugin.validation import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def raster(
    model: ConvergentNetwork,
    x: Tensor,
    y: Any,
    layer: int = 0,
    neurons: int = 50,
    loss: Loss = nn.functional.cross_entropy,
    axis: "Axes | None" = None,
) -> "Axes":
    """The signed events of one sample, +1 black, -1 red: the free phase and, behind the dark line, the nudged one.

    A step has as many slots as an event has digits; thin lines part the steps.

    Args:
        model: a spiking network.
        x: a batch of one sample, `[1, ...]`.
        y: its target.
        layer: of neurons, from 0.
        neurons: how many to show, of those that send anything; which, is drawn by a seed of 0.
        loss: (output, y) -> scalar.
        axis: of matplotlib; by default one of a new figure.

    Returns:
        The axis.

    Raises:
        ValueError: the batch holds several samples, there is no such layer, or the neurons are graded and send
            nothing.

    Example:
        >>> ep.plots.raster(model, x[:1], y[:1]).figure.savefig("raster.png")
    """
    free, nudged = _both(model, x, y, layer, loss)
    if free.spikes is None or nudged.spikes is None:
        raise ValueError(
            "graded neurons send no events; expected a spiking network, such as model.variant(encoder=...)"
        )
    events = torch.cat([free.spikes[layer], nudged.spikes[layer]]).flatten(1).cpu()
    active = events.abs().sum(0).nonzero().flatten()
    order = torch.randperm(len(active), generator=torch.Generator().manual_seed(0))
    shown = active[order[: count("neurons", neurons)]]
    axis = on(axis)
    for sign, colour in ((1, "black"), (-1, RED)):
        at, which = (events[:, shown] == sign).nonzero(as_tuple=True)
        axis.scatter(at + 1, which, s=12, marker="|", color=colour, label=f"{sign:+d}")
    steps = len(free.states[layer])
    slots = len(free.spikes[layer]) // steps
    last = len(events) // slots
    for step in range(1, last):
        end = step == steps
        axis.axvline(step * slots + 0.5, color="0.3" if end else "0.85", linewidth=1 if end else 0.6, zorder=0)
    axis.set(xlabel=f"slot ({slots} a step)" if slots > 1 else "step", xlim=(0, len(events) + 1), yticks=[])
    whole_steps(axis)
    axis.set_ylabel(f"{len(shown)} of {events.shape[1]:,} neurons")
    first, second = (int(t.spikes[layer].abs().sum()) for t in (free, nudged) if t.spikes is not None)
    axis.set_title(f"layer {layer}:\n{first:,} events free, {second:,} nudged", fontsize=9)
    return axis


def states(
    model: ConvergentNetwork,
    x: Tensor,
    y: Any,
    layer: int = 0,
    neurons: int = 5,
    loss: Loss = nn.functional.cross_entropy,
    axis: "Axes | None" = None,
) -> "Axes":
    """Membranes and what neighbours know of them (dashed), step by step, in the free and then in the nudged phase.

    In the nudged phase a neuron tells how far the nudge moves it. That is small, so it is drawn many times larger,
    from where the free phase has ended.

    Args:
        model: a network trained by `EquilibriumPropagation`.
        x: a batch of one sample, `[1, ...]`.
        y: its target.
        layer: of neurons, from 0.
        neurons: how many to show: those whose states the nudge moves most.
        loss: (output, y) -> scalar.
        axis: of matplotlib; by default one of a new figure.

    Returns:
        The axis.

    Raises:
        ValueError: the batch holds several samples, or there is no such layer.

    Example:
        >>> ep.plots.states(model, x[:1], y[:1], layer=1)
    """
    free, nudged = _both(model, x, y, layer, loss)
    settled, known, moved, told = (
        t[layer].flatten(1).float().cpu() for t in (free.states, free.traces, nudged.states, nudged.traces)
    )
    most = moved[-1].abs().topk(min(count("neurons", neurons), moved.shape[1])).indices
    largest = moved[:, most].abs().max().item()
    zoom = 0.2 * settled.abs().max().clamp(min=0.1).item() / largest if largest > 0 else 1.0
    axis = on(axis)
    steps, more = range(1, len(settled) + 1), range(len(settled), len(settled) + len(moved) + 1)
    for n, colour in zip(most, cycle(COLOURS), strict=False):
        axis.plot(steps, settled[:, n], color=colour, marker=".")
        axis.plot(steps, known[:, n], "--", color=colour)
        for values, style in ((moved, "-"), (told, "--")):
            axis.plot(more, settled[-1, n] + zoom * torch.cat([torch.zeros(1), values[:, n]]), style, color=colour)
    axis.axvline(len(settled), color="0.3", linewidth=1, zorder=0)
    axis.plot([], [], color="0.3", marker=".", label="membrane")
    axis.plot([], [], "--", color="0.3", label="what neighbours know")
    axis.legend(frameon=False, fontsize=8)
    axis.set(xlabel="step", ylabel="state (in thresholds)")
    axis.set_title(f"layer {layer}: free phase, then deviations, {zoom:,.0f} times as large", fontsize=9)
    whole_steps(axis)
    return axis


def deviations(
    model: ConvergentNetwork,
    x: Tensor,
    y: Any,
    loss: Loss = nn.functional.cross_entropy,
    axis: "Axes | None" = None,
) -> "Axes":
    """How far the nudge moves each layer, as its neighbours know it, over the steps of the nudged phase.

    The length of a sample's deviations, mean over the batch. They get smaller by `feedback` from layer to layer.

    Args:
        model: a network trained by `EquilibriumPropagation`.
        x: a batch, `[B, ...]`.
        y: its targets.
        loss: (output, y) -> scalar.
        axis: of matplotlib; by default one of a new figure.

    Returns:
        The axis.

    Raises:
        ValueError: the estimator is another one.

    Example:
        >>> ep.plots.deviations(model, x, y)
    """
    nudged = model.nudged_phase(x, y, loss, record=True).trajectory
    assert nudged is not None  # it was asked for
    axis = on(axis)
    scales = model.system(x).scales  # deviations are kept times these weights of the energy
    for l, (traces, scale) in enumerate(zip(nudged.traces, scales, strict=True)):
        length = (traces.flatten(2).norm(dim=2) / scale).mean(1).cpu()
        axis.plot(range(1, len(length) + 1), length, marker=".", color=COLOURS[l % len(COLOURS)], label=f"layer {l}")
    axis.set(xlabel="step of the nudged phase", ylabel="length of a sample's deviations", yscale="log")
    whole_steps(axis)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return axis


def _both(model: ConvergentNetwork, x: Tensor, y: Any, layer: int, loss: Loss) -> tuple[Trajectory, Trajectory]:
    """Every step of both phases, of one sample."""
    if len(x) != 1:
        raise ValueError(f"the batch holds {len(x)} samples; expected one: x[:1], y[:1]")
    if not 0 <= layer < len(model.layers):
        raise ValueError(f"layer is {layer}; expected 0 to {len(model.layers) - 1}, the layers of neurons")
    free = model.free_phase(x, record=True).trajectory
    nudged = model.nudged_phase(x, y, loss, record=True).trajectory
    assert free is not None  # they were asked for
    assert nudged is not None
    return free, nudged
