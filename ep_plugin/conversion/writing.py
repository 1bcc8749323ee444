"""Writes in place: tensors that forward fills step by step, and values that it changes."""

from typing import Any

from torch import fx, nn

from ep_plugin.conversion.state import State
from ep_plugin.conversion.values import ZEROS, Filled, Unknown, Value
from ep_plugin.conversion.watch import CHANGES_PARAMETERS, function_name

_VIEWS = frozenset(
    (
        *("getitem", "select", "narrow", "view", "reshape", "permute", "transpose"),
        *("squeeze", "unsqueeze", "flatten", "detach", "getattr"),
    )
)


class Writing(State):
    """Reads what is written."""

    def _written(self, target: Any, index: Any, value: Value) -> Value:
        self._not_a_parameter(target)
        held = self._raw(target)
        if not isinstance(held, Filled):
            constant = self._constant(target)
            if constant is not None:
                held = Filled(held is ZEROS, tuple(constant.shape))
            elif held is ZEROS:
                held = Filled(True, None)
            else:
                return self._poison(target)
            self.values[target] = held
            if target.op == "get_attr":
                self.filled[str(target.target)] = held
        held.write(index, value)
        return Unknown("an assignment")

    def _not_a_parameter(self, target: Any) -> None:
        """Refuses a change of the model's parameters."""
        while target.op != "get_attr" and target.args and isinstance(target.args[0], fx.Node):
            target = target.args[0]
        if isinstance(self._constant(target), nn.Parameter):
            raise ValueError(CHANGES_PARAMETERS)

    def _poison(self, target: Any) -> Value:
        """A value that forward writes parts of, and all that it is a view of."""
        unknown = Unknown(
            "a value that forward writes into; make a new one of it (torch.where, torch.cat)", explained=True
        )
        while isinstance(target, fx.Node) and target.op != "placeholder":
            self.values[target] = unknown
            if function_name(target.target) not in _VIEWS or not target.args:
                return unknown
            target = target.args[0]
        if isinstance(target, fx.Node):
            self.values[target] = unknown
        return unknown

    def _in_place(self, node: fx.Node, value: Value) -> Value:
        """What a function gives that changes its first argument: the argument is that from now on."""
        target = node.args[0] if node.args else None
        if not isinstance(target, fx.Node):
            return value
        self._not_a_parameter(target)
        if target.op == "get_attr":
            self.filled.setdefault(str(target.target), Filled(False, None)).write(..., value)
        elif function_name(target.target) in _VIEWS and not isinstance(self._raw(target.args[0]), Unknown):
            self._poison(target)
        else:
            for other in self.shared.get(target, set()) - {target}:
                self._poison(other)
            self.values[target] = value
        return self._may_share(node, value)

    def _may_share(self, node: fx.Node, value: Value) -> Value:
        """A value that may lie where the first argument does, so that a change of one in place is one of the other."""
        target = node.args[0] if node.args else None
        if isinstance(target, fx.Node):
            group = self.shared.setdefault(target, {target})
            group.add(node)
            self.shared[node] = group
        return value
