"""What an operation costs, as published."""

from dataclasses import dataclass

from ep_plugin.validation import finite_number, plain_numbers


@dataclass(frozen=True)
class EnergyCosts:
    """Joules of one operation each. Replace any of them by what you know of your own chip.

    The defaults are those of arithmetic in 32 bit floating point at 45 nm and 0.9 V (M. Horowitz, "Computing's energy
    problem (and what we can do about it)", ISSCC 2014): addition 0.9 pJ, multiplication 3.7 pJ. They do not include
    fetching weights and states from memory, which costs more than the arithmetic. `ep_plugin.analysis.LOIHI` has the
    measured costs of a chip.

    Args:
        synaptic_operation: an event reaches a synapse: an addition.
        multiply_add: a multiplication and an addition.
        neuron_update: a neuron takes a step. By default a multiply-add.
        reduction_operand: a neuron's part in a layer-wide reduction. By default an addition.
        weight_update: a weight takes a step. By default a multiply-add.

    Raises:
        ValueError: a cost is below 0 or not finite.
        TypeError: a cost is not a number.

    Example:
        >>> costs = ep.EnergyCosts(synaptic_operation=23.6e-12)
        >>> joules = ep.count_operations(model, x, y).energy(costs)
    """

    synaptic_operation: float = 0.9e-12
    multiply_add: float = 4.6e-12
    neuron_update: float = 4.6e-12
    reduction_operand: float = 0.9e-12
    weight_update: float = 4.6e-12

    def __post_init__(self) -> None:
        plain_numbers(self)
        for name, value in vars(self).items():
            if finite_number(name, value) < 0:
                raise ValueError(f"{name} is {value!r}; expected 0 or more joules")


LOIHI = EnergyCosts(synaptic_operation=23.6e-12, neuron_update=81e-12)
"""The measured costs of a chip, Loihi (14 nm, 0.75 V), with memory and routing in the core (M. Davies et al., "Loihi: a
neuromorphic manycore processor with on-chip learning", IEEE Micro 38(1), 2018): 23.6 pJ per synaptic operation and
81 pJ per update of an active neuron (52 pJ for an inactive one). Costs without a published figure stay as at 45 nm."""
