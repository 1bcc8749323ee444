"""Shapes of what a traced forward computes, from those of an example: its functions and modules, run without values."""

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn


class Shapes:
    """Runs nodes of a trace on the `meta` device. What cannot be run has no known shape.

    Args:
        root: where constants are found by their names.
        modules: the model's, by their names.
    """

    def __init__(self, root: nn.Module, modules: dict[str, nn.Module]) -> None:
        self.root, self.modules = root, modules
        self.copies: dict[str, nn.Module] = {}

    @torch.no_grad()
    def of(self, node: fx.Node) -> Any:
        """A tensor on `meta`, or a tuple of them; None if not known."""
        try:
            if node.op == "get_attr":
                value: Any = self.root
                for part in str(node.target).split("."):
                    value = getattr(value, part)
                return value.detach().to("meta")
            args, kwargs = fx.map_arg((node.args, node.kwargs), _known)
            with torch._C.DisableTorchFunction():
                if node.op == "call_module":
                    return self._module(str(node.target))(*args, **kwargs)
                if node.op == "call_method":
                    return getattr(args[0], str(node.target))(*args[1:], **kwargs)
                if node.target is operator.getitem or node.op == "call_function":
                    return node.target(*args, **kwargs)  # type: ignore[operator]
        except Exception:
            return None
        return None

    def _module(self, name: str) -> Any:
        """A copy of a module without values, whose own `forward` can be run without tracing it."""
        if name not in self.copies:
            module = self.modules[name]
            tensors = {*module.parameters(), *module.buffers()}
            memo: dict[int, Any] = {}
            for m in module.modules():
                tensors |= {v for v in vars(m).values() if isinstance(v, Tensor)}
            for t in tensors:
                empty = t.detach().to("meta")
                memo[id(t)] = nn.Parameter(empty, False) if isinstance(t, nn.Parameter) else empty
            made = copy.deepcopy(module, memo)
            for m in made.modules():
                m.__dict__["training"] = False
                for hooks in (m._forward_hooks, m._forward_pre_hooks):
                    hooks.clear()
            self.copies[name] = made
        return self.copies[name].forward


def _known(node: fx.Node) -> Any:
    if node.meta.get("shape") is None:
        raise LookupError(node)
    return node.meta["shape"]


def axes_of(node: fx.Node) -> int | None:
    """How many axes a node's value has, if that is known."""
    shape = node.meta.get("shape")
    return shape.dim() if isinstance(shape, Tensor) else None
