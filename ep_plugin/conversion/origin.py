"""The model that a network was made of: whether it still is the one that the network was made of."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ep_plugin.conversion.adapters import Neuron, find_adapter, place_of, runs_over_time
from ep_plugin.conversion.plan import Plan
from ep_plugin.dynamics.layer import Layer
from ep_plugin.linear.base import OF_EVERY_MODULE, same_objects, settings_of
from ep_plugin.tensors import writings

_CONVERT = "convert the model again"


class Origin:
    """Refuses to let a network run once its original has been changed in a way that the network does not follow.

    The network shares modules and parameters with the original, and follows what becomes of these. All other modules
    of the original it does not have: neurons, and what only holds others. A copy of the network has modules of its
    own, so that it has no original.

    Args:
        net: the original.
        network: what was made of it.
        neurons: of each layer, in their order: the name in the original, the neuron, and a function that tells what
            the layer takes over of it.
        plan: what the original computes.

    Attributes:
        shared: the modules that the network shares with the original.
        layers: the name of each layer's neuron in the original, the neuron and the layer.
        path, steps: of the output, and of the input, as in the plan.
        without_rates: why the drive of a neuron alone does not tell what it settles at and what is read of it, in a
            few words; None if it does.
    """

    def __init__(
        self,
        net: nn.Module,
        network: nn.Module,
        neurons: Mapping[str, tuple[nn.Module, Callable[[], Neuron]]],
        plan: Plan,
    ) -> None:
        shared = set(network.modules())
        of_layers = {t for m in network.modules() if isinstance(m, Layer) for t in m.buffers()}  # see _Taken
        tensors = {*network.parameters(), *network.buffers()} - of_layers
        self.names = {id(p): name for name, p in net.named_parameters() if p in tensors}
        self._parts = [_Part(name, m, tensors) for name, m in net.named_modules() if m not in shared]
        self.shared = [m for m in net.modules() if m in shared]
        layers: Any = network.layers
        self._neurons = [
            _Taken(name, neuron, describe, layer, [m for m in neuron.modules() if m not in shared])
            for (name, (neuron, describe)), layer in zip(neurons.items(), layers, strict=True)
        ]
        self.layers = [
            (name, neuron, layer) for (name, (neuron, _)), layer in zip(neurons.items(), layers, strict=True)
        ]
        self.path, self.steps = plan.path, plan.steps
        self.without_rates = self._without_rates({m for m in net.modules() if find_adapter(m) is not None})

    def _without_rates(self, known: set[nn.Module]) -> str | None:
        described = [taken.described for taken in self._neurons]
        if any(map(runs_over_time, known)):
            return "it has neurons that take all steps in one call"
        if any(n.lateral is not None for n in described):
            return "it has recurrent neurons"
        if any(n.input_weights is not None for n in described):
            return "it has neurons with weights of their own"
        if known != {neuron for _, neuron, _ in self.layers}:
            return "it has neurons that are no layers of the network, such as one that reads out by its membrane"
        return None

    def check(self, network: nn.Module) -> None:
        """Looks whether anything has changed.

        Raises:
            ValueError: what, where, and the way out.
        """
        for part in self._parts:
            part.check()
        for neuron in self._neurons:
            neuron.check(network)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def parameter_names(network: nn.Module) -> dict[int, str]:
    """What each of a network's parameters is called by its owner.

    Args:
        network: as `convert` gives it, or built by hand.

    Returns:
        From a parameter's `id` to its name in the original; in the network itself where there is none.

    Example:
        >>> parameter_names(model)[id(model.layers[0].threshold)]
    """
    found = {id(p): name for name, p in network.named_parameters()}
    origin = getattr(network, "origin", None)
    return found if origin is None else found | origin.names


class _Part:
    """A module of the original that the network does not have: a neuron, or what holds others."""

    def __init__(self, name: str, module: nn.Module, tensors: set[Tensor]) -> None:
        self.name, self.module, self.kind = name, module, type(module)
        self.children = dict(module._modules)
        self.is_sequence = (
            isinstance(module, (nn.Sequential, nn.ModuleList)) or type(module).__name__ == "SequentialState"
        )
        self.settings = self._settings()
        self.hooks = self._hooks()
        self.tensors = {name: t for name, t in _tensors(module).items() if t in tensors}

    def check(self) -> None:
        module = self.module
        if type(module) is not self.kind:
            raise ValueError(
                f"{place_of(self.name, module)} of the original was a {self.kind.__name__} when it was converted, and "
                f"this network does not follow the change (a parametrization is one); undo it, or {_CONVERT}"
            )
        now = _tensors(module) if self.tensors else {}
        for name, tensor in self.tensors.items():
            other = now.get(name)
            if other is not None and _is_moved(tensor, other):
                self.tensors[name] = other
            elif other is not tensor:
                kind = "parameter" if isinstance(tensor, nn.Parameter) else "tensor"
                raise ValueError(
                    f"the {kind} {self._inside(name)!r} of the original was replaced after the conversion, and "
                    f"this network still has the former one; {_CONVERT}, or write into it in place (load_state_dict "
                    "without assign=True)"
                )
        if module._modules != self.children:
            for name, child in self.children.items():
                if module._modules.get(name) is not child:
                    raise ValueError(
                        f"module {self._inside(name)!r} of the original was replaced after the conversion, and this "
                        f"network still has the former one; {_CONVERT}"
                    )

            if self.is_sequence:
                added = next(name for name in module._modules if name not in self.children)
                raise ValueError(
                    f"module {self._inside(added)!r} of the original was added after the conversion, and this network "
                    f"does not have it; {_CONVERT}"
                )
        if not same_objects(settings := self._settings(), self.settings):
            if len(settings) != len(self.settings) or any(map(_differ, settings, self.settings)):
                raise ValueError(
                    f"{place_of(self.name, module)} of the original has other settings since the conversion, and this "
                    f"network has something else in its place; {_CONVERT}"
                )
            self.settings = settings
        if self._hooks() != self.hooks:
            place = place_of(self.name, module) if self.name else "the model"
            raise ValueError(
                f"{place} of the original was given a hook or a forward of its own after the conversion (or lost one), "
                "and this network does not call it; undo it, hook this network or a module with weights instead, or "
                f"{_CONVERT}, which sees forward hooks"
            )

    def _settings(self) -> list[Any]:
        """Of PyTorch's own modules with a computation: of pooling that became another one, or of a layer twice used."""
        module = self.module
        return [] if self.children or not type(module).__module__.startswith("torch.nn.") else settings_of(module)

    def _hooks(self) -> list[Any]:
        m = self.module
        kinds = (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
        return [vars(m).get("forward"), *(list(kind.values()) for kind in kinds if kind)]

    def _inside(self, name: str) -> str:
        return f"{self.name}.{name}".lstrip(".")


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's own, whether parameters, buffers or plain attributes."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
    return {**plain, **{n: t for n, t in (*module._parameters.items(), *module._buffers.items()) if t is not None}}


def _is_moved(tensor: Tensor, other: Tensor) -> bool:
    """Whether another tensor is the same on another device, or in another precision: a parameter stays itself then."""
    return other is not tensor and not isinstance(tensor, nn.Parameter) and _equal(_values(tensor), _values(other))


class _Taken:
    """What a layer has taken over of a neuron.

    A threshold may be the same tensor in both, so that what is written into it counts.
    """

    def __init__(
        self, name: str, neuron: nn.Module, describe: Callable[[], Neuron], layer: Layer, modules: list[nn.Module]
    ) -> None:
        self.place, self.describe, self.layer, self.modules = place_of(name, neuron), describe, layer, modules
        self.seen = self._facts()
        self.described = describe()
        self.given = {name: getattr(layer, name) for name in ("threshold", "gain")}
        self.values = {name: _values(getattr(self.described, name)).clone() for name in self.given}

    def check(self, network: nn.Module) -> None:
        facts = self._facts()
        if _same(facts, self.seen):
            return
        layers: list[Any] = list(network.layers)  # type: ignore[arg-type]
        if self.layer in layers:
            now, at = self.describe(), layers.index(self.layer)
            for what in self.given:
                self._require_same(what, now, at)
            if now.activation is not self.described.activation:
                raise ValueError(
                    f"the activation of {self.place} of the original was replaced after the conversion, and layer "
                    f"{at} still has the former one; set model.layers[{at}].activation too, or {_CONVERT}"
                )
            self.values = {name: _values(getattr(now, name)).clone() for name in self.given}
        self.seen = facts

    def _require_same(self, what: str, now: Neuron, at: int) -> None:
        """Refuses a threshold or gain that is not the layer's, unless the layer has one of the user's own."""
        value, own, before = getattr(now, what), getattr(self.layer, what), self.values[what]
        if value is own:
            return
        is_new = isinstance(value, nn.Parameter) or isinstance(self.given[what], nn.Parameter)
        mine = _values(1.0 if own is None else own)
        if not is_new and _equal(_values(value), before):
            return
        if own is not self.given[what] and not _equal(mine, before):
            return
        if not is_new and _equal(_values(value), mine):
            return
        shown = f" (from {before.item():g} to {_values(value).item():g})" if _are_numbers(before, value) else ""
        raise ValueError(
            f"the {what} of {self.place} of the original has changed after the conversion{shown}, which layer {at} of "
            f"this network does not follow; change it before convert, set model.layers[{at}].{what}, or {_CONVERT}"
        )

    def _facts(self) -> list[tuple[Any, int]]:
        """All that the neuron is made of, with the number of times that something was written into it.

        Only where these have changed is the neuron asked again what it is. (A parameter is trained: its values may
        change.)
        """
        found: list[tuple[Any, int]] = []
        for module in self.modules:
            found.append((type(module), 0))
            for name, value in vars(module).items():
                if name in OF_EVERY_MODULE:
                    continue
                for v in value if isinstance(value, tuple) else (value,):
                    found.append((v, _writings(v)))
            found += [(v, _writings(v)) for v in module._buffers.values()]
            found += [(v, 0) for v in module._parameters.values()]
        return found


def _writings(value: Any) -> int:
    return writings(value) if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) else 0


def _differ(one: Any, other: Any) -> bool:
    return one is not other and (isinstance(one, Tensor) or one != other)


def _same(one: list[tuple[Any, int]], other: list[tuple[Any, int]]) -> bool:
    return len(one) == len(other) and all(a is b and n == m for (a, n), (b, m) in zip(one, other, strict=True))


def _values(value: Any) -> Tensor:
    return torch.as_tensor(value).detach()


def _are_numbers(*values: Any) -> bool:
    return all(_values(v).numel() == 1 and not _values(v).is_meta for v in values)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether they are the same but for their type and place: `double()` and `cuda()` change no value."""
    if one.is_meta or other.is_meta:
        return True
    other = other.to(one.device)
    return one.shape == other.shape and (
        bool((one == other.to(one.dtype)).all()) or bool((one.to(other.dtype) == other).all())
    )
