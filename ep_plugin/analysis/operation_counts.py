"""What a count of operations holds: rows of layers and phases, sums, a table, an estimate of the energy."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from ep_plugin.analysis.energy import EnergyCosts

Loss = Callable[[Any, Any], Tensor]

INFERENCE = ("free phase", "forward")
"""The phases of an inference: of a convergent network, and of any other net."""


@dataclass(frozen=True)
class Operations:
    """What one layer (or another part of a net) does in one phase. The numbers are means per sample.

    Attributes:
        phase: "free phase", "nudged phase" and "weight update" of a `ConvergentNetwork` ("backward" replaces the
            second with `BackpropThroughTime`); "forward", "backward" and "weight update" of other nets.
        name: "layer 1", "0 -> 1", "stem", "readout"; the module's name in other nets.
        neurons: number of neurons.
        spikes: events that they send.
        synaptic_operations: synapses that events reach, up and down: the events times their fan-out.
        feedback_operations: those of them that belong to feedback.
        neuron_updates: neurons times steps.
        multiply_adds: products that are not plain additions: of inputs, graded states, readouts and gradients.
        dense: multiply-adds that the phase would take if every neuron sent a number at every step.
        reductions: numbers that need a look at a whole layer (the weight of a sample's events).
        reduction_operands: neurons that these reductions look at.
        bits: what events carry beside their address: a sign, and once per step the layer's weight of an event.
        weight_updates: weights that change, once per step for the whole batch: the only number that is not a mean.

    Example:
        >>> rows = ep.count_operations(model, x, y).rows
        >>> [row.neurons for row in rows if row.phase == "free phase" and row.name.startswith("layer")]
        [144, 64]
    """

    phase: str
    name: str
    neurons: int = 0
    spikes: float = 0.0
    synaptic_operations: float = 0.0
    feedback_operations: float = 0.0
    neuron_updates: float = 0.0
    multiply_adds: float = 0.0
    dense: float = 0.0
    reductions: float = 0.0
    reduction_operands: float = 0.0
    bits: float = 0.0
    weight_updates: float = 0.0

    def energy(self, costs: EnergyCosts | None = None) -> float:
        """An estimate of the energy: the operations times what each costs.

        Args:
            costs: of one operation each; by default those of `EnergyCosts()`.

        Returns:
            Joules.
        """
        costs = costs or EnergyCosts()
        return (
            self.synaptic_operations * costs.synaptic_operation
            + self.multiply_adds * costs.multiply_add
            + self.neuron_updates * costs.neuron_update
            + self.reduction_operands * costs.reduction_operand
            + self.weight_updates * costs.weight_update
        )


@dataclass(frozen=True)
class Memory:
    """Bytes. States are those of one sample.

    Attributes:
        weights: all parameters.
        inference: what neurons keep from step to step: two numbers each in a convergent network (drive and trace).
        training: what they keep for a training step: five numbers each (also the drive and the state at the end of the
            free phase, and the deviation). For other nets, and with `BackpropThroughTime`, all that is kept of every
            step for the backward pass. 0 if no target was given.
        backprop: what autograd keeps of a forward pass for backpropagation through time. 0 if no target was given.

    Example:
        >>> memory = ep.count_operations(model, x, y).memory
        >>> memory.inference == 8 * (144 + 64)  # two numbers of 4 bytes for each neuron
        True
    """

    weights: int
    inference: int
    training: int = 0
    backprop: int = 0


@dataclass(frozen=True)
class OperationCounts:
    """The result of `count_operations`.

    Attributes:
        rows: one for each phase and layer.
        memory: in bytes.

    Example:
        >>> counts = ep.count_operations(model, x, y)
        >>> counts.training.spikes >= counts.inference.spikes
        True
        >>> joules = counts.energy(ep.analysis.LOIHI)["training step"]
    """

    rows: tuple[Operations, ...]
    memory: Memory

    @property
    def inference(self) -> Operations:
        """All operations of an inference."""
        return _sum("inference", "all", (r for r in self.rows if r.phase in INFERENCE))

    @property
    def training(self) -> Operations:
        """All operations of a training step; those of an inference if no target was given."""
        return _sum("training step", "all", self.rows)

    def energy(self, costs: EnergyCosts | None = None) -> dict[str, float]:
        """An estimate in joules, for "inference" and "training step".

        Args:
            costs: of one operation each; by default those of `EnergyCosts()`.

        Returns:
            The sums over all layers.
        """
        return {"inference": self.inference.energy(costs), "training step": self.training.energy(costs)}

    def table(self) -> list[dict[str, Any]]:
        """The rows as plain data, for a table of pandas and the like.

        Returns:
            One dictionary per row: the fields of `Operations`, and "energy", the estimate in joules.
        """
        return [{**asdict(row), "energy": row.energy()} for row in self.rows]

    def __str__(self) -> str:
        trained = any(row.phase not in INFERENCE for row in self.rows)
        sums = [self.inference, self.training] if trained else [self.inference]
        shown = [f for f in _COLUMNS if any(getattr(row, f) for row in self.rows)]
        lines = [["phase", "layer", *(_COLUMNS[f] for f in shown), "energy (estimate)"]]
        lines += [
            [r.phase, r.name, *(_short(getattr(r, f)) for f in shown), f"{1e9 * r.energy():,.4g} nJ"]
            for r in (*self.rows, *sums)
        ]
        widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
        text = [
            "  ".join(c.ljust(w) if k < 2 else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in lines
        ]
        memory = self.memory
        text.append(f"bytes: weights {memory.weights:,}; states of a sample in an inference {memory.inference:,}")
        if memory.training:
            text[-1] += f", in a training step {memory.training:,}"
            if memory.backprop != memory.training:  # it is another rule's training step
                text[-1] += f"; BPTT through the same steps would keep {memory.backprop:,}"
        return "\n".join(line.rstrip() for line in text)


_COLUMNS = {
    "neurons": "neurons",
    "spikes": "spikes",
    "synaptic_operations": "synaptic ops",
    "feedback_operations": "(feedback)",
    "neuron_updates": "neuron updates",
    "multiply_adds": "multiply-adds",
    "dense": "dense",
    "reductions": "reductions",
    "bits": "bits",
    "weight_updates": "weight updates",
}


def _sum(phase: str, name: str, rows: Iterable[Operations]) -> Operations:
    rows = list(rows)
    numbers = [f.name for f in fields(Operations) if f.name not in ("phase", "name", "neurons")]
    neurons = {row.name: row.neurons for row in rows}
    return Operations(phase, name, sum(neurons.values()), **{n: sum(getattr(row, n) for row in rows) for n in numbers})


def _short(value: float) -> str:
    if not value:
        return ""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.3g}"
