"""The trace of a forward by `torch.fx`: what `net(x)` calls, as a graph of its modules and functions.

Neurons, and modules without neurons in them, are leaves. Loops are unrolled. Sizes are those of an example, or
unknown ones that a loop may run through. Whatever else only a value can tell is refused here.
"""

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ep_plugin.conversion.mode import Mode
from ep_plugin.conversion.restore import unchanged
from ep_plugin.conversion.returned import Path
from ep_plugin.conversion.sizes import NotKnown
from ep_plugin.conversion.traced import as_tensors
from ep_plugin.conversion.tracer import Root, Tracer
from ep_plugin.conversion.untraceable import untraceable
from ep_plugin.conversion.watch import CHANGES_PARAMETERS, DRAWN

_ONE_THREAD = threading.RLock()


@dataclass
class Trace:
    """A forward as a graph.

    Attributes:
        graph: its nodes.
        root: where its constants are, by their names.
        outputs: what forward returns, with its place in that.
        drawn: names of constants that were drawn at random.
        sized: whether it depends on an unknown size.
        by_mode: whether it asks for the mode (training or evaluation).
        calls: how many times the forward was called, one after the other.
    """

    graph: fx.Graph
    root: nn.Module
    outputs: list[tuple[Path, fx.Node]]
    drawn: set[str]
    sized: bool
    by_mode: bool
    calls: int = 1


def trace(net: nn.Module, example: Tensor | None = None, length: int = 0, calls: int = 1) -> Trace:
    """What `net(x)` computes. The model is left as it was.

    One thread traces at a time: while it does, `torch.fx` and this module replace functions for all of them.

    Args:
        net: any module.
        example: an input, whose sizes are used.
        length: what unknown sizes are, without an example.
        calls: how many times it is called, one after the other; the last one's output counts.

    Raises:
        ValueError: it cannot be traced, with the line and the reason.
    """
    with _ONE_THREAD:
        return _trace(net, example, length, calls)


def _trace(net: nn.Module, example: Tensor | None, length: int, calls: int) -> Trace:
    modules = dict(net.named_modules())
    root = Root(net, calls)
    tracer = Tracer(net, root, modules, example, length)
    draws, of_numpy = random.getstate(), np.random.get_state()
    try:
        with unchanged(net), torch.random.fork_rng(devices=[]), torch.enable_grad():
            for m in modules.values():
                m.__dict__["training"] = Mode(m.training)
            Mode.asked = False
            try:
                with _uncompiled(), as_tensors(), tracer.watch:
                    graph = tracer.trace(root)
            finally:
                tracer.watch.undo()
        if random.getstate() != draws or not _same_state(np.random.get_state(), of_numpy):
            raise NotKnown(f"it depends on {DRAWN}")
        if tracer.watch.changes(list(net.parameters())):
            raise NotKnown(CHANGES_PARAMETERS)
    except (Exception, NotKnown) as error:
        raise ValueError(untraceable(net, error)) from error
    finally:
        random.setstate(draws)
        np.random.set_state(of_numpy)
    nodes = list(next(node for node in graph.nodes if node.op == "output").args[0])
    drawn = {name for t, name in tracer.tensor_attrs.items() if id(t) in tracer.watch.drawn}
    outputs = [(path, node) for (path, _), node in zip(root.returned, nodes, strict=True)]
    return Trace(graph, root, outputs, drawn, tracer.sized, Mode.asked, calls)


def _same_state(one: Any, two: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Compiled functions run as they are written."""
    with ExitStack() as stack:
        if hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch._dynamo.config.patch(error_on_nested_fx_trace=False))
        yield
