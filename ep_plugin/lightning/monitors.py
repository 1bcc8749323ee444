"""Callbacks that look at a convergent network while it trains, and write what they see to the trainer's loggers.

Each looks at every n-th batch of an epoch, before the training step on it, and repeats the part of that step that it
needs: a free phase (`EquilibriumMonitor`, `SpikeMonitor`) or two gradients (`GradientMonitor`). The training is not
affected: parameters' gradients, random generators, running means and modes stay as they were. With several processes
the first one looks at its own images. Networks of fixed events are not looked at before the first step, which gives
their events a weight.
"""

from typing import Any

import lightning as L
from torch import Tensor

from ep_plugin.analysis.agreement import gradient_agreement
from ep_plugin.analysis.diagnosis import activity, settled
from ep_plugin.estimators.implicit_differentiation import ImplicitDifferentiation
from ep_plugin.lightning.batches import pair
from ep_plugin.lightning.module import EPLightningModule, can_infer
from ep_plugin.linear.separate import feedback_angles
from ep_plugin.tensors import outside_autocast
from ep_plugin.unnoticed import evaluating, random_numbers_as_before
from ep_plugin.validation import count


class _Monitor(L.Callback):
    """What all monitors share: when they look, and where they write.

    Attributes:
        latest: what was seen last, by the names that are logged.
    """

    def __init__(self, every_n_batches: int = 50) -> None:
        self.every_n_batches = count("every_n_batches", every_n_batches)
        self.latest: dict[str, float] = {}  # what was seen last

    def measure(self, module: EPLightningModule, x: Tensor, y: Any) -> dict[str, float]:
        """What is logged for a batch; the network is in evaluation mode."""
        raise NotImplementedError

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        name = type(self).__name__
        if not isinstance(pl_module, EPLightningModule):
            raise TypeError(f"{name} was given a {type(pl_module).__name__}; expected an EPLightningModule")
        if not trainer.loggers:
            raise ValueError(f"{name} has no logger to write to; expected Trainer(logger=True), a logger or several")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % self.every_n_batches or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, EPLightningModule)
        if not can_infer(pl_module.model):
            return
        device, as_trained = next(pl_module.parameters()).device, trainer.precision_plugin.forward_context()
        with evaluating(pl_module), random_numbers_as_before(device), as_trained:
            self.latest = self.measure(pl_module, *pair(batch))
        for logger in trainer.loggers:
            logger.log_metrics(self.latest, step=trainer.global_step)


class EquilibriumMonitor(_Monitor):
    """Shows how the free phase ends: is it long enough?

    Logs "equilibrium/residual" (the largest `Equilibrium.residual` of the batch), "equilibrium/steps" and, for a
    relaxation with a tolerance, "equilibrium/converged" (share of the samples).

    Args:
        every_n_batches: 1 or more.

    Raises:
        ValueError: `every_n_batches` is below 1. In fitting: the trainer has no logger.
        TypeError: `every_n_batches` is not a whole number. In fitting: the module is not an `EPLightningModule`.

    Example:
        >>> trainer = L.Trainer(callbacks=[ep.EquilibriumMonitor(every_n_batches=100)])
    """

    def measure(self, module: EPLightningModule, x: Tensor, y: Any) -> dict[str, float]:
        equilibrium = module.model.free_phase(x)
        found = {"residual": equilibrium.residual.max().item(), "steps": float(equilibrium.steps)}
        if equilibrium.converged is not None:
            found["converged"] = equilibrium.converged.float().mean().item()
        return {f"equilibrium/{name}": value for name, value in found.items()}


class SpikeMonitor(_Monitor):
    """Shows how much each layer fires.

    Logs "state/layer l" (mean state, as a share of the largest possible one) and, unless neurons are graded,
    "spikes/layer l" (spikes per neuron and inference).

    Args:
        every_n_batches: 1 or more.

    Raises:
        ValueError: as `EquilibriumMonitor`.
        TypeError: as `EquilibriumMonitor`.

    Example:
        >>> trainer = L.Trainer(callbacks=[ep.SpikeMonitor()])
    """

    def measure(self, module: EPLightningModule, x: Tensor, y: Any) -> dict[str, float]:
        found: dict[str, float] = {}
        for l, layer in enumerate(activity(module.model, x)):
            found[f"state/layer {l}"] = layer.mean
            if layer.spikes is not None:
                found[f"spikes/layer {l}"] = layer.spikes
        return found


# The adjoint iteration does not converge for inputs that do not settle. A low `max_steps` keeps such a look
# cheap; it ends with a warning.
_REFERENCE = ImplicitDifferentiation(tolerance=1e-5, max_steps=200)


class FeedbackMonitor(_Monitor):
    """Shows how far separate feedback weights are from the transposed weights (`convert(feedback_weights="separate")`).

    Logs "feedback_angle/<module>": degrees between the weights up and down; about 90 at the start, 0 where they agree.

    Args:
        every_n_batches: 1 or more.

    Raises:
        ValueError: `every_n_batches` is below 1. In fitting: the trainer has no logger, or the network has no separate
            feedback weights.
        TypeError: `every_n_batches` is not a whole number. In fitting: the module is not an `EPLightningModule`.

    Example:
        >>> trainer = L.Trainer(callbacks=[ep.FeedbackMonitor()])
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if not feedback_angles(pl_module):
            raise ValueError(
                "FeedbackMonitor: the network's feedback has no weights of its own; expected "
                'ep.convert(net, feedback_weights="separate")'
            )

    def measure(self, module: EPLightningModule, x: Tensor, y: Any) -> dict[str, float]:
        return {f"feedback_angle/{name}": angle for name, angle in feedback_angles(module.model).items()}


class GradientMonitor(_Monitor):
    """Shows how well each parameter's gradient agrees with the exact gradient of settled graded neurons.

    Logs "cosine/PARAMETER" and "norm ratio/PARAMETER" of `gradient_agreement` for every parameter that is trained. The
    reference is the same network, with the same feedback, whose graded neurons settle in full. "reference/residual" is
    the largest `Equilibrium.residual` that remains in it. If that is large, the network does not settle, and no
    estimator has a meaningful gradient. One look costs several training steps.

    Args:
        every_n_batches: 1 or more.

    Raises:
        ValueError: as `EquilibriumMonitor`. In fitting: the network's input changes over time.
        TypeError: as `EquilibriumMonitor`.

    Example:
        >>> trainer = L.Trainer(callbacks=[ep.GradientMonitor(every_n_batches=250)])
    """

    def measure(self, module: EPLightningModule, x: Tensor, y: Any) -> dict[str, float]:
        reference = settled(module.model, _REFERENCE)
        with outside_autocast(x):
            found = {"reference/residual": reference.free_phase(x).residual.max().item()}
        for own in gradient_agreement(module.model, x, y, module.loss_of, reference):
            found |= {f"cosine/{own.name}": own.cosine, f"norm ratio/{own.name}": own.norm_ratio}
        return found
