"""Modules of the user's that keep something from one call to the next, and return something else by that."""

from typing import Any

from torch import Tensor, fx, nn

from ep_plugin.conversion.adapters import find_adapter, place_of
from ep_plugin.conversion.plan import Applied, Joined, Plan, signals_in
from ep_plugin.conversion.shapes import held
from ep_plugin.conversion.trace import Trace, trace

_LIBRARIES = ("torch.", "torchvision.", "ep_plugin.", "snntorch.", "norse.")


def require_nothing_kept(plan: Plan) -> None:
    """Refuses modules whose second call gives something else than their first.

    A converted model calls what stands before its neurons, and behind them, once for an input, and knows no start of a
    sequence at which a state would be set back.

    Raises:
        ValueError: with the place, the reason and the way out.
    """
    looked_at: set[nn.Module] = set()
    for signal in signals_in([*plan.received.values(), plan.output]):
        if not isinstance(signal, (Applied, Joined)):
            continue
        for name, module in signal.module.named_modules():
            if module in looked_at or type(module).__module__.startswith(_LIBRARIES):
                continue
            looked_at.add(module)
            if find_adapter(module) is None and keeps_state(module):
                place = place_of(".".join(filter(None, (signal.name, name))), module)
                raise ValueError(
                    f"{place} cannot be converted: it keeps something from one call to the next, and returns something "
                    "else by that, while a relaxation has no count of steps; for a filter of spikes over time use a "
                    "neuron with a synapse (snn.Synaptic), for one that reads out snn.Leaky(reset_mechanism='none'), "
                    "and otherwise what it does at a steady input"
                )


def keeps_state(module: nn.Module) -> bool:
    """Whether a module's second call is known to do something else than its first."""
    try:
        first, second = (_spelled(trace(module, length=7, calls=calls)) for calls in (1, 2))
        # A trace gives back what was kept, so that what differs between two first calls is drawn.
        return first != second and first == _spelled(trace(module, length=7))
    except ValueError:
        return False


def _spelled(traced: Trace) -> list[tuple[Any, int]]:
    """What each output is made of, by a number that is the same for the same."""
    known: dict[fx.Node, int] = {}
    for node in traced.graph.nodes:
        given: Any = fx.map_arg((node.args, node.kwargs), lambda of: f"%{known[of]}")
        known[node] = hash((node.op, _target(traced, node), str(given)))
    return [(path, known.get(node, 0)) for path, node in traced.outputs]


def _target(traced: Trace, node: fx.Node) -> str:
    if node.op == "get_attr" and "_tensor_constant" in str(node.target):
        constant = held(traced.root, str(node.target))
        if isinstance(constant, Tensor):
            return f"{constant.dtype} {list(constant.shape)} {constant.detach().cpu().numpy().tobytes()!r}"
    return str(node.target)
