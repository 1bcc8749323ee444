"""The training module of snnTorch's backpropagation through time, to compare with."""

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from ep_plugin.lightning import spike_losses
from ep_plugin.lightning.losses import Loss
from ep_plugin.lightning.task import Optimizer, Task
from ep_plugin.own_loop import neuron_calls
from ep_plugin.validation import count


class BPTTLightningModule(Task):
    """Trains an unchanged snnTorch model by surrogate-gradient backpropagation through time.

    The same input is shown at every step; an input that changes over time is shown frame by frame. The output is the
    mean over time of what the last module returns (spikes, or a final linear module's value).

    Args:
        net: a model whose neurons hold their state (`init_hidden=True`).
        num_steps: time steps, 1 or more.
        loss: as in `EPLightningModule`.
        lr: as in `EPLightningModule`.
        optimizer: as in `EPLightningModule`.
        schedule: as in `EPLightningModule`.
        population: as in `EPLightningModule`.
        time_varying: inputs are `[T, B, ...]`; each frame is shown for `num_steps / T` steps.

    Raises:
        ValueError: a setting is out of its range, or a neuron lacks `init_hidden=True`. In a step: `num_steps` is not a
            multiple of the number of frames.
        TypeError: `num_steps` is not a whole number, or `optimizer` is no function.

    Example:
        >>> task = ep.BPTTLightningModule(net, num_steps=25)
    """

    def __init__(
        self,
        net: nn.Module,
        num_steps: int = 25,
        loss: str | Loss = "cross_entropy",
        lr: float = 1e-3,
        optimizer: Optimizer | None = None,
        schedule: str = "constant",
        population: int | None = None,
        time_varying: bool = False,
    ) -> None:
        super().__init__(loss, lr, optimizer, schedule, population)
        self.net, self.num_steps, self.time_varying = net, count("num_steps", num_steps), time_varying
        for parameter in net.parameters():
            if parameter.dim() == 4:  # the faster layout for convolutions; `contiguous` would skip one input channel
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
        self.neurons = [m for m in net.modules() if isinstance(m, snn.SpikingNeuron)]
        for neuron in self.neurons:
            if not neuron.init_hidden:
                raise ValueError(f"a {type(neuron).__name__} neuron does not hold its state; expected init_hidden=True")
        self._loop_looked_for = self.num_steps == 1

    def forward(self, x: Tensor) -> Tensor:
        return self.outcome(x)[1]

    def outcome(self, x: Tensor) -> tuple[Any, Any, dict[str, Tensor]]:
        self._rest()
        counts: list[Tensor] = []
        sizes: dict[int, int] = {}

        def see(neuron: nn.Module, _: Any, spikes: Tensor | tuple[Tensor, Tensor]) -> None:
            spikes = spikes[0] if isinstance(spikes, tuple) else spikes
            counts.append(spikes.detach().sum() / len(spikes))
            sizes[id(neuron)] = spikes[0].numel()

        with ExitStack() as hooks:
            if not self.training:  # counting would slow the training down
                for neuron in self.neurons:
                    hooks.callback(neuron.register_forward_hook(see).remove)
            first, *others = self._shown(x)
            outputs = [self._first(first), *(self.net(shown) for shown in others)]
        self._rest()  # no state, and no graph, outlives the batch
        record = torch.stack([o[0] if isinstance(o, tuple) else o for o in outputs])
        mean = record.mean(0)
        seen = mean
        if spike_losses.wants_time(self.loss):
            spike_losses.require_classes(self.loss, mean)
            seen = record
        if not counts:
            return seen, mean, {}
        spikes = torch.stack(counts).sum()
        return seen, mean, {"spikes": spikes, "spikes_per_neuron": spikes / sum(sizes.values())}

    def _first(self, x: Tensor) -> Any:
        """The net's first step ever; warns where that is a loop over time already."""
        if self._loop_looked_for:
            return self.net(x)
        self._loop_looked_for = True
        with neuron_calls(self.neurons) as own_steps:
            output = self.net(x)
        if steps := own_steps():
            warnings.warn(
                f"the net runs each of its neurons {steps} times in one call, and num_steps={self.num_steps} calls "
                f"it {self.num_steps} times: {steps * self.num_steps} steps in all. If its forward has a loop over "
                "time, take the loop out, or give num_steps=1",
                stacklevel=2,
            )
        return output

    def _shown(self, x: Tensor) -> Sequence[Tensor]:
        """The input of every step."""
        if not self.time_varying:
            return [x] * self.num_steps
        if x.dim() < 2 or len(x) == 0 or self.num_steps % len(x):
            raise ValueError(
                f"num_steps is {self.num_steps}, and the input has the shape {list(x.shape)}: [frames, batch, ...]; "
                "expected one or more steps for each frame, such as num_steps=frames"
            )
        return [frame for frame in x for _ in range(self.num_steps // len(x))]

    def _rest(self) -> None:
        # snntorch.utils.reset would reset every neuron in the process; these are this net's own.
        for neuron in self.neurons:
            neuron.reset_mem()
            neuron.mem = neuron.mem.new_zeros(0)
