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
        weights = [p for p in given if sum(size > 1 for size in p.shape) > 1]
        # The readout's, which has one row where the output is one number.
        last = next((p for p in reversed(given) if p.dim() == 2 or any(p is w for w in weights)), None)
        weights = [p for p in weights if p is not last]
        chosen = {id(p) for p in weights}
        rest = [p for p in given if id(p) not in chosen]
        options: dict[str, Any] = {
            "lr": positive("lr", lr),
            "momentum": fraction("momentum", momentum),
            "weight_decay": not_negative("weight_decay", weight_decay),
        }
        self._matrices = {p: nn.Parameter(torch.empty(1, 1)) for p in weights}
        self._muon = torch.optim.Muon([*self._matrices.values(), nn.Parameter(torch.empty(1, 1))], **options)
        self._adamw = torch.optim.AdamW(rest, positive("adamw_lr", adamw_lr), weight_decay=0.0)
        muon, adamw = ({k: v for k, v in o.param_groups[0].items() if k != "params"} for o in (self._muon, self._adamw))
        groups = [{"params": weights, **muon}, {"params": rest, **adamw}]
        super().__init__([group for group in groups if group["params"]], {})

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
        *first, rest = self.param_groups
        for group in first:
            self._step_matrices(group)
        # What is kept of a parameter, and the rates, are this optimizer's own: checkpoints and schedules know no other.
        self._adamw.param_groups, self._adamw.state = [rest], self.state
        self._adamw.step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        trained = [p for p in group["params"] if p.grad is not None]
        for p in trained:
            matrix = self._matrices[p]
            matrix.data, matrix.grad = p.data.flatten(1), p.grad.to(p.dtype).flatten(1)
            self._muon.state[matrix] = self.state[p]
        self._muon.param_groups = [{**group, "params": [self._matrices[p] for p in trained]}]
        self._muon.step()
        for p in trained:
            matrix = self._matrices[p]
            if matrix.data_ptr() != p.data_ptr():  # what is not contiguous was copied
                p.copy_(matrix.view_as(p))
            matrix.grad = None
