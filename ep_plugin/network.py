"""The convergent network: stem, layers of neurons, connections, readout."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from ep_plugin.dynamics.deviations import Deviations
from ep_plugin.dynamics.encoders import Encoder, EncoderName
from ep_plugin.dynamics.encoders.event_weights import EventWeights, FixedEvents, is_fixed
from ep_plugin.dynamics.layer import Layer
from ep_plugin.dynamics.relaxation import Equilibrium, Observed, Relaxation, relax
from ep_plugin.dynamics.system import System, Values
from ep_plugin.estimators.equilibrium_propagation import EquilibriumPropagation
from ep_plugin.estimators.estimator import GradientEstimator
from ep_plugin.estimators.full_phases import FullPhaseEP
from ep_plugin.linear.base import at_least_float32, laid_out
from ep_plugin.linear.connection import Connection, evaluate
from ep_plugin.network_checks import (
    check_graph,
    check_input,
    check_settings,
    checked_part,
    layer_shapes,
    misfit,
    require_finite_states,
    require_positive_thresholds,
    require_room,
    require_unhooked,
    steps_a_frame,
    unread,
)
from ep_plugin.out_of_memory import is_out_of_memory
from ep_plugin.profiling import section
from ep_plugin.settings import Settings, refuse_fixed, setting
from ep_plugin.spelling import refuse_misspelled
from ep_plugin.tensors import in_the_type_of, outside_autocast
from ep_plugin.validation import require_finite

Loss = Callable[[Tensor, Tensor], Tensor]


class ConvergentNetwork(nn.Module):
    """Neurons that settle to an equilibrium under bidirectional connections.

    The stem runs once and drives the first layer. The layers and connections relax. The readout sees the equilibrium of
    the last layer. Stem and readout are ordinary modules under autograd. Everything between them gets its gradient from
    `estimator`.

    Args:
        stem: input -> drive of the first layer, `[B, ...]`; if several layers are `driven`, a tuple with the drive
            of each.
        layers: the neurons.
        connections: edges among the layers: a chain, and also skip, lateral or backward connections.
        readout: equilibrium of the last layer -> output; if several layers are `read`, it takes one argument per
            layer. None returns the equilibrium itself (a tuple if several layers are read).
        encoder: what neurons send: "adaptive_delta" (signed events), "predictive_sigma_delta", "sigma_delta" or
            "bernoulli" (binary spikes), "graded" (no spikes), or an encoder.
        observe: "trace" or "membrane": whether readout and contrasts see only what the spikes carry, or the
            neurons' own states.
        feedback: strength of the feedback from a level to the one below, in (0, 1], or one number for each step
            between levels, from the lowest. None is 0.02. Weights grow in training, and the gain of the
            loops through the feedback grows with them: a strong feedback keeps a trained net from settling, and its
            gradient is lost.
        relaxation: how the free phase settles.
        estimator: `EquilibriumPropagation`, `FullPhaseEP`, `BackpropThroughTime` or `ImplicitDifferentiation`.
        time_varying: the input changes over time, `[T, B, ...]`, as from snnTorch's `spikegen` or in event data. The
            free phase shows the frames one after the other, each for the same number of steps. The theory is for
            a constant input. Here neurons follow the frames as far as they can, and the gradient is that around
            the mean states of the last half of the steps, under the mean drive of these steps. This works for
            rate codes, whose message is the mean. It does not work for codes of single spike times, unless pixels
            stay on after their spike: `spikegen.latency(..., clip=True).cumsum(0)`.
        time_axis: where the frames are in a time-varying input: 1 for `[B, T, ...]`, -1 for `[B, ..., T]`.
        driven: the layers that the stem drives.
        read: the layers that the readout sees; by default the last one.

    Attributes:
        settings: encoder, observe, feedback, relaxation, estimator, time_varying and time_axis in one object.
            Each of them can also be set at any time as an attribute of the network.
        event_weights: the weights of fixed events; None for other encoders.

    Raises:
        ValueError: a setting is out of its range, or a layer cannot be reached in the graph.
        TypeError: a setting has a wrong type.

    Example:
        >>> layers = [ep.Layer(), ep.Layer()]
        >>> connections = [ep.Connection(nn.Linear(32, 16), source=0, target=1)]
        >>> model = ep.ConvergentNetwork(nn.Linear(64, 32), layers, connections, nn.Linear(16, 10))
        >>> model(torch.rand(5, 64)).shape
        torch.Size([5, 10])
    """

    encoder: Encoder = setting("encoder")
    observe: Observed = setting("observe")
    feedback: float | tuple[float, ...] = setting("feedback")
    relaxation: Relaxation = setting("relaxation")
    estimator: GradientEstimator = setting("estimator")
    time_varying: bool = setting("time_varying")
    time_axis: int = setting("time_axis")

    def __init__(
        self,
        stem: nn.Module,
        layers: Sequence[Layer],
        connections: Sequence[Connection],
        readout: nn.Module | None = None,
        *,
        encoder: EncoderName | Encoder = "adaptive_delta",
        observe: Observed = "trace",
        feedback: float | Sequence[float] | None = None,
        relaxation: Relaxation | None = None,
        estimator: GradientEstimator | None = None,
        time_varying: bool = False,
        time_axis: int = 0,
        driven: Sequence[int] = (0,),
        read: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.origin: Any = None  # of what `convert` has made: the model that it was made of
        self.stem = stem
        self.layers = nn.ModuleList(layers)
        self.connections = nn.ModuleList(connections)
        self.readout: nn.Module = readout  # type: ignore[assignment]
        self.driven: tuple[int, ...] = driven  # type: ignore[assignment]
        self.read: tuple[int, ...] = (max(len(layers) - 1, 0),) if read is None else read  # type: ignore[assignment]
        self._graph = self._present_graph()
        check_graph(self._layers(), self._edges(), self.driven, self.read, self.readout)
        self.event_weights: EventWeights | None = None
        self._configure(
            Settings(
                encoder=encoder,
                observe=observe,
                feedback=feedback,
                relaxation=Relaxation() if relaxation is None else relaxation,
                estimator=EquilibriumPropagation() if estimator is None else estimator,
                time_varying=time_varying,
                time_axis=time_axis,
            )
        )

    def variant(self, **changes: Any) -> "ConvergentNetwork":
        """The same network with other settings. It shares all modules and parameters with this one.

        Args:
            changes: any of the constructor's `encoder`, `observe`, `feedback`, `relaxation`, `estimator`,
                `time_varying`, `time_axis`.

        Returns:
            A network in the same mode (training or evaluation). Later modes are shared too: `train()` or `eval()` of
            one counts for the other from its next call on.

        Raises:
            ValueError: a setting is out of its range.
            TypeError: a setting is unknown or has a wrong type.

        Example:
            >>> graded = model.variant(encoder="graded")
        """
        settings = self.settings.changed(changes)
        readout = None if isinstance(self.readout, _Equilibria) else self.readout
        options = {**vars(settings), "driven": self.driven, "read": self.read}
        other = ConvergentNetwork(self.stem, self._layers(), self._edges(), readout, **options)
        if other.event_weights is not None:
            other.event_weights = self.event_weights or other.event_weights.train(self.training)
        other.training, other.origin = self.training, self.origin
        return other

    def reset_event_weights(self) -> None:
        """Forgets the weights of fixed events. Training mode finds them again, for the present settings."""
        if is_fixed(self.encoder):
            self.event_weights = EventWeights(len(self.layers), self.steps, self._found_with())
            self.event_weights.to(self._layers()[0].threshold.device).train(self.training)

    @property
    def levels(self) -> tuple[int, ...]:
        """Of every layer, how many feedback steps it stands above the lowest."""
        levels = [l if layer.level is None else layer.level for l, layer in enumerate(self._layers())]
        least = min(levels)
        return tuple(level - least for level in levels)

    @property
    def steps(self) -> tuple[int, int]:
        """How many steps the free and the nudged phase take (0 without a nudged phase)."""
        free = self.relaxation.steps_for(self, self.encoder)
        estimator = self.estimator
        if isinstance(estimator, EquilibriumPropagation):
            return free, estimator.steps_for(self, self.encoder)
        return free, estimator.steps if isinstance(estimator, FullPhaseEP) else 0

    @overload
    def forward(self, x: Tensor, return_equilibrium: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(self, x: Tensor, return_equilibrium: Literal[True]) -> tuple[Tensor, Equilibrium]: ...

    def forward(self, x: Tensor, return_equilibrium: bool = False) -> Tensor | tuple[Tensor, Equilibrium]:
        """Settles, and returns the readout of the equilibrium.

        Args:
            x: `[B, ...]`, or `[T, B, ...]` if `time_varying` (T along `time_axis`).
            return_equilibrium: also return the equilibrium that the readout saw. It has no graph, so that a penalty on
                it trains nothing; the layers in `read` reach the loss through the readout, with a gradient.

        Returns:
            The output `[B, ...]`; with `return_equilibrium` a pair of the output and the `Equilibrium`.

        Raises:
            ValueError: `x` has a wrong shape, or holds NaN.
            TypeError: `x` is not a tensor of floating point numbers.
            FloatingPointError: a weight or state is not finite.
        """
        system = self.system(x)
        relaxation, sender = self._settling(system)
        with outside_autocast(system.like):
            states, free = self.estimator.solve(system, sender, relaxation, self.observe, return_equilibrium)
        require_finite_states(free)
        with section("readout and loss"):
            output = self._read_out(states, x)
        return (output, free.equilibrium()) if return_equilibrium else output

    @torch.no_grad()
    def free_phase(self, x: Tensor, record: bool = False) -> Equilibrium:
        """Runs the free phase alone.

        Args:
            x: as in `forward`.
            record: keep states, traces and spikes of every step in `Equilibrium.trajectory`.

        Returns:
            The equilibrium.

        Raises:
            ValueError: as `forward`; or the record would not fit into memory.
            TypeError: as `forward`.
            FloatingPointError: as `forward`.
        """
        system = self.system(x)
        relaxation, sender = self._settling(system)
        if record:
            require_room(system, relaxation.steps_for(self, self.encoder), x.shape)
        with outside_autocast(system.like):
            free = relax(system, sender, relaxation, self.observe, record)
        require_finite_states(free)
        return free.equilibrium()

    def nudged_phase(self, x: Tensor, y: Tensor, loss: Loss, record: bool = False) -> Deviations:
        """Runs a free phase and the nudged phase of `EquilibriumPropagation` after it.

        Args:
            x: as in `forward`.
            y: the second argument of `loss`.
            loss: (output, y) -> scalar.
            record: keep deviations, traces and events of every step in `Deviations.trajectory`.

        Returns:
            How far each layer is moved. With symmetric nudging the second phase's samples follow those of the first.

        Raises:
            ValueError: as `forward`; the record would not fit into memory; or the estimator is another one.
            TypeError: as `forward`.
        """
        estimator = self.estimator
        if not isinstance(estimator, EquilibriumPropagation):
            raise ValueError(
                f"the estimator is {type(estimator).__name__}, which has no phase of deviations; expected "
                "EquilibriumPropagation(): model.variant(estimator=EquilibriumPropagation())"
            )
        with torch.no_grad():
            system = self.system(x).detach()
            relaxation, sender = self._settling(system)
            if record:
                require_room(system, 2 * self.steps[1], x.shape)
            with outside_autocast(system.like):
                free = relax(system, sender, relaxation, self.observe, counted=False)
        read = [free.observed[l].clone().requires_grad_() for l in self.read]
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(self._read_out(read, x), y), read)
        with torch.no_grad(), outside_autocast(system.like):
            return estimator.phases(system, free.point, gradients, sender, relaxation, self.observe, record)[0]

    def energy(self, states: Sequence[Tensor], x: Tensor) -> Tensor:
        """Energy of each sample.

        Args:
            states: of all layers, `[B, ...]`.
            x: the input, as in `forward`.

        Returns:
            The energy E that `ep_plugin.dynamics.system` defines, `[B]`.

        Raises:
            ValueError: as `forward`, or an activation has no potential.
        """
        return self.system(x).energy(states)

    def system(self, x: Tensor) -> System:
        """The equations for a batch under the present settings, with products in autocast's dtype if autocast is on.

        Args:
            x: as in `forward`.

        Returns:
            The system. Its values are on autograd's graph.

        Raises:
            ValueError: as `forward`.
            TypeError: as `forward`.
        """
        self._check_graph_again()
        self._follow_mode()
        if self.origin is not None:
            self.origin.check(self)
        require_unhooked(self._layers(), self._edges())
        check_input(x, self.stem, self.time_axis if self.time_varying else None)
        x = x.movedim(self.time_axis, 0) if self.time_varying else x
        try:
            with section("stem"):
                made = evaluate(self.stem, x.flatten(0, 1) if self.time_varying else x)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise misfit(x, self.stem, error) from error
        drives = tuple(made) if isinstance(made, tuple) else (made,)
        if len(drives) != len(self.driven):
            raise ValueError(f"the stem gives {len(drives)} drives; expected {len(self.driven)}, one a driven layer")
        if not self.time_varying:
            return self._system(drives, None)
        steps = steps_a_frame(self.relaxation, self.steps[0], len(x))
        frames = tuple(at_least_float32(d).unflatten(0, x.shape[:2]).repeat_interleave(steps, 0) for d in drives)
        seen = len(frames[0]) // 2
        return self._system(tuple(f[seen:].mean(0) for f in frames), frames)

    def _read_out(self, states: Sequence[Tensor], x: Tensor) -> Tensor:
        """What the readout says of the states that it sees for this input."""
        try:
            return self.readout(*in_the_type_of(self.readout, states))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise unread(x, states, self.read, self.readout, error) from error

    def _follow_mode(self) -> None:
        """Takes the mode of the modules that others have too, where these all have the other one.

        The original's `eval()` and `train()` reach what this network shares with it, and a variant's all but the
        network itself.
        """
        shared = (self.origin.shared if self.origin is not None else None) or self._layers()
        if all(module.training is not self.training for module in shared):
            self.train(not self.training)

    def _system(self, drives: tuple[Tensor, ...], frames: tuple[Tensor, ...] | None) -> System:
        layers, edges = self._layers(), self._edges()
        shapes = layer_shapes(layers, edges, self.driven, drives)
        width = at_least_float32(drives[0]).dtype
        thresholds = tuple(layer.theta.to(width) for layer in layers)
        values = Values(drives, thresholds, tuple(c.tensors(shapes[c.source], drives[0]) for c in edges))
        # Under autocast stem and products compute in half precision; states, forces and contrasts never do.
        values = values.like([laid_out(at_least_float32(t)) for t in values.flat()])._replace(frames=frames)
        system = System(
            activations=tuple(layer.activation for layer in layers),
            levels=self.levels,
            feedback=self.settings.between(max(self.levels)),
            connections=tuple(edges),
            driven=self.driven,
            read=self.read,
            shapes=tuple(shapes),
            values=values,
            products=self._products(),
        )
        require_finite("a value", values.flat(), system.names(), self)
        require_positive_thresholds(layers)
        return system

    def __setattr__(self, name: str, value: Any) -> None:
        settings = vars(self).get("settings")
        refuse_misspelled(self, "a network has no setting", name, Settings.__dataclass_fields__)
        if not hasattr(self, name):
            refuse_fixed(name)
        if name == "levels":
            raise AttributeError("levels follow from the layers; set model.layers[i].level")
        if settings is not None and not hasattr(self, name) and (whole := settings.owner_of(name)):
            kind = type(getattr(settings, whole)).__name__
            raise AttributeError(f"a network has no setting {name!r}; set model.{whole} = {kind}({name}=...)")
        super().__setattr__(name, checked_part(name, _Equilibria() if name == "readout" and value is None else value))

    def _present_graph(self) -> list[Any]:
        """All that `check_graph` and `check_settings` look at."""
        found: list[Any] = [self.driven, self.read, self.readout]
        for layer in self._layers():
            found += (layer, getattr(layer, "level", None), getattr(layer, "activation", None))
        for c in self._edges():
            found += (c, getattr(c, "source", None), getattr(c, "target", None))
        return found

    def _check_graph_again(self) -> None:
        """Once layers, connections or what they join have changed."""
        if (graph := self._present_graph()) == self._graph:
            return
        check_graph(self._layers(), self._edges(), self.driven, self.read, self.readout)
        self._configure(self.settings)
        if self.event_weights is not None and self.event_weights.values.shape[1] != len(self.layers):
            raise ValueError(
                f"the fixed event weights were found with {self.event_weights.values.shape[1]} layers, and there are "
                f"{len(self.layers)}; find them anew: model.reset_event_weights(), and some training steps"
            )
        self._graph = graph

    def _configure(self, settings: Settings) -> None:
        settings.between(max(self.levels))
        check_settings(settings, self._layers(), self._edges())
        self.settings = settings
        if not is_fixed(settings.encoder):
            self.event_weights = None
        elif self.event_weights is None:
            self.reset_event_weights()

    def _settling(self, system: System) -> tuple[Relaxation, Encoder]:
        """How this batch settles: frames are all shown, and fixed events have their constants."""
        relaxation, frames = self.relaxation, system.values.frames
        if frames is not None:
            relaxation = replace(relaxation, steps=len(frames[0]))
        if self.event_weights is None:
            return relaxation, self.encoder
        if relaxation.steps_for(self, self.encoder) != self.steps[0]:
            raise ValueError(
                f"the input's frames take {relaxation.steps} steps, and fixed event weights are constants of "
                f"{self.steps[0]}; set model.relaxation = Relaxation({relaxation.steps}), and find them anew: "
                "model.reset_event_weights(), and some training steps in training mode"
            )
        self.event_weights.require(self._found_with())
        return relaxation, FixedEvents(self.event_weights, int(self.encoder.digits))

    def _found_with(self) -> dict[str, Any]:
        """What fixed event weights depend on."""
        found: dict[str, Any] = {
            "free steps": self.steps[0],
            "digits": self.encoder.digits,
            "feedback": self.feedback,
        }
        if isinstance(self.estimator, EquilibriumPropagation):
            found |= {"nudged steps": self.steps[1], "beta": self.estimator.beta}
        return found

    def _products(self) -> torch.dtype | None:
        """The dtype that autocast asks for, if it is on where the parameters are."""
        device = next((t.device.type for t in (*self.parameters(), *self.buffers())), "cpu")
        if device == "meta":
            return None
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def _layers(self) -> list[Layer]:
        return list(self.layers)  # type: ignore[arg-type]

    def _edges(self) -> list[Connection]:
        return list(self.connections)  # type: ignore[arg-type]


class _Equilibria(nn.Module):
    """No readout: the equilibrium of the read layer, or of several."""

    def forward(self, *states: Tensor) -> Tensor | tuple[Tensor, ...]:
        return states[0] if len(states) == 1 else states
