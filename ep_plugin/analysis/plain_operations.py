"""Operations of nets that run forward, step by step, with snnTorch's or Norse's neurons; and of their backward pass."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from ep_plugin.analysis.operation_counts import Loss, Memory, Operations
from ep_plugin.conversion import adapters
from ep_plugin.own_loop import neuron_calls

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
_NOT_COUNTED = (
    *(nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.PReLU),
    parametrize.ParametrizationList,
)


@dataclass
class Products:
    """What the calls of a linear module have taken, all samples together.

    Attributes:
        events: synapses that were reached by -1, 0 or 1 alone.
        numbers: synapses that were reached in calls with other inputs.
        dense: all synapses.
        weights: multiply-adds of the backward pass for the weights.
        inputs: the same for the inputs.
    """

    events: float = 0.0
    numbers: float = 0.0
    dense: float = 0.0
    weights: float = 0.0
    inputs: float = 0.0


@contextmanager
def products(net: nn.Module) -> Iterator[dict[str, Products]]:
    """Counts every call of a net's linear modules and convolutions while it is open, by their names."""
    found: dict[str, Products] = {}
    with ExitStack() as hooks:
        for name, module in net.named_modules():
            if isinstance(module, _WEIGHTED):
                found[name] = Products()
                seen = _seen_by(module, found[name])
                hooks.callback(module.register_forward_hook(seen).remove)
        yield found


def _seen_by(module: Any, into: Products) -> Callable[..., None]:
    there, all_of_them = _twin(module, zeros=False), _twin(module, zeros=True)

    @torch.no_grad()
    def see(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        x = given[0].detach()
        reached = there((x != 0).float()).double().sum().item()
        dense = all_of_them(torch.ones_like(x[:1], dtype=torch.float32)).double().sum().item() * len(x)
        if bool(((x == 0) | (x.abs() == 1)).all()):
            into.events += reached
        else:
            into.numbers += reached
        into.dense += dense
        if output.requires_grad:
            into.weights += dense if any(p.requires_grad for p in module.parameters()) else 0
            into.inputs += dense if given[0].requires_grad else 0

    return see


def _twin(module: Any, zeros: bool) -> nn.Module:
    """The module without bias and hooks, its weights replaced by whether they are there."""
    weight = module.weight.detach()
    kind: Any = parametrize.type_before_parametrizations(module)
    twin = kind.__new__(kind)  # copy.copy refuses modules with parametrizations
    twin.__dict__ = {k: v for k, v in module.__dict__.items() if k not in ("weight", "bias")}
    there = torch.ones_like(weight) if zeros else weight != 0
    twin._parameters = {"weight": nn.Parameter(there.float(), requires_grad=False), "bias": None}
    twin._modules = {}
    twin._forward_hooks, twin._forward_pre_hooks = OrderedDict(), OrderedDict()
    return twin


def counted(net: nn.Module, x: Tensor, y: Any, loss: Loss, num_steps: int | None) -> tuple[list[Operations], Memory]:
    """See `count_operations`."""
    neurons = _neurons(net)
    _check(net, neurons)
    fired: dict[str, tuple[int, float, float]] = {}
    samples: list[int] = []
    with _states_given_back(neurons), ExitStack() as hooks, torch.set_grad_enabled(y is not None):
        for name, neuron in neurons.items():
            hooks.callback(neuron.register_forward_hook(_seen_firing(name, fired, samples)).remove)
        linear = hooks.enter_context(products(net))
        kept = hooks.enter_context(bytes_kept(net))
        output = _run(net, x, num_steps)
        if y is not None:
            loss(output, y).backward()
    batch = samples[0] if samples else len(x)
    rows = [*_rows("forward", net, neurons, linear, fired, batch)]
    if y is not None:
        rows += _backward_rows(net, neurons, linear, fired, batch)
    neurons_in_all = sum(n for n, _, _ in fired.values())
    memory = Memory(
        weights=weight_bytes(net),
        inference=neurons_in_all * x.element_size(),
        training=0 if y is None else kept() // batch,
        backprop=0 if y is None else kept() // batch,
    )
    return rows, memory


def own_steps(net: nn.Module, x: Tensor) -> int | None:
    """How many steps the loop over time has that a net runs in every call; None where it has none."""
    neurons = _neurons(net)
    with _states_given_back(neurons), torch.no_grad(), neuron_calls(neurons.values()) as steps:
        try:
            net(x)
        except RuntimeError as error:
            if x.dtype == torch.float32:
                raise
            raise ValueError(
                f"the original does not run in {x.dtype}, as snnTorch's neurons do not ({error}); count it in float32: "
                "net.float()"
            ) from error
    return steps()


def _neurons(net: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in net.named_modules() if adapters.find_adapter(m) is not None}


def _check(net: nn.Module, neurons: dict[str, nn.Module]) -> None:
    """Refuses what has weights whose use is not seen."""
    for name, module in net.named_modules():
        if isinstance(module, (*_WEIGHTED, *_NOT_COUNTED)) or ".parametrizations." in f".{name}.":
            continue
        own = {k: p for k, p in module.named_parameters(recurse=False) if p.dim() > 1 or name not in neurons}
        if own:
            place = f"module {name!r} ({type(module).__name__})" if name else f"the net ({type(module).__name__})"
            raise ValueError(
                f"{place} cannot be counted: it has weights of its own ({', '.join(own)}), and what it does with them "
                "is not known; put them into modules of their own (nn.Linear, nn.Conv2d and the like)"
            )


def _run(net: nn.Module, x: Tensor, num_steps: int | None) -> Any:
    """What the net gives; the mean over the steps if it is called once for each."""
    if num_steps is None:
        return _first(net(x))
    stateful = type(net).__name__ == "SequentialState"
    outputs, state = [], None
    for _ in range(num_steps):
        made = net(x, state) if stateful else net(x)
        if stateful:
            made, state = made
        outputs.append(_first(made))
    return torch.stack(outputs).mean(0)


def _first(made: Any) -> Any:
    return made[0] if isinstance(made, tuple) else made


@contextmanager
def _states_given_back(neurons: dict[str, nn.Module]) -> Iterator[None]:
    """The neurons start from rest, and have in the end what they had before."""
    before = {name: dict(neuron._buffers) for name, neuron in neurons.items()}
    for neuron in neurons.values():
        for name in neuron._non_persistent_buffers_set:
            held = neuron._buffers[name]
            if held is not None:
                neuron._buffers[name] = held.new_zeros(0)
    try:
        yield
    finally:
        for name, neuron in neurons.items():
            neuron._buffers.update(before[name])


def _seen_firing(name: str, fired: dict[str, tuple[int, float, float]], samples: list[int]) -> Callable[..., None]:
    def see(neuron: nn.Module, _: Any, output: Any) -> None:
        sent = next(t for t in tree_leaves(output) if isinstance(t, Tensor)).detach()
        adapter = adapters.adapter_for(neuron)
        if not samples:
            samples.append(sent.shape[1] if adapter.runs_over_time(neuron) else len(sent))
        spikes = (sent != 0).sum().item() if bool(((sent == 0) | (sent.abs() == 1)).all()) else 0
        _, before, updates = fired.get(name, (0, 0.0, 0.0))
        fired[name] = (sent.numel() // samples[0], before + spikes, updates + sent.numel())

    return see


def _rows(
    phase: str,
    net: nn.Module,
    neurons: dict[str, nn.Module],
    linear: dict[str, Products],
    fired: dict[str, tuple[int, float, float]],
    batch: int,
) -> Iterator[Operations]:
    for name, module in net.named_modules():
        title = _title(name, module)
        if name in linear and linear[name].dense:
            own = linear[name]
            yield Operations(
                phase,
                title,
                synaptic_operations=own.events / batch,
                multiply_adds=own.numbers / batch,
                dense=own.dense / batch,
            )
        elif name in fired:
            size, spikes, updates = fired[name]
            yield Operations(phase, title, size, spikes / batch, neuron_updates=updates / batch)


def _title(name: str, module: nn.Module) -> str:
    return f"{name} {parametrize.type_before_parametrizations(module).__name__}".strip()


def _backward_rows(
    net: nn.Module,
    neurons: dict[str, nn.Module],
    linear: dict[str, Products],
    fired: dict[str, tuple[int, float, float]],
    batch: int,
) -> Iterator[Operations]:
    seen: set[int] = set()
    for name, module in net.named_modules():
        title = _title(name, module)
        if name in linear and linear[name].dense:
            own = linear[name]
            yield Operations("backward", title, multiply_adds=own.inputs / batch, dense=own.inputs / batch)
            yield Operations(
                "weight update",
                title,
                multiply_adds=own.weights / batch,
                dense=own.weights / batch,
                weight_updates=weights_of(module, seen),
            )
        elif name in fired:
            size, _, updates = fired[name]
            yield Operations("backward", title, size, neuron_updates=updates / batch)


def any_loss(output: Any, _: Any) -> Tensor:
    """For counting a backward pass, which is dense whatever the loss."""
    return torch.stack([t.float().sum() for t in tree_leaves(output) if isinstance(t, Tensor)]).sum()


def weights_of(module: nn.Module, seen: set[int]) -> int:
    """How many weights it has that are trained and have not been `seen` before."""
    own = [p for p in module.parameters() if p.requires_grad and id(p) not in seen]
    seen.update(id(p) for p in own)
    return sum(p.numel() for p in own)


def weight_bytes(net: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in net.parameters())


@contextmanager
def bytes_kept(net: nn.Module) -> Iterator[Callable[[], int]]:
    """How many bytes autograd keeps for the backward pass of what runs while it is open, but for the weights."""
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, Any] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        yield lambda: sum(storage.nbytes() for storage in kept.values())
