"""Operations of a convergent network: its phases run as they are, with an encoder that takes notes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ep_plugin.analysis.operation_counts import Loss, Memory, Operations
from ep_plugin.analysis.plain_operations import bytes_kept, products, weight_bytes, weights_of
from ep_plugin.analysis.synapses import Synapses
from ep_plugin.dynamics.encoders.base import Encoder, Message
from ep_plugin.dynamics.relaxation import relax
from ep_plugin.dynamics.system import System
from ep_plugin.estimators.backprop_through_time import BackpropThroughTime
from ep_plugin.estimators.equilibrium_propagation import EquilibriumPropagation
from ep_plugin.estimators.full_phases import FullPhaseEP
from ep_plugin.linear.connection import BoundConnection, Connection
from ep_plugin.network import ConvergentNetwork
from ep_plugin.tensors import in_the_type_of, outside_autocast

FREE, NUDGED = "free phase", "nudged phase"

_SIGN, _FLOAT, _EXPONENT = 1, 32, 8  # bits of what an event may carry

# Numbers that a neuron keeps: drive and trace; for training the drive and the state at the end of the free phase and
# the deviation beside them, or the means of two full phases.
_INFERENCE, _DEVIATIONS, _FULL_PHASES = 2, 5, 4

_FEW = 4  # samples that the memory of backpropagation through time is measured on


def counted(model: ConvergentNetwork, x: Tensor, y: Any, loss: Loss) -> tuple[list[Operations], Memory]:
    """See `count_operations`."""
    estimator = model.estimator
    if y is not None and not isinstance(estimator, (EquilibriumPropagation, FullPhaseEP, BackpropThroughTime)):
        raise ValueError(
            f"a training step with {type(estimator).__name__} cannot be counted: it has no phases of spikes. Count "
            "model.variant(estimator=EquilibriumPropagation()), or an inference: leave y out"
        )
    with torch.set_grad_enabled(y is not None):
        system = model.system(x)
        relaxation, sender = model._settling(system)
        ledger = _Ledger(system.detach())
        encoder = _Noting(sender, ledger, relaxation.steps_for(model, sender))
        with outside_autocast(system.like):
            if y is None:
                free = relax(system, encoder, relaxation, model.observe, counted=False)
                states = tuple(free.observed[l] for l in model.read)
            else:
                states, free = estimator.solve(system, encoder, relaxation, model.observe, counted=False)
        ledger.settle(free.point.bound)
        with products(model.readout) as readout:
            output = model.readout(*in_the_type_of(model.readout, states))
        if y is not None:
            loss(output, y).backward()
        with products(model.stem) as stem:
            model.stem(_at_once(model, x))
    batch = len(system.like)
    stem_products, readout_products = (
        [sum(vars(p)[k] for p in of.values()) / batch for k in _PARTS] for of in (stem, readout)
    )
    rows = [Operations(FREE, "stem", multiply_adds=stem_products[0], dense=stem_products[0])]
    rows += ledger.rows(FREE, batch)
    rows.append(Operations(FREE, "readout", multiply_adds=readout_products[0], dense=readout_products[0]))
    if y is not None:
        read = sum(states[k][0].numel() for k in range(len(states)))
        rows += _training(model, ledger, stem_products, readout_products, read, batch)
    return rows, _memory(model, system, x, y is not None)


_PARTS = ("dense", "weights", "inputs")  # of `Products`


def _training(
    model: ConvergentNetwork, ledger: "_Ledger", stem: list[float], readout: list[float], read: int, batch: int
) -> Iterator[Operations]:
    backprop = isinstance(model.estimator, BackpropThroughTime)
    phase = "backward" if backprop else NUDGED
    # The force of a sample is normalized: a reduction over the read layers.
    force = {} if backprop else {"reductions": 1, "reduction_operands": read, "bits": _FLOAT}
    yield Operations(phase, "readout", multiply_adds=readout[2], dense=readout[2], **force)
    if backprop:
        for row in ledger.rows(FREE, batch):
            yield Operations(
                phase,
                row.name,
                row.neurons,
                neuron_updates=row.neuron_updates,
                multiply_adds=row.dense,
                dense=row.dense,
            )
    else:
        yield from ledger.rows(NUDGED, batch)
    seen: set[int] = set()
    update = "weight update"
    yield Operations(
        update,
        "stem",
        multiply_adds=stem[1] + stem[2],
        dense=stem[1] + stem[2],
        weight_updates=weights_of(model.stem, seen),
    )
    for l, layer in enumerate(model.layers):  # learnable thresholds
        if own := weights_of(layer, seen):
            yield Operations(
                update, f"layer {l}", ledger.neurons(l), multiply_adds=ledger.neurons(l), weight_updates=own
            )
    for c, connection in enumerate(_edges(model)):
        learned = any(p.requires_grad for p in connection.parameters())
        # The contrast has two products a synapse; BPTT's weights have those of every step, up and down.
        times = ledger.products(connection) if backprop else 2 * batch
        made = times * ledger.dense(c) / batch if learned else 0.0
        yield Operations(
            update,
            f"{connection.source} -> {connection.target}",
            multiply_adds=made,
            dense=made,
            weight_updates=weights_of(connection, seen),
        )
    yield Operations(
        update, "readout", multiply_adds=readout[1], dense=readout[1], weight_updates=weights_of(model.readout, seen)
    )


def _at_once(model: ConvergentNetwork, x: Tensor) -> Tensor:
    return x.movedim(model.time_axis, 0).flatten(0, 1) if model.time_varying else x


def _edges(model: ConvergentNetwork) -> list[Connection]:
    return list(model.connections)  # type: ignore[arg-type]


def _memory(model: ConvergentNetwork, system: System, x: Tensor, trained: bool) -> Memory:
    number = sum(torch.Size(s).numel() for s in system.shapes) * system.like.element_size()
    backprop = 0
    if trained:
        batch_axis = 1 if model.time_varying and model.time_axis == 0 else 0
        few = x.narrow(batch_axis, 0, min(_FEW, x.shape[batch_axis]))
        through_time = model.variant(estimator=BackpropThroughTime())
        with torch.enable_grad(), bytes_kept(model) as kept:
            through_time(few)
        backprop = kept() // few.shape[batch_axis]
    kinds = {EquilibriumPropagation: _DEVIATIONS * number, FullPhaseEP: _FULL_PHASES * number}
    training = next((size for kind, size in kinds.items() if isinstance(model.estimator, kind)), backprop)
    return Memory(weight_bytes(model), _INFERENCE * number, training if trained else 0, backprop)


@dataclass
class _State:
    """An encoder's state that knows whose it is."""

    inner: Any
    layer: int

    @property
    def trace(self) -> Tensor:
        return self.inner.trace

    @trace.setter
    def trace(self, value: Tensor) -> None:
        self.inner.trace = value

    def repeated(self, times: int) -> "_State":
        return _State(self.inner.repeated(times), self.layer)


class _Noting:
    """An encoder that enters into the ledger what it sends.

    Args:
        inner: the encoder.
        ledger: where its messages are counted.
        free: steps of the free phase; full phases go on behind them.
        deviations: it tells deviations.
    """

    def __init__(self, inner: Encoder, ledger: "_Ledger", free: int, deviations: bool = False) -> None:
        self.inner, self.ledger, self.free, self.deviations = inner, ledger, free, deviations
        self.spiking, self.signed, self.averages = inner.spiking, inner.signed, inner.averages

    @property
    def digits(self) -> float:
        return self.inner.digits

    def start(self, like: Tensor, layer: int) -> Any:
        return _State(self.inner.start(like, layer), layer)

    def encode(self, signal: Tensor, state: Any, time: int, maximum: float) -> Message:
        message = self.inner.encode(signal, state.inner, time, maximum)
        phase = NUDGED if self.deviations or time > self.free else FREE
        self.ledger.see(phase, state.layer, message, state.inner.trace, self.inner, self.deviations)
        return message

    def for_deviations(self) -> Encoder:
        return _Noting(self.inner.for_deviations(), self.ledger, self.free, deviations=True)


@dataclass
class _Sent:
    """What a layer has sent in a phase, all samples together."""

    events: Tensor | None = None  # [*shape], how often each neuron
    spiking: bool = True
    neuron_updates: float = 0.0
    reductions: float = 0.0
    up: float = 0.0
    down: float = 0.0
    bits: float = 0.0


class _Ledger:
    """Counts messages as they are sent. Where only winners pass, it follows them.

    Attributes:
        bound: the connections, as they are at present.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self.bound: list[BoundConnection] = list(system.plain)
        self.sent: dict[tuple[str, int], _Sent] = {}
        self._fan_outs: dict[int, tuple[Tensor, Tensor]] = {}
        self._dense: dict[int, float] = {}

    @torch.no_grad()
    def see(self, phase: str, l: int, message: Message, trace: Tensor, encoder: Encoder, deviations: bool) -> None:
        own = self.sent.setdefault((phase, l), _Sent(spiking=message.events is not None))
        sent = [message.sent != 0] if message.events is None else [slot.abs() for slot in message.slots()]
        events = torch.stack([t.detach().double() for t in sent]).sum(0)
        total = events.sum(0)
        own.events = total if own.events is None else own.events + total
        own.neuron_updates += events.numel()
        weighed = {"sample": _FLOAT, "power_of_two": _EXPONENT}.get(getattr(encoder, "event_weight", ""))
        if weighed is not None:
            own.reductions += len(events)
            own.bits += weighed * len(events)
        if own.spiking and encoder.signed:
            own.bits += _SIGN * total.sum().item()
        for c, bound in enumerate(self.bound):
            if bound.is_linear or l not in (bound.source, bound.target):
                continue
            if bound.source == l and not deviations:
                self.bound[c] = bound.at(trace.detach())[0]
            synapses = Synapses(self._pinned(c, len(events), events))
            if bound.source == l:
                own.up += synapses.up(events).sum().item()
            if bound.target == l:
                own.down += synapses.down(events).sum().item()

    def settle(self, bound: Sequence[BoundConnection]) -> None:
        """From now on the winners are those of these connections."""
        self.bound = [own if own.is_linear else b for own, b in zip(self.bound, bound, strict=True)]

    def _pinned(self, c: int, samples: int, like: Tensor) -> BoundConnection:
        """A connection with its winners, for so many samples."""
        bound = self.bound[c]
        held = [len(t) for p in bound.parts if not p.map.is_linear for t in p.tensors]
        if not held:  # nothing has come by: the winners of the state at rest
            rest = torch.zeros(
                samples, *self.system.shapes[bound.source], dtype=self.system.like.dtype, device=like.device
            )
            return bound.at(rest)[0]
        return bound if held[0] >= samples else bound.repeated(samples // held[0])

    def fan_out(self, c: int) -> tuple[Tensor, Tensor]:
        if c not in self._fan_outs:
            bound = self.bound[c]
            self._fan_outs[c] = Synapses(bound).fan_out(tuple(self.system.shapes[bound.source]))
        return self._fan_outs[c]

    def dense(self, c: int) -> float:
        """All synapses of a connection."""
        if c not in self._dense:
            bound = self.bound[c] if self.bound[c].is_linear else self._pinned(c, 1, self.system.like)
            shape = (1, *self.system.shapes[bound.source])
            parts = _first_sample(bound)
            ones = torch.ones(shape, dtype=torch.float64, device=self.system.like.device)
            self._dense[c] = Synapses(parts, zeros=True).up(ones).item()
        return self._dense[c]

    def products(self, connection: Connection) -> float:
        """How often a connection was passed in the free phase, up and down, all samples together."""
        ends = (connection.source, connection.target)
        return sum(self.calls(FREE, l) for l in ends)

    def calls(self, phase: str, l: int) -> float:
        """How often a layer has sent, all samples together."""
        own = self.sent.get((phase, l))
        return 0.0 if own is None else own.neuron_updates / self.neurons(l)

    def neurons(self, l: int) -> int:
        return torch.Size(self.system.shapes[l]).numel()

    def rows(self, phase: str, batch: int) -> Iterator[Operations]:
        layers = self.system.layers if phase == FREE else reversed(self.system.layers)
        for l in layers:
            own = self.sent.get((phase, l))
            if own is None or own.events is None:
                continue
            up, down, dense = own.up, own.down, 0.0
            for c, bound in enumerate(self.bound):
                if l in (bound.source, bound.target):
                    ends = (bound.source == l) + (bound.target == l)
                    dense += ends * self.calls(phase, l) * self.dense(c)
                if bound.is_linear and bound.source == l:
                    up += (own.events * self.fan_out(c)[0]).sum().item()
                if bound.is_linear and bound.target == l:
                    down += (own.events * self.fan_out(c)[1]).sum().item()
            neurons = self.neurons(l)
            yield Operations(
                phase,
                f"layer {l}",
                neurons,
                spikes=own.events.sum().item() / batch if own.spiking else 0.0,
                synaptic_operations=(up + down) / batch if own.spiking else 0.0,
                feedback_operations=down / batch if own.spiking else 0.0,
                multiply_adds=0.0 if own.spiking else (up + down) / batch,
                neuron_updates=own.neuron_updates / batch,
                dense=dense / batch,
                reductions=own.reductions / batch,
                reduction_operands=own.reductions * neurons / batch,
                bits=own.bits / batch,
            )


def _first_sample(bound: BoundConnection) -> BoundConnection:
    return replace(
        bound,
        parts=tuple(p if p.map.is_linear else replace(p, tensors=tuple(t[:1] for t in p.tensors)) for p in bound.parts),
    )
