"""Neurons in motion: their states, what each has told its neighbours, and the drives that follow from it.

A layer that has moved sends the change of its trace to all its neighbours, and their drives change by
what the connections make of it. So a product is taken where something was sent, and nowhere else: no
feedback before anything came from above.
"""

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from ep_plugin.dynamics.encoders.base import Encoder, EncoderState, Message
from ep_plugin.dynamics.system import System
from ep_plugin.linear.base import laid_out
from ep_plugin.linear.connection import BoundConnection
from ep_plugin.profiling import section
from ep_plugin.tensors import into, is_one, per_sample


class NetworkState:
    """The state of a network in a phase, from rest. It lives as long as the phase.

    Without a graph all tensors are written in place. On a graph every operation makes a new tensor, by the same
    formulas.

    Args:
        system: the equations.
        encoder: what neurons send.
        step_size: how far a neuron moves towards its activation in a step.

    Attributes:
        drives: of each layer, in the units of the threshold. They are those of the traces.
        membranes: r of each layer, in units of the threshold.
        coded: the encoder's state of each layer, with its trace u.
        sent: each layer's last message; None before the first.
        links: each connection, in its present form.
        moving: `[B]`, which samples still move; None for all of them. (For graded neurons.)

    Example:
        >>> from ep_plugin.dynamics.network_state import NetworkState
        >>> with torch.no_grad():
        ...     system = model.system(x)
        ...     state = NetworkState(system, ep.Graded(), step_size=1.0)
        ...     state.sweep(system.order("sequential"), time=1)
        >>> state.membranes[1].shape
        torch.Size([8, 64])
    """

    def __init__(self, system: System, encoder: Encoder, step_size: float) -> None:
        self.system, self.encoder, self.step_size = system, encoder, step_size
        self.inverse = [None if is_one(t) else 1 / t for t in system.values.thresholds]
        offsets = [b.affine(system.like.new_zeros(1, *system.shapes[b.source])) for b in system.bound]
        self.drives = [_external(system, l, offsets) for l in system.layers]
        zeros = [torch.zeros_like(d) for d in self.drives]
        self.membranes: list[Tensor] = zeros
        self.coded: list[EncoderState] = [encoder.start(z, l) for l, z in enumerate(zeros)]
        self.sent: list[Message | None] = [None for _ in zeros]
        self.links = [_Link(bound, offset) for bound, offset in zip(system.bound, offsets, strict=True)]
        self.moving: Tensor | None = None
        self._shown = list(system.values.drives)
        self._spare: list[Tensor] = []

    @classmethod
    def at(cls, system: System, traces: Sequence[Tensor], encoder: Encoder, step_size: float = 1.0) -> Self:
        """The state in which the neighbours know given traces.

        Args:
            system: the equations.
            traces: of each layer.
            encoder: what neurons send.
            step_size: how far a neuron moves towards its activation in a step.

        Returns:
            The state, with the drives that follow from the traces, and membranes equal to them.
        """
        state = cls(system, encoder, step_size)
        for l, trace in enumerate(traces):
            state.coded[l].trace = state.membranes[l] = trace
        for l, trace in enumerate(traces):
            state.tell(l, Message(trace, None, None))
        for l in system.layers:
            state.refresh(l)
        return state

    @property
    def traces(self) -> list[Tensor]:
        return [c.trace for c in self.coded]

    def sweep(self, order: Sequence[Sequence[int]], time: int) -> None:
        """Moves every layer once, group after group.

        Args:
            order: groups of layers, as from `system.order`.
            time: number of the step, from 1. It goes on through the phases.
        """
        for group in order:
            for l in group:
                self.move(l, time)
            for l in group:
                message = self.sent[l]
                assert message is not None
                self.tell(l, message)

    def move(self, l: int, time: int) -> None:
        """A layer moves towards what its drive asks for, and encodes what it will send."""
        with section(f"layer {l} neurons"):
            self.refresh(l)
            activation = self.system.activations[l]
            room, asked, inverse = self._room(l), self.drives[l], self.inverse[l]
            # A projection writes to its room; what another activation returns may be the drive itself.
            if inverse is not None or activation.projection is None:
                asked = torch.mul(asked, 1.0 if inverse is None else inverse, out=into(room))
            self.membranes[l] = activation.step(self.membranes[l], asked, self.step_size, out=room)
            if self.moving is not None:
                moving = per_sample(self.moving, asked)
                self.membranes[l] = torch.where(moving, self.membranes[l], self.coded[l].trace)
            self.sent[l] = self.encoder.encode(self.membranes[l], self.coded[l], time, activation.maximum)

    def tell(self, l: int, message: Message) -> None:
        """The drives of a layer's neighbours follow a change of its trace."""
        for link in self.links:
            bound = link.bound
            if bound.source == l:
                with section(f"{bound.source} -> {bound.target} up"):
                    if bound.is_linear:
                        self._add(bound.target, bound.linear(message.sent), message.weight)
                    else:
                        self._add(bound.target, link.moved_up(self.coded[l].trace))
            if bound.target == l:
                ratio = self.system.ratio(bound.target, bound.source)
                with section(f"{bound.source} -> {bound.target} down"):
                    if bound.is_linear:
                        self._add(bound.source, bound.adjoint(message.sent), message.weight, ratio)
                    else:
                        link.heard = True

    def refresh(self, l: int) -> None:
        """What comes down through connections whose winners have changed since."""
        for link in self.links:
            bound = link.bound
            if not bound.is_linear and bound.source == l and link.heard:
                with section(f"{bound.source} -> {bound.target} down"):
                    change = link.moved_down(self.coded[bound.target].trace, self.coded[l].trace)
                    self._add(l, change, ratio=self.system.ratio(bound.target, l))

    def show(self, step: int) -> None:
        """Lets an input that changes over time drive the network as it does in a step of the phase, from 0."""
        frames = self.system.values.frames
        if frames is None:
            return
        for k, l in enumerate(self.system.driven):
            frame = frames[k][step]
            self._add(l, frame - self._shown[k])
            self._shown[k] = frame

    def repeated(self, times: int) -> "NetworkState":
        """The same state for a batch that is this one several times over; nothing is shared."""
        other = copy.copy(self)
        other.drives = [torch.cat([d] * times) for d in self.drives]
        other.membranes = [torch.cat([m] * times) for m in self.membranes]
        other.coded = [c.repeated(times) for c in self.coded]
        other.links = [link.repeated(times) for link in self.links]
        other._shown = [torch.cat([d] * times) for d in self._shown]
        other._spare = []
        other.moving = None  # what stood still in one phase may move in the next
        return other

    def push(self, forces: dict[int, Tensor]) -> None:
        """From now on `forces` (layer -> `[B, ...]`) are added to the drives."""
        for l, force in forces.items():
            self._add(l, force)

    def _room(self, l: int) -> Tensor:
        """Where the next membrane is made: in the place of the last one, where that is no longer needed."""
        if self.step_size == 1:
            return self.membranes[l]
        if not self._spare:
            self._spare = [torch.empty_like(m) for m in self.membranes]
        room, self._spare[l] = self._spare[l], self.membranes[l]
        return room

    def _add(self, l: int, change: Tensor, weight: Tensor | None = None, ratio: float = 1.0) -> None:
        drive = self.drives[l]
        if weight is None:
            self.drives[l] = torch.add(drive, change, alpha=ratio, out=into(drive))
        else:
            self.drives[l] = torch.addcmul(drive, change, per_sample(weight, drive), value=ratio, out=into(drive))


class _Link:
    """A connection, and what it contributes at present if it is affine only near a state.

    Args:
        bound: the connection.
        offset: A(0), `[1, ...]`: what it contributes from rest.
    """

    def __init__(self, bound: BoundConnection, offset: Tensor) -> None:
        self.bound = bound
        self.heard = False  # whether its target has sent anything
        self._pinned = False  # whether it has winners
        self._up = offset
        self._down: Tensor | None = None

    def repeated(self, times: int) -> "_Link":
        """For a batch that is the original one several times over."""
        other = copy.copy(self)
        other.bound = self.bound.repeated(times)
        other._up = torch.cat([self._up] * times)
        other._down = None if self._down is None else torch.cat([self._down] * times)
        return other

    def moved_up(self, trace: Tensor) -> Tensor:
        """By how much A(trace) has changed; its winners are from now on those of `trace`."""
        self.bound, value = self.bound.at(trace)
        self._pinned = True
        room = self._up if self._up.shape == value.shape else None
        change = torch.sub(value, self._up, out=into(room))
        self._up = value
        return change

    def moved_down(self, trace: Tensor, source: Tensor) -> Tensor:
        """By how much K^T trace has changed, under the present winners: those of the `source`'s trace."""
        if not self._pinned:
            self.bound, _ = self.bound.at(source)
            self._pinned = True
        value = self.bound.adjoint(trace)
        change = value if self._down is None else torch.sub(value, self._down, out=into(self._down))
        self._down = value
        return change


def _external(system: System, l: int, offsets: Sequence[Tensor]) -> Tensor:
    """The drive of a layer none of whose neighbours has sent anything, in a tensor of its own."""
    like = system.like
    drive = laid_out(like.new_zeros(len(like), *system.shapes[l]))
    terms = [d for at, d in zip(system.driven, system.values.drives, strict=True) if at == l]
    terms += [offset for bound, offset in zip(system.bound, offsets, strict=True) if bound.target == l]
    for term in terms:
        drive = torch.add(drive, term, out=into(drive))
    return drive
