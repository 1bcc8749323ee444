"""Models with a forward of their own: traced by `torch.fx`, and read as the plan of one step.

Neurons, and modules without neurons in them, are leaves of the trace. A loop over time is unrolled; in every step each
neuron must receive the same signal, but for the step of the input that it is made of. Membranes that are passed by
hand are the neurons' own business and fall away (`handed` says which may).

Without an example sizes of the input are unknown. The forward is then traced for two of them, and what both say is
what it computes.
"""

from typing import Any

from torch import Tensor, nn

from ep_plugin.conversion.adapters import place_of, runs_over_time
from ep_plugin.conversion.outputs import chosen_output, left_out, require_gradients
from ep_plugin.conversion.plan import Combination, Input, Plan, Signal, combine
from ep_plugin.conversion.reader import Made, Reader
from ep_plugin.conversion.returned import Path
from ep_plugin.conversion.sizes import EXAMPLE, LENGTHS, NotKnown
from ep_plugin.conversion.trace import trace
from ep_plugin.conversion.values import Record, Value, any_step


def read(net: nn.Module, example: Tensor | None = None, output: Any = None) -> Plan:
    """What `net(x)` computes in one step.

    Args:
        net: the model.
        example: an input, whose sizes are used.
        output: which of several outputs is read; by default the first of those that depend on the most neurons.

    Raises:
        ValueError: it cannot be traced, or a neuron or the output depends on something that has no
            counterpart, with the place and the reason.
    """
    made: Made = {}
    plan, sized = _read(net, example, output, LENGTHS[0], made)
    over_time = any(runs_over_time(module) for module in plan.neurons.values())
    _same_at_the_next_call(net, example, output, made, plan)
    if not sized and not (over_time and example is None):
        return _told(plan, example)
    other, _ = _read(net, example, output, LENGTHS[1], made)
    for name, module in plan.neurons.items():
        if other.received.get(name) != plan.received[name]:
            raise ValueError(f"{place_of(name, module)} depends on {_BY_SIZE}")
    if plan.steps != other.steps and (plan.steps, other.steps) != LENGTHS:
        raise ValueError(
            "the model reads some of its input's steps only; expected a loop over all of them. Select outside what the "
            "network is to see"
        )
    if other.output != plan.output and (mean := _rounded(plan.output)) == _rounded(other.output):
        plan.output = mean  # a sum over the steps, each divided by their number
    elif other.output != plan.output and plan.steps not in LENGTHS and not over_time:
        raise ValueError(f"the output depends on {_BY_SIZE}")
    elif other.output != plan.output:
        plan.output = _mean(plan.output, other.output)
        plan.notes.append(
            "its output is a sum over the input's steps, of which the converted model returns the mean (their number "
            "is not known)"
        )
    return plan if plan.steps in LENGTHS else _told(plan, example)


def _same_at_the_next_call(net: nn.Module, example: Tensor | None, output: Any, made: Made, plan: Plan) -> None:
    """Refuses a forward that does something else when it is called again.

    Raises:
        ValueError: what it keeps on the model changes what a neuron receives, or what it returns.
    """
    other, _ = _read(net, example, output, LENGTHS[0], made, calls=2)
    if other.output != plan.output:
        raise ValueError(
            f"what {type(net).__name__} returns differs from one call to the next, by what it keeps on itself; "
            "expected the same at every step, since a relaxation has no count of steps. Return what one step gives, "
            "and sum it up outside"
        )


def _told(plan: Plan, example: Tensor | None) -> Plan:
    """With a remark where the number of steps is the model's own."""
    if plan.steps is not None and example is None:
        plan.notes.append(f"it reads {plan.steps} steps of its input, so it should be given as many")
    return plan


_BY_SIZE = f"a size of the input, which is not known; {EXAMPLE}"


def _rounded(signal: Signal) -> Signal:
    """Without the last digits of a sum's factors, which as many steps as there are leave inexact."""
    if not isinstance(signal, Combination):
        return signal
    return combine([(part, float(f"{factor:.9g}")) for part, factor in signal.terms])


def _mean(one: Signal, two: Signal) -> Signal:
    """The mean over the steps, of which `one` is the sum over so many and `two` over others."""
    means = []
    for signal, length in zip((one, two), LENGTHS, strict=True):
        if not isinstance(signal, Combination):
            raise ValueError(f"the output depends on {_BY_SIZE}")
        means.append(_rounded(combine([(part, factor / length) for part, factor in signal.terms])))
    if means[0] != means[1]:
        raise ValueError(f"the output depends on {_BY_SIZE}")
    return means[0]


def _read(
    net: nn.Module, example: Tensor | None, wanted: Any, length: int, made: Made, calls: int = 1
) -> tuple[Plan, bool]:
    """The plan, and whether it depends on the length that unknown sizes have."""
    traced = trace(net, example, length, calls)
    given: Value = Input()
    modules = dict(net.named_modules())
    if any(node.op == "call_module" and runs_over_time(modules[str(node.target)]) for node in traced.graph.nodes):
        given = Record(Input(axis=0), 0, length if example is None else len(example))
    try:
        reader = Reader(net, traced, made, given)
    except NotKnown as error:
        raise ValueError(f"the forward of {type(net).__name__} cannot be read: {error}") from error
    plan = reader.found

    def size(axis: int) -> int | None:
        return None if example is None else example.shape[axis]

    reader.calls = {name: each[-(len(each) // calls) :] for name, each in reader.calls.items()}  # of the last call
    plan.steps = reader.steps(size)
    outputs: list[tuple[Path, Signal | ValueError]] = []
    for path, value in reader.outputs():
        value = value.signal if isinstance(value, Record) else value
        try:
            outputs.append((path, any_step(reader.signal(value, "the output"))))
        except ValueError as error:
            outputs.append((path, error))
    plan.path, plan.output = chosen_output(outputs, plan, wanted)
    require_gradients(plan)
    if plan.neurons and (note := left_out(outputs, plan, plan.path, plan.output, wanted is not None)):
        plan.notes.append(note)
    if (name := getattr(plan.output, "name", None)) in plan.neurons:
        plan.notes.append(f"the output is the membrane that {name} settles at")
    if traced.by_mode and plan.neurons:
        mode = "training" if net.training else "evaluation"
        plan.notes.append(f"forward asks for self.training, and is converted as it is in {mode} mode")
    return plan, traced.sized
