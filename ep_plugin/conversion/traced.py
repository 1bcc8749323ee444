"""Values in a trace, and what may be asked of them."""

import builtins
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from ep_plugin.conversion.sizes import EXAMPLE, NotKnown, Shape, Size
from ep_plugin.conversion.watch import CHANGES_PARAMETERS, SETS_DATA


class Traced(fx.Proxy):
    """A value in the trace. Without an example only what a loop over it needs is known of it."""

    tracer: Any
    _is_param = _is_buffer = False

    def _shape(self) -> Any:
        return self.node.meta.get("shape")

    @property
    def shape(self) -> Any:
        if isinstance(known := self._shape(), Tensor):
            return known.shape
        self.tracer.sized = True
        return Shape(self.node, self.tracer.length)

    def size(self, dim: int | None = None) -> Any:
        if isinstance(known := self._shape(), Tensor):
            return known.size() if dim is None else known.size(dim)
        self.tracer.sized = True
        length = self.tracer.length
        return Shape(self.node, length) if dim is None else Size.along(self.node, dim, length)

    def dim(self) -> int:
        if isinstance(known := self._shape(), Tensor):
            return known.dim()
        raise NotKnown(f"it asks for the number of axes of a value, which is not known; {EXAMPLE}")

    def numel(self) -> int:
        if isinstance(known := self._shape(), Tensor):
            return known.numel()
        raise NotKnown(f"it asks for the number of a value's entries, which is not known; {EXAMPLE}")

    ndimension, nelement = dim, numel
    ndim = property(lambda self: self.dim())

    def __len__(self) -> int:
        known = self._shape()
        if known is not None:
            return len(known)
        if (steps := _stacked(self.node)) is not None:
            return steps
        self.tracer.sized = True
        return self.tracer.length

    def __bool__(self) -> bool:
        raise NotKnown(
            f"{self._named()} decides what it does, and a converted model does the same for every input; decide "
            "outside, or in a module without neurons"
        )

    def _number(self) -> Any:
        way_out = "compute it outside, or in a module without neurons"
        if self._is_argument():
            name = self.node.target
            way_out = f"give it a default, or a value: net.forward = functools.partial(net.forward, {name}=...)"
        raise NotKnown(f"{self._named()} is used as a number; {way_out}")

    __int__ = __float__ = __index__ = _number

    def _is_argument(self) -> bool:
        return self.node.op == "placeholder" and self.node is not next(iter(self.node.graph.nodes))

    def _named(self) -> str:
        if self._is_argument():
            return f"the argument {self.node.target!r} of forward, which has no value,"
        return "a value that depends on the input"

    # A traced value that is changed in place is another one for all that hold it.
    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_method", "__setitem__", (self, index, value), {})

    @property
    def device(self) -> torch.device:
        return self.tracer.device

    @property
    def dtype(self) -> torch.dtype:
        return known.dtype if isinstance(known := self._shape(), Tensor) else torch.get_default_dtype()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "data":
            of_a_parameter = self.node.op == "get_attr"
            raise NotKnown(CHANGES_PARAMETERS if of_a_parameter else SETS_DATA)
        super().__setattr__(name, value)

    def register_hook(self, hook: Any) -> Any:
        raise NotKnown(
            "it registers a hook on the gradient of a value, and a converted model sends no gradient back through its "
            "values; register it on the parameters instead"
        )

    def __deepcopy__(self, memo: Any) -> Any:
        return self.tracer.create_proxy("call_method", "clone", (self,), {})

    def __copy__(self) -> Any:
        return self

    is_cuda = property(lambda self: self.device.type == "cuda")
    requires_grad = property(lambda self: self.node.op != "placeholder" and torch.is_grad_enabled())


@contextmanager
def as_tensors() -> Iterator[None]:
    """While it lasts `isinstance(x, torch.Tensor)` is true of traced values.

    Python's function is replaced, since a `__class__` of theirs would tell so PyTorch's C code too, which then reads
    them as the tensor that they are not, and crashes.
    """
    plain, tensor = builtins.isinstance, torch.empty(0)

    def as_tensor(value: Any, kind: Any) -> bool:
        return plain(value, kind) or (type(value) is Traced and plain(tensor, kind))

    builtins.isinstance = as_tensor
    try:
        yield
    finally:
        builtins.isinstance = plain


def _stacked(node: fx.Node) -> int | None:
    """How many values a stack has, or what it is unbound to."""
    axis = 0
    if getattr(node.target, "__name__", node.target) == "unbind" and isinstance(node.args[0], fx.Node):
        axis, node = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0), node.args[0]  # type: ignore[assignment]
    if node.target is not torch.stack or not isinstance(node.args[0], (list, tuple)):
        return None
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    return len(node.args[0]) if dim == axis else None
