"""What a chip offers against what a network needs."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ep_plugin.analysis.synapses import Synapses
from ep_plugin.chips.weights import ROUNDED, quantization
from ep_plugin.dynamics.system import System
from ep_plugin.linear.connection import BoundConnection, Connection
from ep_plugin.network import ConvergentNetwork
from ep_plugin.unnoticed import buffers_as_before, random_numbers_as_before
from ep_plugin.validation import count


def check_budget(
    model: ConvergentNetwork,
    x: Tensor,
    *,
    neurons: int | None = None,
    synapses: int | None = None,
    fan_in: int | None = None,
    bits: int | None = None,
) -> list[str]:
    """Lists which of a chip's limits the network exceeds, and where.

    Synapses are those of every pair of neurons, as a chip without shared weights holds them, up and down alike. After
    max pooling a neuron counts the synapses of one winner. The readout is not counted: it is assumed to be off the
    chip.

    Args:
        model: the network.
        x: an input, `[B, ...]`, for the sizes.
        neurons: how many there may be in all.
        synapses: how many there may be in all.
        fan_in: how many synapses one neuron may have, from the input, from below and from above.
        bits: how many a weight may have, with its sign.

    Returns:
        One sentence per limit and layer that is exceeded; an empty list if the network fits.

    Raises:
        ValueError: a limit is below 1, or the input does not fit the network.
        TypeError: a limit is not a whole number.

    Example:
        >>> ep.chips.check_budget(model, x, neurons=4096, fan_in=1024)
        []
    """
    limits = {"neurons": neurons, "synapses": synapses, "fan_in": fan_in, "bits": bits}
    given = {name: None if limit is None else count(name, limit) for name, limit in limits.items()}
    neurons, synapses, fan_in, bits = given.values()
    with torch.no_grad(), buffers_as_before(model), random_numbers_as_before(x.device):
        system = model.system(x)
        found, known = _fan_in(model, system, x)
    total = sum(torch.Size(shape).numel() for shape in system.shapes)
    told = []
    if neurons is not None and total > neurons:
        told.append(f"the network has {total:,} neurons; the limit is {neurons:,}")
    all_synapses = round(sum(f.sum().item() for f in found))
    if synapses is not None and all_synapses > synapses:
        told.append(f"the network has {all_synapses:,} synapses; the limit is {synapses:,}")
    for l, own in enumerate(found):
        if fan_in is not None and own.max().item() > fan_in:
            told.append(f"layer {l}: a neuron has {round(own.max().item()):,} synapses; the limit is {fan_in:,}")
    if not known and (synapses is not None or fan_in is not None):
        told.append("the input's synapses are not counted: the modules before the first neuron are not linear alone")
    if bits is not None:
        told += _too_fine(model, bits)
    return told


def _fan_in(model: ConvergentNetwork, system: System, x: Tensor) -> tuple[list[Tensor], bool]:
    """Of every layer, the number of synapses of each neuron; and whether the input's are among them."""
    found = [torch.zeros(shape, dtype=torch.float64) for shape in system.shapes]
    for bound in system.bound:
        state = system.like.new_zeros(1, *system.shapes[bound.source])
        up, down = _ends(bound, state)
        found[bound.target] += up
        found[bound.source] += down
    if len(system.driven) > 1:
        return found, False
    try:
        stem = Connection(model.stem, 0, 1)
    except ValueError:
        return found, False
    image = (x[:, :1].movedim(model.time_axis, 0)[0] if model.time_varying else x[:1]).float()
    found[system.driven[0]] += _ends(stem.bound(stem.tensors(), image.shape[1:]), torch.zeros_like(image))[0]
    return found, True


def _ends(bound: BoundConnection, state: Tensor) -> tuple[Tensor, Tensor]:
    """Synapses of one connection at every neuron of its target and of its source."""
    near, _ = bound.at(state)
    below, above = Synapses(near, zeros=True).fan_out(tuple(state.shape[1:]))
    return above.cpu(), below.cpu()


def _too_fine(model: nn.Module, bits: int) -> list[str]:
    told = []
    for name, module in model.named_modules():
        if name.startswith("readout") or ".parametrizations" in name:
            continue
        if isinstance(module, ROUNDED):
            rounded = quantization(module)
            own = torch.finfo(module.weight.dtype).bits if rounded is None else rounded.bits
            if own > bits:
                told.append(f"{name}: weights of {own} bits; the limit is {bits} (ep_plugin.chips.quantize_weights)")
        elif name.startswith("connections") and not isinstance(module, _NormBase):
            widths = [torch.finfo(p.dtype).bits for p in module.parameters(recurse=False)]
            if widths and max(widths) > bits:
                told.append(f"{name}: weights of {max(widths)} bits, which nothing rounds; the limit is {bits}")
    return told
