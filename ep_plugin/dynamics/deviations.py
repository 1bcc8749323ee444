"""A nudged phase in which a neuron tells its neighbours only by how much the nudge has moved it.

The free phase ends with traces u_l, and with the drives h_l that they give. In the nudged phase

    change_l = sum_(h->l) K_hl dhat_h + sum_(l->j) (c_j / c_l) K_lj^T dhat_j  (+ the force on read layers)
    d_l      = rho(h_l + change_l) - rho(h_l)
    dhat_l   follows d_l by what the encoder sends

without offsets and without the input. Without a force every deviation is exactly zero: whatever the free
phase left unsettled is common to all phases and cancels. All of it is kept in units of the energy, D_l =
c_l d_l and C_l = c_l change_l, which neither under- nor overflow in deep networks:

    C_l = sum_(h->l) (c_l / c_h) K_hl Dhat_h + sum_(l->j) K_lj^T Dhat_j  (+ c_l force)

The energy's contrast follows without a difference of two large numbers,

    dE/dw  = -sum_(i->j) d/dw [ <D_j, A_ij(m_i)> + (c_j / c_i) <m_j, K_ij D_i> ]
    dE/dd_l = -D_l,      dE/dtheta_l = <D_l, h_l / theta_l>

for D = D^a - D^b of two phases and m = u + the mean of their d.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ep_plugin.dynamics.encoders.base import Encoder, EncoderState, Message
from ep_plugin.dynamics.relaxation import Observed, Point, Recorder, Trajectory
from ep_plugin.dynamics.system import System
from ep_plugin.profiling import section
from ep_plugin.tensors import per_sample


@dataclass(frozen=True)
class Deviations:
    """How far a nudge has moved each layer.

    Attributes:
        values: D_l = c_l d_l of each layer, `[B, ...]`.
        spikes: number of events of each layer and sample, `[layers, B]`; None for graded neurons, or if they were not
            counted.
        trajectory: every step, if it was asked for.

    Example:
        >>> deviations = model.nudged_phase(x, y, nn.functional.cross_entropy)
        >>> [tuple(values.shape) for values in deviations.values]
        [(8, 16, 3, 3), (8, 64)]
    """

    values: tuple[Tensor, ...]
    spikes: Tensor | None
    trajectory: Trajectory | None


def nudge(
    system: System,
    point: Point,
    forces: dict[int, Tensor],
    encoder: Encoder,
    steps: int,
    order: str,
    observe: Observed = "trace",
    record: bool = False,
    counted: bool = True,
) -> Deviations:
    """A nudged phase from a point on, which it leaves as it is.

    Args:
        system: the equations, for a batch of the forces' size.
        point: where the free phase has ended, for the same batch.
        forces: read layer -> c_l times the force, `[B, ...]`.
        encoder: what tells deviations.
        steps: how often every layer moves.
        order: as in `Relaxation`; here from above.
        observe: "trace": the deviations are those that the neighbours know. "membrane": those that the
            last changes ask for.
        record: keep every step.
        counted: count the events.
    """
    with section("nudged phases"):
        phase = _Phase(system, point, forces, encoder, record)
        order_down = system.order(order)[::-1]
        recorder = Recorder() if record else None
        fired = None
        if encoder.spiking and counted:
            fired = point.drives[0].new_zeros(len(system.layers), len(point.drives[0]))
        for step in range(steps):
            unheard = step + 1 == steps and observe == "trace"
            for k, group in enumerate(order_down):
                # In the last step only those still to move listen, unless deviations are read once more.
                listening = {l for later in order_down[k + 1 :] for l in later} if unheard else set(system.layers)
                sent = {l: phase.move(l, step + 1) for l in group if l in phase.changed}
                for l, message in sent.items():
                    phase.tell(l, message, listening)
                    if fired is not None:
                        fired[l] += message.spikes()
            if recorder is not None:
                recorder.keep(phase.deviations, phase.traces, [m.slots() for m in phase.sent])
        values = [phase.deviation(l).clone() for l in system.layers] if observe == "membrane" else phase.traces
        return Deviations(tuple(values), fired, None if recorder is None else recorder.trajectory())


class _Phase:
    """Changes C of the drives, deviations D, and what is known of them. Everything is in place."""

    def __init__(
        self, system: System, point: Point, forces: dict[int, Tensor], encoder: Encoder, record: bool = False
    ) -> None:
        self.system, self.point, self.encoder = system, point, encoder
        deviations = [
            system.activations[l].deviation(point.drives[l], system.values.thresholds[l], system.scales[l])
            for l in system.layers
        ]
        # C, each added to what its activation has it begin from.
        self.changes, self.deviate = [start for start, _ in deviations], [deviate for _, deviate in deviations]
        for l, force in forces.items():
            self.changes[l].add_(force)
        self.changed = set(forces)  # the layers that anything has reached
        self.coded: list[EncoderState] = [encoder.start(c, l) for l, c in enumerate(self.changes)]
        self.deviations: list[Tensor] = []
        # Layers of one shape share a tensor that stays near the processor, unless every step is looked at.
        rooms: dict[tuple[object, ...], Tensor] = {}
        for l, c in enumerate(self.changes):
            key = (c.shape, c.stride(), l if record else None)
            self.deviations.append(rooms[key] if key in rooms else rooms.setdefault(key, torch.zeros_like(c)))
        rest = [torch.zeros_like(c) for c in self.changes] if record and encoder.spiking else self.changes
        self.sent = [
            Message(r, None, r, int(encoder.digits)) if encoder.spiking else Message(r, None, None) for r in rest
        ]

    @property
    def traces(self) -> list[Tensor]:
        return [c.trace for c in self.coded]

    def deviation(self, l: int) -> Tensor:
        """What the present changes ask for, until another layer is asked."""
        if l not in self.changed:
            return self.deviations[l].zero_()
        self.deviations[l] = self.deviate[l](self.changes[l], self.deviations[l])
        return self.deviations[l]

    def move(self, l: int, time: int) -> Message:
        """A layer takes its deviation and encodes what it will send."""
        with section(f"layer {l} neurons"):
            message = self.encoder.encode(self.deviation(l), self.coded[l], time, self.system.activations[l].maximum)
            self.sent[l] = message
            return message

    def tell(self, l: int, message: Message, listening: set[int]) -> None:
        """The changes of a layer's neighbours follow what it sends."""
        for bound in self.point.bound:
            if bound.source == l and bound.target in listening:
                with section(f"{bound.source} -> {bound.target} up"):
                    self._add(bound.target, bound.linear(message.sent), message, self.system.ratio(bound.target, l))
            if bound.target == l and bound.source in listening:
                with section(f"{bound.source} -> {bound.target} down"):
                    self._add(bound.source, bound.adjoint(message.sent), message, 1.0)

    def _add(self, l: int, change: Tensor, message: Message, ratio: float) -> None:
        self.changed.add(l)
        if message.weight is None:
            self.changes[l].add_(change, alpha=ratio)
        else:
            self.changes[l].addcmul_(change, per_sample(message.weight, change), value=ratio)


def contrast(
    system: System,
    point: Point,
    first: Sequence[Tensor],
    second: Sequence[Tensor] | None,
    weight: Tensor,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """weight * (dE/dvalues at `first` - dE/dvalues at `second`), summed over samples, in the order of `Values.flat`.

    Args:
        system: the equations.
        point: where the deviations start from.
        first: D of one phase, a layer.
        second: D of the other; None where it is the free phase, whose deviations are zero.
        weight: `[B]`.
        needed: which of the values want theirs; the others may get None.
    """
    with section("contrast"):
        differences, middles = [], []
        for l, (a, u) in enumerate(zip(first, point.traces, strict=True)):
            b = None if second is None else second[l]
            differences.append((a if b is None else a - b) * per_sample(weight, a))
            middles.append(torch.add(u, a if b is None else a + b, alpha=0.5 / system.scales[l]))
        found: list[Tensor | None] = [-differences[l] for l in system.driven]
        for l, threshold in enumerate(system.values.thresholds):
            if not needed[len(found)]:
                found.append(None)
                continue
            product = differences[l] * (point.drives[l] / threshold)
            found.append(product.sum_to_size(threshold.shape) if threshold.dim() else product.sum())
        for plain, pinned, own in zip(system.plain, point.bound, system.values.weights, strict=True):
            if not any(needed[len(found) : len(found) + len(own)]):
                found.extend(None for _ in own)
                continue
            i, j = plain.source, plain.target
            bound = plain.pinned(pinned)
            up = bound.pullback(middles[i], differences[j])
            back = bound.pullback(differences[i], middles[j] * system.ratio(j, i), offset=False)
            found.extend(_minus(a, b) for a, b in zip(up, back, strict=True))
        return found


def _minus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        present = a if b is None else b
        return None if present is None else -present
    return -(a + b)
