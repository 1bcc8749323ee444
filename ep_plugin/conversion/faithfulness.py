"""Whether a network computes what the net that it was made of does, whose neurons are put at their rates.

Without feedback a neuron settles at activation(drive / theta) of the drive that it receives. So the original, run as
it is written but for what its neurons send, has to give what the network gives. That finds whatever was read wrong.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ep_plugin.conversion.restore import unchanged
from ep_plugin.conversion.returned import leaves
from ep_plugin.conversion.sizes import LENGTHS
from ep_plugin.dynamics.relaxation import Relaxation
from ep_plugin.network import ConvergentNetwork
from ep_plugin.unnoticed import buffers_as_before

_TOLERANCE = 1e-3  # of the largest value of the output
_FEW = 5  # steps of an input whose number of steps the model leaves open


@dataclass(frozen=True)
class Comparison:
    """What came of it.

    Attributes:
        difference: where the network and its original part, in a few words; None if they do not.
        left_out: why nothing could be compared; None if it was.
    """

    difference: str | None = None
    left_out: str | None = None


def compare(model: ConvergentNetwork, original: nn.Module, x: Tensor) -> Comparison:
    """Runs both for an input. Both are looked at in evaluation mode, and stay as they are.

    Args:
        model: as `convert` made it of the original.
        original: what it was made of.
        x: an input, of one step.
    """
    origin: Any = model.origin
    if (why := _incomparable(model)) is not None:
        return Comparison(left_out=why)
    open_steps = origin.steps in LENGTHS
    steps = _FEW if open_steps else origin.steps
    try:
        with unchanged(original), buffers_as_before(original), torch.no_grad(), torch.random.fork_rng():
            original.eval()
            drawn = torch.get_rng_state()
            with _at_their_rates(origin.layers) as sent:
                returned = original(x if steps is None else torch.stack([x] * steps, model.time_axis))
            if not torch.equal(torch.get_rng_state(), drawn):
                return Comparison(left_out=_DRAWS)
    except Exception as error:  # of the user's own code, which may take states for what they are
        told = " ".join(str(error).split())
        return Comparison(left_out=f"with its neurons at their rates it raises {type(error).__name__}: {told}")
    expected = next((leaf for path, leaf in leaves(returned) if path == origin.path), None)
    try:
        with unchanged(model), buffers_as_before(model), torch.no_grad(), torch.random.fork_rng():
            model.eval()
            drawn = torch.get_rng_state()
            states, found = _settled(model, x)
            if not torch.equal(torch.get_rng_state(), drawn):
                return Comparison(left_out=_DRAWS)
    except (ValueError, RuntimeError) as error:
        why = f"which the original takes and the network does not: {error}"
        return Comparison(f"for an input of shape {list(x.shape)}, {why}")
    if not isinstance(found, Tensor) or (gap := _gap(found, expected, open_steps)) is None:
        shapes = " and ".join(_shape(value) for value in (expected, found))
        return Comparison(left_out=f"its output and the network's are {shapes}")
    if gap <= _TOLERANCE:
        return Comparison()
    for (name, _, _), state in zip(origin.layers, states, strict=True):
        rates = sent.get(name)
        if rates is not None and rates.shape == state.shape and (own := _gap(state, rates) or 0) > _TOLERANCE:
            return Comparison(f"from {name} on, whose states are off by {own:.1g} of the largest")
    return Comparison(f"behind the neurons, in outputs that are off by {gap:.1g} of the largest")


_DRAWS = "it draws random numbers in evaluation mode"


def _incomparable(model: ConvergentNetwork) -> str | None:
    """Why a drive alone does not tell what its neurons settle at."""
    origin: Any = model.origin
    if origin is None:
        return "this network is a copy, or was not made by ep_plugin.convert"
    if model.time_varying:
        return "its input changes over time"
    if any(map(is_lazy, model.parameters())):
        return "it has lazy modules, which have no weights yet"
    return origin.without_rates


def _shape(value: Any) -> str:
    return f"of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _settled(model: ConvergentNetwork, x: Tensor) -> tuple[list[Tensor], Any]:
    """The states and the output of graded neurons without feedback."""
    relaxation = Relaxation(steps=len(model.layers) + 2, step_size=1.0)
    plain = model.variant(encoder="graded", feedback=1e-6, relaxation=relaxation)
    output, equilibrium = plain(x, return_equilibrium=True)
    return list(equilibrium.states), output


@contextmanager
def _at_their_rates(layers: list[tuple[str, nn.Module, Any]]) -> Iterator[dict[str, Tensor]]:
    """Neurons send their rates in place of spikes; yields what each has sent last."""
    sent: dict[str, Tensor] = {}

    def sending(name: str, neuron: nn.Module, layer: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
        def called(drive: Tensor, *state: Any, **options: Any) -> Any:
            made = forward(drive, *state, **options)
            sent[name] = layer.activation(drive / layer.theta)
            if "spk" in neuron._buffers:
                neuron._buffers["spk"] = sent[name]
            return (sent[name], *made[1:]) if isinstance(made, tuple) else sent[name]

        return called

    for name, neuron, layer in layers:  # `unchanged` takes it off again
        neuron.__dict__["forward"] = sending(name, neuron, layer, neuron.forward)
    yield sent


def _gap(found: Tensor, expected: Any, may_be_a_sum: bool = False) -> float | None:
    """How far one is from the other, as a fraction of the largest value; of a record in any of its steps."""
    if not isinstance(expected, Tensor):
        return None
    if may_be_a_sum:  # over the steps, of which a network returns the mean
        gaps = [_gap(found, expected / n) for n in (1, _FEW)]
        return min((gap for gap in gaps if gap is not None), default=None)
    if expected.dim() == found.dim() + 1:
        axes = [a for a in range(expected.dim()) if expected.movedim(a, 0).shape[1:] == found.shape]
        gaps = [_gap(found, expected.select(a, 0)) for a in axes]
        return min((gap for gap in gaps if gap is not None), default=None)
    if expected.shape != found.shape:
        return None
    largest = max(expected.abs().max().item(), 1e-6)
    return (found - expected).abs().max().item() / largest
