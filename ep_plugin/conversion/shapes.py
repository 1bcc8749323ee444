"""Shapes of what a traced forward computes, from those of an example: its functions and modules, run without values."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn


class Shapes:
    """Runs nodes of a trace on the `meta` device. What cannot be run has no known shape.

    Args:
        root: where constants are found by their names.
        modules: the model's, by their names.

    Attributes:
        running: whether modules are called for their shapes now, and not traced.
    """

    def __init__(self, root: nn.Module, modules: dict[str, nn.Module]) -> None:
        self.root, self.modules = root, modules
        self.copies: dict[str, nn.Module] = {}
        self.running = False

    @torch.no_grad()
    def of(self, node: fx.Node) -> Any:
        """A tensor on `meta`, or a tuple of them; None if not known."""
        before, self.running = self.running, True
        try:
            return self._of(node)
        except Exception:
            return None
        finally:
            self.running = before

    def _of(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return held(self.root, str(node.target)).detach().to("meta")
        args, kwargs = fx.map_arg((node.args, node.kwargs), _known)
        if node.op == "call_module":
            return self._module(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

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


def held(root: nn.Module, target: str) -> Any:
    """A tensor by its name, while modules are traced: `getattr` would be traced too."""
    *path, name = target.split(".")
    owner: Any = root
    for part in path:
        owner = owner._modules[part]
    return next(found[name] for found in (owner._parameters, owner._buffers, vars(owner)) if name in found)


def _known(node: fx.Node) -> Any:
    if node.meta.get("shape") is None:
        raise LookupError(node)
    return node.meta["shape"]


def axes_of(node: fx.Node) -> int | None:
    """How many axes a node's value has, if that is known."""
    shape = node.meta.get("shape")
    return shape.dim() if isinstance(shape, Tensor) else None
