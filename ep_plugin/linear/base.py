"""What every map between neurons can do, and the registry from a module to its map.

Signals go up through A(x) = K x + b and down through the adjoint K^T. A map's tensors (weights,
masks, winners of a pooling) are handed in at every call, so nothing here has a state.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Tensors = tuple[Tensor, ...]


class LinearMap:
    """An affine map A(x) = K x + b whose tensors are given at every call. Shapes are batch first.

    A subclass needs `tensors` and `affine`. `linear`, `adjoint` and `pullback` follow from them, by autograd; override
    them where PyTorch has a faster way.

    Attributes:
        is_linear: False for a map that is affine only near a state (max pooling). `at` then returns the tensors of the
            affine map near that state.

    Example:
        >>> class Scale(nn.Module):
        ...     def __init__(self, size):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.ones(size))
        ...
        ...     def forward(self, x):
        ...         return self.weight * x
        >>> class ScaleMap(ep.LinearMap):
        ...     def __init__(self, module):
        ...         self.module = module
        ...
        ...     def tensors(self):
        ...         return (self.module.weight,)
        ...
        ...     def affine(self, tensors, x):
        ...         return tensors[0] * x
        >>> ep.register_linear(Scale, ScaleMap)
    """

    is_linear = True

    def tensors(self) -> Tensors:
        """The effective weights.

        Returns:
            The tensors of the map, on the autograd graph of the parameters that they are computed from.
        """
        return ()

    def drawn(self, shape: Sequence[int], like: Tensor) -> Tensors:
        """The tensors of one forward pass. Dropout draws its mask here.

        Args:
            shape: of an input, without the batch.
            like: a tensor with the dtype and device of the pass.

        Returns:
            The tensors; by default those of `tensors()`.
        """
        return self.tensors()

    def prepared(self, tensors: Tensors, shape: Sequence[int], dtype: torch.dtype) -> Tensors:
        """The tensors in the form that makes many calls fast.

        Args:
            tensors: of this map.
            shape: of an input, without the batch.
            dtype: of the products.

        Returns:
            The tensors in `dtype`, laid out for an input of `shape`.
        """
        return tuple(t.to(dtype) for t in tensors)

    def affine(self, tensors: Tensors, x: Tensor) -> Tensor:
        """The map itself.

        Args:
            tensors: of this map.
            x: the input, `[B, ...]`.

        Returns:
            A(x) = K x + b.
        """
        raise NotImplementedError

    def linear(self, tensors: Tensors, x: Tensor) -> Tensor:
        """The map without its offset.

        Args:
            tensors: of this map.
            x: the input, `[B, ...]`.

        Returns:
            K x.
        """
        return self.affine(tensors, x) - self.affine(tensors, torch.zeros_like(x[:1]))

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        """The transposed map, through which feedback goes down.

        Args:
            tensors: of this map.
            y: what goes down, in the shape of the map's output.
            shape: of an input, without the batch.

        Returns:
            K^T y.
        """
        return back(lambda x, *own: self.affine(own, x), y, shape, tensors)

    def pullback(self, tensors: Tensors, x: Tensor, y: Tensor, offset: bool = True) -> list[Tensor | None]:
        """The gradient of <y, A(x)> with respect to each of the tensors.

        Args:
            tensors: of this map.
            x: the input, `[B, ...]`.
            y: in the shape of the map's output.
            offset: False gives the gradient of <y, K x>, which leaves out b.

        Returns:
            One gradient per tensor; None for a tensor that has none.
        """
        if not any(t.is_floating_point() for t in tensors):
            return [None] * len(tensors)
        with recording():
            x, y, *leaves = (plain(t) for t in (x, y, *tensors))
            for t in leaves:
                t.requires_grad_(t.is_floating_point())
            own = tuple(leaves)
            product = (y * (self.affine(own, x) if offset else self.linear(own, x))).sum()
            wanted = [t for t in leaves if t.requires_grad]
            if not product.requires_grad:  # none of them is used
                return [None] * len(tensors)
            found = iter(torch.autograd.grad(product, wanted, allow_unused=True))
        return [next(found) if t.requires_grad else None for t in leaves]

    def absorb(self, following: "LinearMap") -> "LinearMap | None":
        """One map for this one and the next, if there is such a map.

        Args:
            following: the map that is applied after this one.

        Returns:
            A map that does both in turn; None if there is none.
        """
        return None

    def at(self, tensors: Tensors, x: Tensor) -> Tensors:
        """The affine map near an input. A linear map is the same near every input.

        Args:
            tensors: of this map.
            x: the input, `[B, ...]`.

        Returns:
            The tensors of that affine map, each with the batch first; a linear map returns `tensors`.
        """
        return tensors


class Differentiated(LinearMap):
    """A linear module without a map of its own, differentiated by PyTorch: in float32 at least."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.names = [name for name, _ in module.named_parameters()]
        self.is_familiar = type(module).__module__.startswith(("torch.", "ep_plugin."))

    def tensors(self) -> Tensors:
        return tuple(self.module.parameters())

    def prepared(self, tensors: Tensors, shape: Sequence[int], dtype: torch.dtype) -> Tensors:
        return tensors

    def affine(self, tensors: Tensors, x: Tensor) -> Tensor:
        return self._call(tensors, at_least_float32(x)).to(x.dtype)

    def adjoint(self, tensors: Tensors, y: Tensor, shape: Sequence[int]) -> Tensor:
        wide = at_least_float32(y)
        return back(lambda x, *own: self._call(own, x), wide, shape, tensors).to(y.dtype)

    def _call(self, tensors: Tensors, x: Tensor) -> Tensor:
        x = x if self.is_familiar else x.clone()  # somebody's module may write into its input, which is a state
        own = dict(zip(self.names, map(at_least_float32, tensors), strict=True))
        half = {name: b.float() for name, b in self.module.named_buffers() if b.dtype in _HALF}
        return functional_call(self.module, own | half, (x,))


REGISTRY: dict[type[nn.Module], Callable[..., LinearMap]] = {}
"""Module type -> its map."""


def register_linear(module_type: type[nn.Module], map_type: Callable[..., LinearMap] = Differentiated) -> None:
    """Allows modules of a type between neurons.

    Args:
        module_type: its `forward` must be affine in its one input, `[B, ...] -> [B, ...]`, the same for every sample,
            and must not change from call to call. Subclasses must be registered separately.
        map_type: makes a `LinearMap` of a module. By default PyTorch differentiates the module.

    Raises:
        TypeError: `module_type` is not a subclass of `nn.Module`.

    Example:
        >>> class Flip(nn.Module):
        ...     def forward(self, x):
        ...         return x.flip(-1)
        >>> ep.register_linear(Flip)
        >>> model = ep.convert(nn.Sequential(nn.Linear(4, 3), snn.Leaky(0.9), Flip(), nn.Linear(3, 3), snn.Leaky(0.9)))
    """
    if not (isinstance(module_type, type) and issubclass(module_type, nn.Module)):
        raise TypeError(f"register_linear was given {module_type!r}; expected a subclass of nn.Module")
    REGISTRY[module_type] = map_type


def register_all(module_types: Iterable[type[nn.Module]], map_type: Callable[..., LinearMap] = Differentiated) -> None:
    """`register_linear` for several types."""
    for module_type in module_types:
        register_linear(module_type, map_type)


def back(function: Callable[..., Tensor], y: Tensor, shape: Sequence[int], tensors: Tensors) -> Tensor:
    """What autograd sends back through `function(x, *tensors)`, for an x of `shape`: for any function that
    autograd knows, old ones of `torch.autograd.Function` too, and in inference mode."""
    follows = torch.is_grad_enabled() and (y.requires_grad or any(t.requires_grad for t in tensors))
    if not follows:
        y, tensors = plain(y), tuple(plain(t) for t in tensors)
    with recording():
        at = torch.zeros(len(y), *shape, dtype=y.dtype, device=y.device, requires_grad=True)
        value = function(at.clone(), *tensors)  # some modules write into their input, and into no leaf
        if not value.requires_grad:  # it does not depend on its input
            return torch.zeros_like(at)
        (found,) = torch.autograd.grad(value, at, y, create_graph=follows, materialize_grads=True)
    return found if follows else found.detach()


OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def settings_of(module: nn.Module) -> list[Any]:
    """What a module is besides the values of its tensors: its type, attributes and parameters.

    They are compared by identity (`same_objects`), which asks nothing of them and is quick.
    """
    own = vars(module)
    found: list[Any] = [type(module), *(own[name] for name in own if name not in OF_EVERY_MODULE)]
    for name, parameter in module._parameters.items():
        found += (name, parameter)
    return found


def linear_copy(module: nn.Module) -> Any:
    """A second one of a module of PyTorch's, without its offset; parameters, hooks and all else are shared.

    It follows what is set in the first one (`follow`).
    """
    made: Any = nn.Module.__new__(nn.Module)  # copy.copy does not take parametrized ones
    vars(made)["copied_from"] = (module,)  # a tuple, so that it is no submodule
    follow(made)
    return made


def follow(made: Any) -> None:
    """Makes a `linear_copy` anew, after the module that it is a copy of; what is none stays as it is.

    Raises:
        ValueError: the module has an offset that cannot be left out.
    """
    (module,) = vars(made).get("copied_from", (None,))
    if module is None:
        return
    made.__class__ = type(module)
    vars(made).clear()  # of what the module no longer has
    vars(made).update({"copied_from": (module,), **vars(module)})
    if hasattr(module, "value"):  # of a padding
        made.value = 0.0
    elif getattr(module, "bias", None) is not None:
        if "bias" not in module._parameters:
            raise ValueError(
                f"the bias of a {type(module).__name__} that follows a sum between neurons is parametrized, so that it "
                "cannot be left out of the sum's other parts; parametrize the weight alone, or convert the model again"
            )
        made._parameters = {**module._parameters, "bias": None}


def is_hooked(module: nn.Module) -> bool:
    """Whether more than its type's forward counts when it is called (old weight_norm and pruning write the weight in
    a hook)."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or "forward" in vars(module)


def is_hooked_backward(module: nn.Module) -> bool:
    """Whether something is to be done to the gradient that passes through it."""
    return bool(module._backward_hooks or module._backward_pre_hooks)


def same_objects(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(one) == len(other) and all(map(is_, one, other))


@contextmanager
def recording() -> Iterator[None]:
    """Autograd at work, in inference mode too (where `torch.func.vjp` of some versions is silently zero)."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def plain(t: Tensor) -> Tensor:
    """The values without a graph, as autograd takes them: it does not take tensors made in inference mode."""
    return t.clone() if t.is_inference() else t.detach()


_HALF = (torch.float16, torch.bfloat16)


def at_least_float32(t: Tensor) -> Tensor:
    return t.float() if t.dtype in _HALF else t


def laid_out(t: Tensor) -> Tensor:
    """Channels last, where that pays: on a CPU convolutions are faster so, and their adjoints up to
    nine times (5x5 kernels, pooled, batch 64). Elsewhere PyTorch's own choice is kept."""
    if t.dim() == 4 and t.device.type in ("cpu", "meta"):
        return t.contiguous(memory_format=torch.channels_last)
    return t


def as_tuple(value: object, length: int) -> tuple[int, ...]:
    """A size as PyTorch's modules take it (a number, or one a dimension), one a dimension."""
    if isinstance(value, int):
        return (value,) * length
    value = tuple(value)  # type: ignore[arg-type]
    return value * length if len(value) < length else value
