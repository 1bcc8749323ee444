"""The tracer of `torch.fx` that reads forwards: what is a leaf of the trace, and what only a value can tell."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from ep_plugin.conversion.adapters import find_adapter, place_of
from ep_plugin.conversion.between import BACKWARD_HOOK, hooked_backward
from ep_plugin.conversion.functions import follows_mode, in_order
from ep_plugin.conversion.mode import Mode
from ep_plugin.conversion.returned import Path, leaves
from ep_plugin.conversion.shapes import Shapes, held
from ep_plugin.conversion.sizes import EXAMPLE, NotKnown, Shape
from ep_plugin.conversion.traced import Traced
from ep_plugin.conversion.untraceable import calls_function
from ep_plugin.conversion.watch import Watch, function_name, is_in_place
from ep_plugin.linear.base import OF_EVERY_MODULE

STATES = ("mem", "spk", "syn", "syn_exc", "syn_inh")
"""What snnTorch's neurons keep of their last call."""


def state_of(neuron: Any, state: str) -> Any:
    """Stands in a trace for what a neuron keeps."""


class Root(nn.Module):
    """Calls the model as a user does, so that its hooks, partials and its own forward count."""

    def __init__(self, net: nn.Module, calls: int) -> None:
        super().__init__()
        self.net, self.calls = net, calls
        self.returned: list[tuple[Path, Any]] = []

    def forward(self, args: list[Any], options: dict[str, Any]) -> list[Any]:
        for _ in range(self.calls):
            self.returned = list(leaves(self.net(*args, **options)))
        return [leaf for _, leaf in self.returned]


class Tracer(fx.Tracer):
    def __init__(
        self, net: nn.Module, root: Root, modules: dict[str, nn.Module], example: Tensor | None, length: int
    ) -> None:
        super().__init__()
        self.net, self.example, self.length, self.sized = net, example, length, False
        self.names = {module: name for name, module in modules.items()}
        self.shapes = Shapes(root, modules) if example is not None else None
        self.device = torch.device("cpu") if example is None else example.device
        self.watch = Watch(lambda tensor: self.proxy(self.create_arg(tensor)))
        self.kinds: dict[nn.Module, Any] = {}
        self.functions = _forwards(torch.autograd.Function)
        self.before = {m: _attributes(m) for m in modules.values()}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Traced(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        raise NotKnown(
            "an attribute of a value that depends on the input decides what it does, and it is not known; decide "
            "outside, or in a module without neurons"
        )

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, nn.Parameter) and not any(a is p for p in self.root.parameters()):
            raise NotKnown(
                "it uses a parameter that is no attribute of the model's modules; expected it to be one (in an "
                "nn.ParameterList if there are several)"
            )
        if isinstance(a, Shape):
            raise NotKnown(f"it uses the sizes of a value, which are not known; {EXAMPLE}")
        if type(a) is Tensor and self._differs_from_before(a):
            now = a.detach().clone()  # what it is when it is used, whatever becomes of it
            if id(a) in self.watch.drawn:
                self.watch.drawn[id(now)] = now
            a = now
        return a.node if isinstance(a, fx.Proxy) else super().create_arg(a)

    def _differs_from_before(self, tensor: Tensor) -> bool:
        """Whether a tensor is a buffer that forward has put there, or has changed in place."""
        if tensor.requires_grad:
            return False
        if self.watch.has_changed(tensor):
            return True
        put = ((m, name) for m in self.before for name, held in m._buffers.items() if held is tensor)
        return any(self.before[m].get(name) is not tensor for m, name in put)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> fx.Node:
        if kind in ("call_function", "call_method"):
            self._outside_of_functions()
            args, kwargs = in_order(getattr(target, "__name__", target), args, kwargs)
            if not follows_mode(target):
                args, kwargs = map_aggregate((args, kwargs), lambda a: bool(a) if isinstance(a, Mode) else a)
        node = super().create_node(kind, target, args, kwargs, *rest, **options)
        if kind == "call_module" and not torch.is_grad_enabled():
            node.meta["frozen"] = True
        if self.shapes is not None and kind not in ("placeholder", "output"):
            node.meta["shape"] = self.shapes.of(node)
        return self._without_gradient(node) if kind in ("call_function", "call_method") else node

    def _without_gradient(self, node: fx.Node) -> fx.Node:
        """Under `torch.no_grad()` what is made of parameters is a constant for the gradient."""
        name = function_name(node.target)
        if name == "detach" or node.target is state_of or not any(map(self._is_of_parameters, node.all_input_nodes)):
            return node
        if torch.is_grad_enabled() or is_in_place(name) or node.target is getattr:
            node.meta["of_parameters"] = True
            return node
        return self.create_node("call_method", "detach", (node,), {})

    def _is_of_parameters(self, node: fx.Node) -> bool:
        if node.op != "get_attr":
            return "of_parameters" in node.meta
        of = held(self.root, str(node.target))
        return isinstance(of, nn.Parameter) and of.requires_grad

    def _outside_of_functions(self) -> None:
        """Refuses what the forward of an autograd function does, whose backward would be lost."""
        frame = inspect.currentframe()
        while frame is not None:
            if (name := self.functions.get(frame.f_code)) is not None:
                raise calls_function(name)
            frame = frame.f_back

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """The input, other arguments that have no default, and no others: those keep their defaults."""
        args, options, first = [], {}, True
        for name, parameter in _signature(self.net).items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD or (
                not first and (parameter.default is not inspect.Parameter.empty)
            ):
                continue
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL and not first:
                continue
            made = self.create_proxy("placeholder", name, (), {})
            if first and self.example is not None:
                made.node.meta["shape"] = self.example.detach().to("meta")
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                options[name] = made
            else:
                args.append(made)
            first = False
        if first:
            raise NotKnown("it takes no argument; expected the input as the first one")

        def call(root: Root) -> list[Any]:
            return root.forward(args, options)

        return call, [self.root]

    def path_of_module(self, mod: nn.Module) -> str:
        if mod not in self.names:
            raise NotKnown(
                f"it calls a {type(mod).__name__} that is not among the model's modules; expected it to be an "
                "attribute of one (lists of modules in an nn.ModuleList)"
            )
        return self.names[mod]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m is self.net or type(m) is nn.Sequential:
            return False
        return self._adapter(m) is not None or not any(self._adapter(inner) for inner in m.modules())

    def _adapter(self, m: nn.Module) -> Any:
        if m not in self.kinds:
            self.kinds[m] = find_adapter(m)
        return self.kinds[m]

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.shapes is not None and self.shapes.running:
            return forward(*args, **kwargs)
        if (wrapped := inside_wrapper(m)) is not None:
            return wrapped(*args, **kwargs)
        name = self.path_of_module(m)
        if hooked_backward([m]) and not (self.is_leaf_module(m, name) and self._adapter(m) is None):
            raise NotKnown(f"{place_of(name, m) if name else 'the model'} {BACKWARD_HOOK}")
        if not self.is_leaf_module(m, name):
            return forward(*args, **kwargs)
        found = self._adapter(m)
        self._as_before(name, m)
        if found is None:
            return self.create_proxy("call_module", name, args, kwargs)
        if "forward" in vars(m):
            raise NotKnown(f"the neuron {name!r} has a forward of its own, which the converted one has not; remove it")

        def called(*args: Any, **kwargs: Any) -> Any:
            kept = {s: m._buffers[s].node for s in STATES if isinstance(m._buffers.get(s), fx.Proxy)}  # type: ignore[union-attr]
            made: Any = self.create_proxy("call_module", name, args, kwargs)
            made.node.meta["kept"] = kept
            for state in STATES:  # what the neuron itself would have set by now
                if state in m._buffers:
                    m._buffers[state] = self.create_proxy("call_function", state_of, (made, state), {})  # type: ignore[assignment]
            count = found.outputs(m)
            return tuple(made[i] for i in range(count)) if count else made

        if not (m._forward_hooks or m._forward_pre_hooks):
            return called(*args, **kwargs)
        m.__dict__["forward"] = called  # its hooks are called around it
        try:
            return forward(*args, **kwargs)
        finally:
            del m.__dict__["forward"]

    def _as_before(self, name: str, module: nn.Module) -> None:
        """Refuses a leaf that forward has given other parameters, and a neuron with other settings."""
        for inner in module.modules():
            of_neuron = self._adapter(inner) is not None
            for attribute, now in _attributes(inner).items():
                if attribute in STATES or not (of_neuron or attribute in inner._parameters):
                    continue
                other = self.before[inner].get(attribute, now) is not now
                if other or (of_neuron and isinstance(now, Tensor) and self.watch.has_changed(now)):
                    why = _OTHER_SETTING if of_neuron else _OTHER_WEIGHTS
                    raise NotKnown(f"it calls {place_of(name, module)} with another {attribute} than it had, {why}")

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return iter([obj[i] for i in range(len(obj))])  # type: ignore[index]


_OTHER_SETTING = (
    "which the converted neuron would not follow; set it before the conversion (a threshold that is learned is a "
    "parameter: learn_threshold=True)"
)
_OTHER_WEIGHTS = (
    "which the converted model would not follow; call the function itself (such as F.linear), or make it a "
    "parametrization of the module (torch.nn.utils.parametrize)"
)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Parameters, buffers and settings."""
    settings = {name: value for name, value in vars(module).items() if name not in OF_EVERY_MODULE}
    return {**settings, **module._parameters, **module._buffers}


def _forwards(function: type) -> dict[Any, str]:
    """The code of the forward of every autograd function, and its name."""
    found: dict[Any, str] = {}
    kind: type
    for kind in function.__subclasses__():
        if (code := getattr(getattr(kind, "forward", None), "__code__", None)) is not None:
            found[code] = kind.__name__
        found |= _forwards(kind)
    return found


def inside_wrapper(module: nn.Module) -> nn.Module | None:
    """The module that a wrapper for several devices, or a compiled one, stands for."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return module.module
    if type(module).__name__ == "OptimizedModule" and isinstance(inner := module._modules.get("_orig_mod"), nn.Module):
        return inner
    return None


def _signature(net: nn.Module) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(net.forward).parameters)
