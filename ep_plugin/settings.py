"""How a convergent network infers and learns: everything but its modules."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ep_plugin.dynamics.encoders import as_encoder
from ep_plugin.dynamics.relaxation import OBSERVED, Observed, Relaxation
from ep_plugin.estimators.equilibrium_propagation import EquilibriumPropagation
from ep_plugin.estimators.estimator import GradientEstimator
from ep_plugin.validation import chosen, fraction, plain_numbers

# Feedback where none is asked for. Trained weights make loops grow: 2C2FC after 15 epochs of FashionMNIST has no
# gradient left at .05, and all of it at .02.
FEEDBACK = 0.02


@dataclass(frozen=True)
class Settings:
    """Checked once, here. The fields are explained in `ConvergentNetwork`."""

    encoder: Any = "adaptive_delta"
    observe: Observed = "trace"
    feedback: float | Sequence[float] | None = None
    relaxation: Relaxation = field(default_factory=Relaxation)
    estimator: GradientEstimator = field(default_factory=EquilibriumPropagation)
    time_varying: bool = False
    time_axis: int = 0

    def __post_init__(self) -> None:
        plain_numbers(self)
        object.__setattr__(self, "encoder", as_encoder(self.encoder))
        chosen("observe", self.observe, OBSERVED)
        feedback = FEEDBACK if self.feedback is None else self.feedback
        if isinstance(feedback, Sequence):
            feedback = tuple(fraction("feedback", g) for g in feedback)
        else:
            fraction("feedback", feedback)
        object.__setattr__(self, "feedback", feedback)
        if not isinstance(self.relaxation, Relaxation):
            raise TypeError(f"relaxation is {self.relaxation!r}; expected Relaxation(steps=...)")
        if isinstance(self.estimator, type) or not hasattr(self.estimator, "solve"):
            raise TypeError(
                f"estimator is {self.estimator!r}; expected EquilibriumPropagation(), FullPhaseEP(), "
                "BackpropThroughTime() or ImplicitDifferentiation()"
            )
        if not isinstance(self.time_varying, bool):
            raise TypeError(f"time_varying is {self.time_varying!r}; expected True or False")
        if isinstance(self.time_axis, bool) or not isinstance(self.time_axis, int):
            raise TypeError(f"time_axis is {self.time_axis!r}; expected a whole number")

    def between(self, steps: int) -> tuple[float, ...]:
        """The feedback of each step between levels, from the lowest.

        Raises:
            ValueError: there are more or fewer values than steps.
        """
        if not isinstance(self.feedback, tuple):
            assert isinstance(self.feedback, float | int)
            return (float(self.feedback),) * steps
        if len(self.feedback) != steps:
            raise ValueError(
                f"feedback has {len(self.feedback)} values; expected one number, or {steps}: one for each step between "
                f"the network's {steps + 1} levels, from the lowest"
            )
        return self.feedback

    def owner_of(self, name: str) -> str | None:
        """Which of the settings has a field of that name: "estimator" of "beta"."""
        parts = ("estimator", "relaxation", "encoder")
        return next((p for p in parts if name in getattr(type(getattr(self, p)), "__dataclass_fields__", ())), None)

    def changed(self, changes: Mapping[str, Any]) -> "Settings":
        """The same with some others.

        Raises:
            TypeError: one of them is no setting of a network.
        """
        for name in changes:
            if name not in (known := self.__dataclass_fields__):
                raise TypeError(f"a network has no setting {name!r}; {_FIXED.get(name, _one_of(known))}")
        return replace(self, **changes)

    def plain(self) -> dict[str, Any]:
        """As plain data, for checkpoints and records: all that inference depends on, whatever the input's layout."""
        feedback = list(self.feedback) if isinstance(self.feedback, tuple) else self.feedback
        return {
            "encoder": repr(self.encoder),
            "observe": self.observe,
            "feedback": feedback,
            "relaxation": repr(self.relaxation),
            "estimator": repr(self.estimator),
            "time_varying": self.time_varying,
        }


def _one_of(known: Iterable[str]) -> str:
    return f"expected one of {', '.join(known)}"


def refuse_fixed(name: str) -> None:
    """Refuses what was settled when the network was made.

    Raises:
        AttributeError: with the way to another one.
    """
    if name in _FIXED:
        raise AttributeError(f"a network has no setting {name!r}; {_FIXED[name]}")


_AGAIN = "it counts when a net is converted: ep.convert(net, {}=...)"
_FIXED = {name: _AGAIN.format(name) for name in ("feedback_weights", "learnable_leak", "max_pooling")}
_FIXED["activation"] = "each layer has its own: model.layers[i].activation = ..."


def setting(name: str) -> Any:
    """An attribute of a network that is one of its settings, checked when it is set."""

    def get(network: Any) -> Any:
        return getattr(network.settings, name)

    def put(network: Any, value: Any) -> None:
        network._configure(replace(network.settings, **{name: value}))

    return property(get, put)
