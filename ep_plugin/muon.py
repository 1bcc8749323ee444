"""An optimizer that trains deep nets in few epochs: Muon for the weights between neurons, AdamW for all else.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) replaces a gradient by the nearest orthogonal matrix, so
that all directions of a weight learn equally fast. It suits standardized weights, whose size has no effect. The
orthogonal matrices are PyTorch's (`torch.optim.Muon`), which knows two dimensions only. Here a convolution is the
matrix `[out, in * height * width]`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ep_plugin.validation import fraction, not_negative, positive


class MuonAdamW(torch.optim.Optimizer):
    """Muon for weights of two dimensions or more but the last one; AdamW for the last weight, biases and gains.

    The last weight is that of the readout, which Muon trains less well. A dimension of size 1 does not count: the
    thresholds of channels, `[C, 1, 1]`, are no matrix.

    Args:
        params: the parameters of a model, in its order.
        lr: of Muon; above 0. The angle by which a step turns a weight of the size that PyTorch starts with.
        momentum: of Muon, in [0, 1].
        weight_decay: of Muon; 0 or more. It keeps the size of the weights, and so the angle of a step.
        adamw_lr: of AdamW, without weight decay; above 0. A schedule changes both rates alike.

    Raises:
        ValueError: a number is out of its range, or there is no parameter.
        TypeError: a number is none, or a parameter is no tensor.

    Example:
        >>> optimizer = ep.MuonAdamW(model.parameters(), lr=0.1)
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.1,
        momentum: float = 0.6,
        weight_decay: float = 0.05,
        adamw_lr: float = 5e-3,
    ) -> None:
        given = list(params)
        if wrong := next((p for p in given if not isinstance(p, Tensor)), None):
            raise TypeError(f"a parameter is a {type(wrong).__name__}; expected tensors, such as model.parameters()")
        if not given:
            raise ValueError("there is no parameter; expected those of a model, such as model.parameters()")
        weights = [p for p in given if _is_matrix(p)]
        # The readout's, which has one row where the output is one number.
        last = next((p for p in reversed(given) if p.dim() == 2 or any(p is w for w in weights)), None)
        weights = [p for p in weights if p is not last]
        chosen = {id(p) for p in weights}
        rest = [p for p in given if id(p) not in chosen]
        muon: dict[str, Any] = {
            "lr": positive("lr", lr),
            "momentum": fraction("momentum", momentum),
            "weight_decay": not_negative("weight_decay", weight_decay),
        }
        adamw: dict[str, Any] = {"lr": positive("adamw_lr", adamw_lr), "weight_decay": 0.0}
        unused = [nn.Parameter(torch.empty(1, 1))]
        # Groups that are added later take these.
        self._of_muon = _settings(torch.optim.Muon(unused, **muon))
        self._of_adamw = _settings(torch.optim.AdamW(unused, **adamw))
        groups = [{"params": weights}, {"params": rest, **self._of_adamw}]
        super().__init__([group for group in groups if group["params"]], {})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_of_muon": self._of_muon, "_of_adamw": self._of_adamw}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """More parameters to train: Muon for all weights of two dimensions or more, AdamW for the rest.

        Args:
            param_group: "params", and what is to differ from the optimizer's own: "lr", "momentum", "weight_decay".
                They are Muon's. AdamW's rate has the ratio to "lr" that the optimizer's own two rates have. With
                AdamW's "betas", the group is AdamW's alone, and so is its "lr".

        Example:
            >>> optimizer = ep.MuonAdamW(model.readout.parameters())
            >>> optimizer.add_param_group({"params": model.connections.parameters(), "lr": 0.02})
        """
        super().add_param_group({**(self._of_adamw if _is_adamws(param_group) else self._of_muon), **param_group})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            The loss of the closure, if there is one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if _is_adamws(group):
                self._step_adamw(group)
            else:
                self._step_muon({**group, "params": [p for p in group["params"] if _is_matrix(p)]})
                ratio = self._of_adamw["lr"] / self._of_muon["lr"]
                rest = [p for p in group["params"] if not _is_matrix(p)]
                self._step_adamw({**self._of_adamw, "params": rest, "lr": ratio * group["lr"]})
        return loss

    def _step_adamw(self, group: dict[str, Any]) -> None:
        if group["params"]:
            # What is kept of a parameter is this optimizer's own: checkpoints know no other.
            _step(torch.optim.AdamW(group["params"]), group, self.state)

    def _step_muon(self, group: dict[str, Any]) -> None:
        trained = [p for p in group["params"] if p.grad is not None]
        if not trained:
            return
        matrices = [p.detach().flatten(1) for p in trained]
        for p, matrix in zip(trained, matrices, strict=True):
            matrix.grad = p.grad.to(p.dtype).flatten(1)
        state = {matrix: self.state[p] for p, matrix in zip(trained, matrices, strict=True)}
        _step(torch.optim.Muon(matrices), {**group, "params": matrices}, state)
        for p, matrix in zip(trained, matrices, strict=True):
            if matrix.data_ptr() != p.data_ptr():  # what is not contiguous was copied
                p.copy_(matrix.view_as(p))


def _is_matrix(p: Tensor) -> bool:
    return sum(size > 1 for size in p.shape) > 1


def _is_adamws(group: dict[str, Any]) -> bool:
    """Whether AdamW alone steps a group: by what only it has, so that no mark is needed in checkpoints."""
    return "betas" in group


def _settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}


def _step(optimizer: torch.optim.Optimizer, group: dict[str, Any], state: Any) -> None:
    """A step of PyTorch's with the settings of a group, and with what is kept of its parameters."""
    optimizer.param_groups, optimizer.state = [group], state
    optimizer.step()
