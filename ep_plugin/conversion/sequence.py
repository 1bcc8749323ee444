"""Models that are sequences of modules: `nn.Sequential` and Norse's `SequentialState`, nested if you like."""

from collections.abc import Iterator

from torch import nn

from ep_plugin.conversion import adapters
from ep_plugin.conversion.plan import Applied, Input, Plan, Signal, Spikes
from ep_plugin.conversion.tracer import STATES
from ep_plugin.linear.base import is_hooked


def is_sequence(net: nn.Module) -> bool:
    """Whether no module calls neurons in a forward of its own, no neuron takes all steps at once, and none has hooks,
    nor a sequence of modules."""
    if adapters.find_adapter(net) is not None:
        return not _is_hooked(net)
    return _is_container(net) and all(
        (adapters.find_adapter(m) is not None and not adapters.runs_over_time(m) and not _is_hooked(m))
        or not any(adapters.find_adapter(inner) or _is_hooked_sequence(inner) for inner in m.modules())
        for _, m in _leaves(net)
    )


def read(net: nn.Module) -> Plan:
    """The modules one after the other, each neuron's spikes going to the module behind it.

    Raises:
        ValueError: one neuron that keeps its own membrane stands in two places, so that they share it; or a module
            returns several values.
    """
    _require_one_value(net)
    plan = Plan({}, {}, Input())
    signal: Signal = plan.output
    for name, module in _leaves(net):
        found = adapters.find_adapter(module)
        if found is None:
            signal = Applied(name, module, signal)
        elif (parts := found.integrator(module)) is not None:
            for part in parts:
                signal = Applied(name, part, signal)
        elif module in plan.neurons.values() and any(state in module._buffers for state in STATES):
            raise ValueError(
                f"{adapters.place_of(name, module)} is a neuron that stands in the sequence before, so that both "
                "places share one membrane, which no converted model does; expected a neuron for each place"
            )
        else:
            plan.neurons[name], plan.received[name] = module, signal
            signal = Spikes(name)
    plan.output = signal
    return plan


def _require_one_value(net: nn.Module) -> None:
    """Refuses modules that return more than a signal."""
    for name, container in _containers(net):
        if getattr(container, "return_hidden", False):
            choice = "" if name else ", or choose one by convert(net, output=(0, -1)), which is the last one's"
            raise ValueError(
                f"{adapters.place_of(name, container)} returns the values of all its modules; expected "
                f"return_hidden=False{choice}"
            )
    for name, module in _leaves(net):
        is_own = not type(module).__module__.startswith("torch.")  # and may return one value
        if isinstance(module, (nn.RNNBase, nn.LSTMCell)) and not is_own and adapters.find_adapter(module) is None:
            raise ValueError(
                f"{adapters.place_of(name, module)} cannot be converted: it returns its output and the state that it "
                "keeps over the steps, and a relaxation has no steps over which a state could be kept. Use a recurrent "
                "neuron in its place (norse.LIFRecurrentCell, snn.RLeaky), or, before the first neuron or after the "
                "last, a module of your own that begins anew in every call and returns the output alone"
            )


def _containers(net: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every sequence in a sequence with its name, itself included."""
    if _is_container(net):
        yield prefix.removesuffix("."), net
        for name, child in net._modules.items():
            if child:
                yield from _containers(child, f"{prefix}{name}.")


def _leaves(net: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """Every module of a sequence with its name, those that Norse lifts over time unpacked."""
    if not _is_container(net):
        return [(prefix.removesuffix("."), net)]
    return [leaf for name, child in net._modules.items() if child for leaf in _leaves(child, f"{prefix}{name}.")]


def _is_hooked(module: nn.Module) -> bool:
    """Whether more than its type's forward counts when it is called; a trace sees that."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def _is_hooked_sequence(module: nn.Module) -> bool:
    """A trace calls its hooks. (Those of a backward count where the module is called: in stem and readout.)"""
    return type(module) is nn.Sequential and is_hooked(module)


def _is_container(module: nn.Module) -> bool:
    kind = type(module)
    if _is_hooked(module):
        return False
    if kind is nn.Sequential:
        return True
    return kind.__module__.startswith("norse.") and kind.__name__ in ("SequentialState", "Lift")
