"""Which of a model's outputs the converted one returns.

Of several, in tuples, lists, dictionaries or named fields, nested if you like, it is the first of those that depend on
the most neurons; or the one that the user names.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from ep_plugin.conversion.functions import Function
from ep_plugin.conversion.plan import Applied, Joined, Plan, Signal, Spikes, signals_in
from ep_plugin.conversion.returned import Path
from ep_plugin.conversion.sizes import stands_in
from ep_plugin.conversion.watch import function_name


def neurons_behind(plan: Plan, signal: Signal) -> set[str]:
    """All neurons that a signal depends on."""
    return {s.neuron for s in _all(plan, signal) if isinstance(s, Spikes)}


def _all(plan: Plan, *signals: Signal) -> list[Signal]:
    """The signals, and all that they are made of, neurons included."""
    found: dict[Signal, None] = {}
    pending = list(signals)
    while pending:
        for s in signals_in([pending.pop()]):
            if s not in found:
                found[s] = None
                if isinstance(s, Spikes):
                    pending.append(plan.received[s.neuron])
    return list(found)


def chosen_output(outputs: Sequence[tuple[Path, Signal | ValueError]], plan: Plan, wanted: Any) -> tuple[Path, Signal]:
    """The output that is converted.

    Args:
        outputs: with their places; an error in place of one that cannot be converted.
        plan: what the neurons receive.
        wanted: as `convert` takes it; None for the rule.

    Raises:
        ValueError: there is none, or it cannot be converted.
    """
    if not outputs:
        raise ValueError(f"forward returns no tensor; expected one that depends on a neuron{stands_in(plan.steps)}")
    among = outputs if wanted is None else [(path, s) for path, s in outputs if _begins(path, wanted, outputs)]
    if not among and [path for path, _ in outputs] == [()]:
        raise ValueError(f"output={wanted!r} was given, and forward returns one tensor; leave output out")
    if not among:
        raise ValueError(f"output={wanted!r} is not among what forward returns; expected one of {_list(outputs)}")
    signals = [(path, s) for path, s in among if not isinstance(s, ValueError)]
    if not signals:
        raise among[0][1]  # type: ignore[misc]
    behind = [len(neurons_behind(plan, s)) for _, s in signals]
    return signals[behind.index(max(behind))]


def left_out(
    outputs: Sequence[tuple[Path, Signal | ValueError]], plan: Plan, path: Path, output: Signal, whole: bool
) -> str | None:
    """In words: which output was chosen of several, and what is not trained for it."""
    if len(outputs) < 2:
        return None
    kept = set(_modules(plan, output))
    others: dict[str, None] = {}
    for _, s in outputs:
        if not isinstance(s, ValueError):
            others |= {name: None for name, m in _modules(plan, s).items() if name not in kept}
    note = f"of {len(outputs)} outputs it returns {_shown(path)}"
    if others:
        note += f", so that {', '.join(sorted(others))} {'are' if len(others) > 1 else 'is'} left out"
    return note if whole else f"{note} (choose by convert(..., output=...))"


def _modules(plan: Plan, signal: Signal) -> dict[str, nn.Module]:
    """Neurons, and modules with parameters, by name."""
    found: dict[str, nn.Module] = {}
    for s in _all(plan, signal):
        if isinstance(s, Spikes):
            found[s.neuron] = plan.neurons[s.neuron]
        elif isinstance(s, (Applied, Joined)) and any(True for _ in s.module.parameters()):
            found[s.name] = s.module
    return found


def _begins(path: Path, wanted: Any, outputs: Sequence[tuple[Path, Any]]) -> bool:
    """Whether an output stands at the wanted place, or below it."""
    steps = wanted if isinstance(wanted, tuple) else (wanted,)
    if len(path) < len(steps):
        return steps in ((0,), (-1,)) and path == () and len(outputs) == 1
    for depth, step in enumerate(steps):
        siblings = list(dict.fromkeys(p[depth] for p, _ in outputs if p[:depth] == path[:depth] and len(p) > depth))
        own = path[depth]
        if own == step and type(own) is type(step):
            continue
        counted = isinstance(step, int) and not isinstance(step, bool) and -len(siblings) <= step < len(siblings)
        if not counted or siblings[step] != own:
            return False
    return True


def _list(outputs: Sequence[tuple[Path, Any]]) -> str:
    return ", ".join(repr(path[0] if len(path) == 1 else path) for path, _ in outputs)


def _shown(path: Path) -> str:
    return f"output={path[0]!r}" if len(path) == 1 else f"output={path!r}"


def checked(output: Any) -> None:
    """Refuses what cannot name an output.

    Raises:
        TypeError: it is no index, key or tuple of them.
    """
    steps = output if isinstance(output, tuple) else (output,)
    if output is not None and not all(isinstance(s, (int, str)) and not isinstance(s, bool) for s in steps):
        raise TypeError(f"output is {output!r}; expected an index, a key, or a tuple of them as a path")


_STEPS = frozenset(
    ["gt", "ge", "lt", "le", "eq", "ne", "greater", "greater_equal", "less", "less_equal", "not_equal"]
) | frozenset(["bool", "sign", "round", "floor", "ceil", "trunc", "heaviside", "logical_not"])
"""Functions whose value moves in steps."""


def require_gradients(plan: Plan) -> None:
    """Refuses weights that see neurons through a function without a gradient.

    Of spikes of 0 and 1 it may be a way to say the same, of a rate it is another number, and nothing before is trained.

    Raises:
        ValueError: with the function, the neuron and the way out. A function behind the last weight, such as one that
            makes predictions of outputs, is left alone.
    """
    for signal in signals_in([plan.output]):
        if not isinstance(signal, (Applied, Joined)) or not any(True for _ in signal.module.parameters()):
            continue
        for inner in signals_in([signal]):
            name = _step_function(inner)
            neuron = next((s.neuron for s in signals_in([inner]) if isinstance(s, Spikes)), None)
            if name is not None and neuron is not None:
                raise ValueError(
                    f"what {signal.name!r} receives is made by {name}() of what neuron {neuron!r} sends: a spike of 0 "
                    "or 1 in the original, and a rate in the converted model, of which a step has no gradient. Leave "
                    "the function out"
                )


def _step_function(signal: Signal) -> str | None:
    if not isinstance(signal, (Applied, Joined)) or not isinstance(signal.module, Function):
        return None
    name = function_name(signal.module.function).strip("_")
    return name if name in _STEPS else None
