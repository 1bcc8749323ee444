"""What a forward does to real tensors while it is traced: draws, and writes into tensors that it holds."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from ep_plugin.conversion.mode import Mode
from ep_plugin.conversion.sizes import NotKnown

DRAWS = frozenset(
    [
        "rand",
        "randn",
        "randint",
        "rand_like",
        "randn_like",
        "randint_like",
        "randperm",
        "bernoulli",
        "bernoulli_",
        "normal",
        "normal_",
        "poisson",
        "multinomial",
        "uniform_",
        "random_",
        "exponential_",
        "cauchy_",
        "geometric_",
        "log_normal_",
        "gumbel_softmax",
    ]
)
"""Functions and methods that draw anew each time."""

_OPERATORS = {f"i{name}": getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "pow", "matmul")}

DRAWN = (
    "a random draw in forward, which a relaxation would see once and the original anew in every step; give the "
    "network the probabilities themselves (its input is a rate), or draw outside and give all steps, with "
    "time_varying=True, or put noise into a module without neurons before the first neuron"
)


CHANGES_PARAMETERS = (
    "forward changes the model's parameters in place, which the converted model would not do; change them after each "
    "step of the optimizer instead"
)

SETS_DATA = (
    "forward sets the .data of a tensor, which the converted model would not do; use the new values as they are, or "
    "change the tensor outside of forward"
)

_AS_NUMBERS = frozenset(
    ["item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__", "__complex__"]
)


def function_name(function: Any) -> str:
    return str(getattr(function, "__name__", function))


def is_in_place(name: str) -> bool:
    """Whether a function of this name changes its first argument."""
    if name in _OPERATORS:
        return True
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in ("__invert__", "__index__", "__int__"))
    return name.endswith("_") and not name.endswith("__") and name not in ("requires_grad_", "retain_grad_")


def asks_in_place(node: fx.Node) -> bool:
    """Whether a function is told to change its first argument."""
    function = node.target
    if node.kwargs.get("inplace") is True:
        return True
    if getattr(function, "__module__", "") != "torch.nn.functional" or not node.args:
        return False
    return node.args[-1] is True and (len(node.args) > 3 or "dropout" not in function_name(function))


def out_of_place(function: Any) -> Any:
    """The function that gives the same value and leaves its argument as it is."""
    name = function_name(function)
    if name in _OPERATORS:
        return _OPERATORS[name]
    if is_in_place(name) and not name.startswith("__"):
        for home in (Tensor, torch):
            if getattr(home, name, None) is function and hasattr(home, name[:-1]):
                return getattr(home, name[:-1])
        return getattr(torch.nn.functional, name[:-1], function)
    return function


class Watch(TorchFunctionMode):
    """Watches every function of real tensors.

    Args:
        as_proxy: a tensor -> its proxy in the trace.

    Attributes:
        drawn: tensors that come from a random draw.
        changed: tensors changed in place -> their values before.
    """

    def __init__(self, as_proxy: Callable[[Tensor], fx.Proxy]) -> None:
        super().__init__()
        self.as_proxy = as_proxy
        self.drawn: dict[int, Tensor] = {}
        self.filled: dict[int, Tensor] = {}  # real tensors that traced values were written into
        self.changed: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, function_name(func)
        if name == "__set__" and func == Tensor.data.__set__:  # type: ignore[attr-defined]
            raise NotKnown(SETS_DATA)
        if name in ("__get__", "size", "dim", "numel", "__len__", "is_floating_point", "stride"):
            return func(*args, **kwargs)
        if self.filled:
            args, kwargs = tree_map(self._symbolic, (args, kwargs))
        if not any(isinstance(t, fx.Proxy) for t in tree_leaves((args, kwargs))):
            args, kwargs = tree_map(lambda a: bool(a) if isinstance(a, Mode) else a, (args, kwargs))
        leaves = tree_leaves((args, kwargs))
        real = [t for t in leaves if isinstance(t, Tensor) and not isinstance(t, fx.Proxy)]
        traced = any(isinstance(t, fx.Proxy) for t in leaves)
        if name in _AS_NUMBERS and any(id(t) in self.drawn for t in real):
            raise NotKnown(f"it depends on {DRAWN}")
        first: Any = args[0] if args else None
        if is_in_place(name) and any(first is t for t in real):
            if traced:
                self.filled[id(first)] = first
            elif id(first) not in self.changed:
                self.changed[id(first)] = (first, first.detach().clone())
        # A method of tensors refuses a proxy as its first argument; the trace takes it.
        result = fx.Proxy.__torch_function__(func, types, args, kwargs) if traced else func(*args, **kwargs)
        draws = name in DRAWS or ("dropout" in name and kwargs.get("training", args[2] if len(args) > 2 else True))
        if not traced and (draws or any(id(t) in self.drawn for t in real)):
            for t in tree_leaves(result):
                if isinstance(t, Tensor):
                    self.drawn[id(t)] = t
        return result

    def _symbolic(self, value: Any) -> Any:
        if isinstance(value, Tensor) and not isinstance(value, fx.Proxy) and id(value) in self.filled:
            return self.as_proxy(value)
        return value

    @torch.no_grad()
    def undo(self) -> None:
        """Gives tensors that were changed in place their values back."""
        for tensor, before in reversed(self.changed.values()):  # the first change of a place was that of its own values
            tensor.copy_(before)

    def has_changed(self, tensor: Tensor) -> bool:
        """Whether the values of a tensor are other ones now, by what forward has done to it or to a view of it."""
        place = tensor.untyped_storage().data_ptr()
        changed = any(t.untyped_storage().data_ptr() == place for t, _ in self.changed.values())
        return changed and id(tensor) not in self.filled and tensor.numel() > 0

    def changes(self, tensors: list[Tensor]) -> bool:
        """Whether one of the tensors was changed in place."""
        places = {t.untyped_storage().data_ptr() for t, _ in self.changed.values()}
        places |= {t.untyped_storage().data_ptr() for t in self.filled.values()}
        known = [t for t in tensors if not torch.nn.parameter.is_lazy(t)]
        return any(t.numel() and t.untyped_storage().data_ptr() in places for t in known)
