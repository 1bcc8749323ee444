"""Signals as modules: what drives the layers, and what is made of their equilibria."""

from collections.abc import Sequence

from torch import Tensor, nn

from ep_plugin.conversion.plan import Applied, Combination, Joined, Signal, parts, signals_in
from ep_plugin.linear.modules import Scale


def as_module(signals: Sequence[Signal], given: Sequence[Signal]) -> nn.Module:
    """The signals as one module: (*given) -> the signal, or a tuple of several.

    Of one given signal it is a sequence of all that comes before anything branches, and of the rest, if any.
    """
    if len(given) > 1:
        return Computation(signals, given)
    (start,) = given
    chain: list[nn.Module] = []
    while (following := _only_user(signals, start)) is not None:
        chain.append(following.module if isinstance(following, Applied) else Scale(following.terms[0][1]))
        start = following
    whole = len(signals) == 1 and signals[0] == start
    return nn.Sequential(*chain, *([] if whole else [Computation(signals, [start])]))


def _only_user(signals: Sequence[Signal], of: Signal) -> Applied | Combination | None:
    """What takes the signal and nothing else, if nothing else takes it."""
    users = [s for s in signals_in(signals) if of in parts(s)]
    if len(users) != 1 or of in signals:
        return None
    (user,) = users
    if isinstance(user, Applied) or (isinstance(user, Combination) and len(user.terms) == 1):
        return user
    return None


class Computation(nn.Module):
    """Signals that branch and join, as a module: (*given) -> the signal, or a tuple of several.

    What several of them share is computed once.

    Args:
        signals: what is computed.
        given: what it is computed from; every signal comes from these alone.
    """

    def __init__(self, signals: Sequence[Signal], given: Sequence[Signal]) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self.steps: list[tuple[int | None, list[tuple[int, float]]]] = []
        """The module (None: a sum), and which of the values so far it takes, each with its factor."""
        at: dict[Signal, int] = {signal: place for place, signal in enumerate(given)}
        modules: dict[nn.Module, int] = {}
        for signal in signals_in(signals, at):
            if isinstance(signal, Combination):
                self.steps.append((None, [(at[part], factor) for part, factor in signal.terms]))
            else:
                assert isinstance(signal, (Applied, Joined)), signal
                module = modules.setdefault(signal.module, len(modules))
                self.steps.append((module, [(at[part], 1.0) for part in parts(signal)]))
            at[signal] = len(given) + len(self.steps) - 1
        self.parts.extend(modules)
        self.results = [at[signal] for signal in signals]

    def forward(self, *given: Tensor) -> Tensor | tuple[Tensor, ...]:
        values = list(given)
        for module, taken in self.steps:
            if module is not None:
                values.append(self.parts[module](*(values[place] for place, _ in taken)))
            else:
                total, *others = (values[place] * factor if factor != 1 else values[place] for place, factor in taken)
                for other in others:
                    total = total + other
                values.append(total)
        results = tuple(values[place] for place in self.results)
        return results if len(results) > 1 else results[0]
