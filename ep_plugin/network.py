"""The convergent network: stem, layers of neurons, connections, readout."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ep_plugin.checks import chosen, fraction
from ep_plugin.connections import Connection, evaluate
from ep_plugin.dynamics import Dynamics, Values
from ep_plugin.encoders import Encoder, as_encoder
from ep_plugin.gradients.equilibrium_propagation import EquilibriumPropagation
from ep_plugin.gradients.estimator import GradientEstimator, require_finite
from ep_plugin.maps import at_least_float32, laid_out
from ep_plugin.neurons.layer import Layer
from ep_plugin.profiling import section
from ep_plugin.relaxation import ORDERS, Equilibrium, Relaxation, relax
from ep_plugin.shapes import expected_input

OBSERVED = {"membrane": "r, the neurons' own states", "trace": "u, what their spikes tell"}

# A nudge that reaches the first layer weaker than this is lost in the spikes' noise: with
# predictive spikes and a feedback of .15 the first layer's gradient has a cosine of .91 under three
# layers (attenuation .02) and of .16 under five (.0005).
_LEAST_ATTENUATION = 1e-3

# Feedback where none is asked for: weak enough for trained weights, but stronger the more levels a
# nudge has to pass, as far as networks still settle.
_WEAK, _STRONG, _ATTENUATION = 0.05, 0.15, 2e-3


class ConvergentNetwork(nn.Module):
    """Neurons that settle to an equilibrium under bidirectional connections.

    The stem runs once and drives the first layer; the layers and connections relax; the readout
    sees the equilibrium of the last layer. Stem and readout are ordinary modules under autograd.
    What lies between them gets its gradient from `gradient`.

    Args:
        stem: input -> drive of the first layer, `[B, ...]`.
        layers: the neurons; the last layer is the output.
        connections: edges among the layers: a chain, with skips, lateral or backward ones.
        readout: output equilibrium -> output; None gives the equilibrium itself. An equilibrium that
            sits on its bound cannot follow a nudge, and a large beta may then even reverse
            gradients: with no readout keep beta small (0.1).
        encoder: "predictive", "sigma_delta", "bernoulli", "graded", or an encoder.
        observe: "membrane" or "trace": whether readout and contrasts see r or only its spikes.
        feedback: strength of the feedback from a level to the one below, in (0, 1], or one a step,
            from the lowest; None chooses 0.05, 0.13 for four levels and 0.15 for more. A strong one
            carries the nudge further through the noise of spikes; but weights grow in training, and
            with them what goes around the loops, until the states no longer settle and the gradient
            is lost (2C2FC after ten epochs of MNIST: cosines below the readout of .09 and less with
            0.15, of .78 and more with 0.05). `GradientMonitor` watches it.
        relaxation: how the free phase settles.
        gradient: `EquilibriumPropagation`, `BackpropThroughTime` or `ImplicitDifferentiation`.
        time_first: the input changes over time, `[T, B, ...]`, as snnTorch's `spikegen` makes it and
            event data come. The free phase shows the frames in turn, each for the same number of
            steps, and the nudged phases the last of them again. What the theory promises holds for a
            constant input. Here neurons follow the frames as far as they can, and the gradient is
            that of states averaged over the last half of a phase under the frames' mean drive: good
            for rate codes, whose mean is the message, and not for codes of single spikes' times, unless
            pixels stay on after their spike: `spikegen.latency(..., clip=True).cumsum(0)`.

    `encoder`, `observe`, `feedback`, `relaxation` and `gradient` can be set at any time.

    Raises:
        ValueError, TypeError: a setting out of its range, or a graph that does not reach a layer.
    """

    def __init__(
        self,
        stem: nn.Module,
        layers: Sequence[Layer],
        connections: Sequence[Connection],
        readout: nn.Module | None = None,
        *,
        encoder: str | Encoder = "predictive",
        observe: str = "membrane",
        feedback: float | Sequence[float] | None = None,
        relaxation: Relaxation | None = None,
        gradient: GradientEstimator | None = None,
        time_first: bool = False,
    ) -> None:
        super().__init__()
        self.time_first = time_first
        self.stem = stem
        self.layers = nn.ModuleList(layers)
        self.connections = nn.ModuleList(connections)
        self.readout = nn.Identity() if readout is None else readout
        _check_graph(len(layers), connections)
        self._levels = [l if layer.level is None else layer.level for l, layer in enumerate(layers)]
        self.encoder = encoder
        self.observe = observe
        self.relaxation = Relaxation() if relaxation is None else relaxation
        self.gradient = EquilibriumPropagation() if gradient is None else gradient
        self.feedback = feedback

    # Settings, checked when they are set.

    @property
    def encoder(self) -> Encoder:
        return self._encoder

    @encoder.setter
    def encoder(self, encoder: str | Encoder) -> None:
        self._encoder = as_encoder(encoder)

    @property
    def observe(self) -> str:
        return self._observe

    @observe.setter
    def observe(self, observe: str) -> None:
        chosen("observe", observe, OBSERVED)
        self._observe = observe

    @property
    def feedback(self) -> tuple[float, ...]:
        return self._feedback

    @feedback.setter
    def feedback(self, feedback: float | Sequence[float] | None) -> None:
        steps = max(self._levels) - min(self._levels)
        if feedback is None:
            feedback = min(max(_WEAK, _ATTENUATION ** (1 / max(steps, 1))), _STRONG)
        values = [feedback] * steps if isinstance(feedback, (int, float)) else list(feedback)
        if isinstance(feedback, (int, float)):
            fraction("feedback", feedback)
        if len(values) != steps:
            raise ValueError(
                f"feedback has {len(values)} values; expected one number, or {steps}: one for each step between "
                f"the network's {steps + 1} levels, from the lowest"
            )
        self._feedback = tuple(fraction("feedback", g) for g in values)
        attenuation = 1 / max(self._scales())
        if self.encoder.spiking and attenuation < _LEAST_ATTENUATION:
            warnings.warn(
                f"the nudge reaches the first layer attenuated to {attenuation:.1e}, where the noise of spikes "
                f"hides it (below {_LEAST_ATTENUATION:g}); use a larger feedback, fewer layers, or "
                'encoder="graded"',
                stacklevel=3,
            )

    @property
    def relaxation(self) -> Relaxation:
        return self._relaxation

    @relaxation.setter
    def relaxation(self, relaxation: Relaxation) -> None:
        if not isinstance(relaxation, Relaxation):
            raise TypeError(f"relaxation is {relaxation!r}; expected Relaxation(steps=...)")
        self._relaxation = relaxation

    @property
    def gradient(self) -> GradientEstimator:
        return self._gradient

    @gradient.setter
    def gradient(self, gradient: GradientEstimator) -> None:
        if isinstance(gradient, type) or not hasattr(gradient, "equilibrium"):
            raise TypeError(
                f"gradient is {gradient!r}; expected EquilibriumPropagation(), BackpropThroughTime() or "
                "ImplicitDifferentiation()"
            )
        self._gradient = gradient

    # What the network does.

    def forward(self, x: Tensor) -> Tensor:
        """The readout of the equilibrium that `x` (`[B, ...]`, or `[T, B, ...]`) leads to, `[B, ...]`.

        Raises:
            ValueError, TypeError: `x` has a wrong shape or type, or holds NaN.
            FloatingPointError: a weight or state is not finite.
        """
        return self.infer(x)[0]

    def infer(self, x: Tensor) -> tuple[Tensor, Equilibrium]:
        """What `forward` returns, and the equilibrium that it was read from (without a graph)."""
        values, dynamics = self._values(x), self.dynamics()
        with torch.autocast(values.drive.device.type, enabled=False):
            state, equilibrium = self.gradient.equilibrium(dynamics, values, self.relaxation)
        self._require_finite_states(equilibrium)
        with section("readout and loss"):
            return self.readout(state), equilibrium

    @torch.no_grad()
    def relax(self, x: Tensor) -> Equilibrium:
        """The free phase alone."""
        values, dynamics = self._values(x), self.dynamics()
        with torch.autocast(values.drive.device.type, enabled=False):
            _, equilibrium = relax(dynamics, values, self.relaxation)
        self._require_finite_states(equilibrium)
        return equilibrium

    def energy(self, states: Sequence[Tensor], drive: Tensor) -> Tensor:
        """Energy of each sample, `[B]`, at the given states `[B, ...]` of all layers.

        `drive` is what the stem makes of the input, `[B, ...]`.
        """
        return self.dynamics().energy(states, self._values_of_drive(drive))

    def dynamics(self) -> Dynamics:
        """The equations under the present settings, with products in autocast's dtype if it is on."""
        return Dynamics(
            activations=tuple(layer.activation for layer in self._layers()),
            scales=self._scales(),
            connections=tuple(self._edges()),
            order=self._order(),
            encoder=self.encoder,
            step_size=self.relaxation.step_size,
            output=len(self.layers) - 1,
            observe=self.observe,
            products=self._products(),
        )

    def _products(self) -> torch.dtype | None:
        """The dtype that autocast asks for, if it is on where the parameters are."""
        device = next((t.device.type for t in (*self.parameters(), *self.buffers())), "cpu")
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def _layers(self) -> list[Layer]:
        return list(self.layers)  # type: ignore[arg-type]

    def _edges(self) -> list[Connection]:
        return list(self.connections)  # type: ignore[arg-type]

    def _scales(self) -> tuple[float, ...]:
        """c_l: 1 at the output's level, divided by the feedback for every level below."""
        lowest = min(self._levels)
        at_level = [1.0]
        for g in self._feedback:
            at_level.append(at_level[-1] * g)
        at_output = at_level[self._levels[-1] - lowest]
        return tuple(at_level[level - lowest] / at_output for level in self._levels)

    def _order(self) -> tuple[tuple[int, ...], ...]:
        """Groups of layers that move at once: all of them, or the colour classes of the graph."""
        if not ORDERS[self.relaxation.order]:
            return (tuple(range(len(self.layers))),)
        colours: list[int] = []
        for l in range(len(self.layers)):
            taken = {
                colours[other]
                for c in self._edges()
                for other in (c.source, c.target)
                if l in (c.source, c.target) and other < l
            }
            colours.append(min(set(range(len(taken) + 1)) - taken))
        return tuple(tuple(l for l, c in enumerate(colours) if c == colour) for colour in range(max(colours) + 1))

    # The door.

    def _values(self, x: Tensor) -> Values:
        _check_input(x, self.stem, self.time_first)
        try:
            with section("stem"):
                drive = evaluate(self.stem, x.flatten(0, 1) if self.time_first else x)
        except RuntimeError as error:
            raise ValueError(
                f"an input of shape {list(x.shape)} does not fit the modules before the first neuron: {error}"
            ) from error
        if not self.time_first:
            return self._values_of_drive(drive)
        frames = at_least_float32(drive).unflatten(0, x.shape[:2])
        steps_a_frame = _steps_a_frame(self.relaxation, len(x))
        values = self._values_of_drive(frames.mean(0))
        return values._replace(frames=frames.repeat_interleave(steps_a_frame, 0) if steps_a_frame > 1 else frames)

    def _values_of_drive(self, drive: Tensor) -> Values:
        shapes = self._shapes(drive)
        thresholds = tuple(layer.theta for layer in self._layers())
        weights = tuple(c.tensors(shapes[c.source]) for c in self._edges())
        values = Values(drive, thresholds, weights)
        # Under autocast stem and products compute in half precision; states, forces and contrasts never do.
        values = values.like([laid_out(at_least_float32(t)) for t in values.flat()])
        require_finite(
            "a value",
            values.flat(),
            [
                "the drive of layer 0 (the input, or the weights before the first neuron)",
                *(f"the threshold of layer {l}" for l in range(len(thresholds))),
                *(
                    f"the weights of {c.source} -> {c.target}"
                    for c, own in zip(self._edges(), weights, strict=True)
                    for _ in own
                ),
            ],
        )
        learnable = [t for t in values.thresholds if t.requires_grad]
        if learnable and not bool(torch.stack([(t > 0).all() for t in learnable]).all()):
            raise ValueError(
                "a learnable threshold has fallen to 0 or below, where a neuron has no equilibrium; lower its "
                "learning rate or clamp it after each step"
            )
        return values

    def _shapes(self, drive: Tensor) -> dict[int, tuple[int, ...]]:
        """Every layer's shape without the batch, once connections and thresholds are known to fit."""
        shapes: dict[int, tuple[int, ...]] = {0: tuple(drive.shape[1:])}
        pending = self._edges()
        while pending:
            connection = next(c for c in pending if c.source in shapes)
            pending.remove(connection)
            i, j = connection.source, connection.target
            try:
                shape = connection.shapes(shapes[i])[-1]
            except RuntimeError as error:
                raise ValueError(
                    f"the connection {i} -> {j} does not fit layer {i}, which has the shape {list(shapes[i])} "
                    f"for this input: {error}"
                ) from error
            if shapes.setdefault(j, shape) != shape:
                raise ValueError(
                    f"the connection {i} -> {j} gives the shape {list(shape)}; expected {list(shapes[j])}, which "
                    f"layer {j} has"
                )
        for l, layer in enumerate(self._layers()):
            threshold = layer.theta
            if threshold.dim() == 0:
                continue
            if not _broadcasts(threshold.shape, (1, *shapes[l])):
                raise ValueError(
                    f"the threshold of layer {l} has the shape {list(threshold.shape)}, which does not "
                    f"broadcast against the layer's neurons {list(shapes[l])}"
                )
        return shapes

    def _require_finite_states(self, equilibrium: Equilibrium) -> None:
        require_finite(
            "the state of a neuron",
            list(equilibrium.states),
            [f"layer {l}" for l in range(len(equilibrium.states))],
        )


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Whether a tensor of `shape` combines with one of `target` without changing its shape."""
    return len(shape) <= len(target) and all(n in (1, m) for n, m in zip(shape[::-1], target[::-1], strict=False))


def _check_graph(layers: int, connections: Sequence[Connection]) -> None:
    if layers == 0:
        raise ValueError("the network has no layer of neurons; expected at least one")
    for c in connections:
        if not isinstance(c, Connection):
            raise TypeError(f"{c!r} is not a Connection; expected Connection(module, source, target)")
        if not (0 <= c.source < layers and 0 <= c.target < layers):
            raise ValueError(f"the connection {c.source} -> {c.target} names a layer outside 0..{layers - 1}")
    reached, before = {0}, 0
    while len(reached) > before:
        before = len(reached)
        reached |= {c.target for c in connections if c.source in reached}
    if missing := sorted(set(range(layers)) - reached):
        raise ValueError(f"no connection leads from layer 0 to layer {missing[0]}")


def _steps_a_frame(relaxation: Relaxation, frames: int) -> int:
    if relaxation.steps % frames:
        raise ValueError(
            f"the relaxation takes {relaxation.steps} steps for {frames} frames; expected one or more steps for each "
            f"frame, such as Relaxation({frames})"
        )
    if relaxation.tolerance is not None:
        raise ValueError(
            f"the relaxation has the tolerance {relaxation.tolerance:g}, at which a sample stops; expected None, as "
            "an input that changes over time has to be seen to its end"
        )
    return relaxation.steps // frames


def _check_input(x: Tensor, stem: nn.Module, time_first: bool) -> None:
    leading = ["time", "batch"] if time_first else ["batch"]
    if not isinstance(x, Tensor):
        raise TypeError(f"the input is a {type(x).__name__}; expected a tensor [{', '.join(leading)}, ...]")
    if not x.is_floating_point():
        raise TypeError(
            f"the input has the type {x.dtype}; expected floating point (images in [0, 1]: x.float() / 255)"
        )
    expected = expected_input(stem)
    shape = list(x.shape)
    sample = shape[len(leading) :]
    if expected is None:
        if not sample:
            raise ValueError(f"the input has the shape {shape}; expected [{', '.join(leading)}, ...]")
    elif len(expected) != len(sample) or any(e != n for e, n in zip(expected, sample, strict=True) if e is not None):
        words = ", ".join([*leading, *("size" if e is None else str(e) for e in expected)])
        raise ValueError(f"the input has the shape {shape}; expected [{words}]")
    if 0 in shape[: len(leading)]:
        raise ValueError(f"the input has the shape {shape}: an empty batch; expected at least one sample")
    if not bool(x.isfinite().all()):
        raise ValueError("the input holds NaN or infinite values; expected finite numbers")
