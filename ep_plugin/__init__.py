"""Equilibrium propagation for snnTorch and Norse models.

The public names, loaded when they are first used: importing the package costs little more than
importing PyTorch, and Lightning, snnTorch, matplotlib and the data packages are imported only by
who needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ep_plugin.extras import installed as _installed
from ep_plugin.extras import needed_by as _needed_by

if TYPE_CHECKING:  # the same names, for type checkers and editors; a test compares the two lists
    from ep_plugin.analysis.agreement import Agreement as Agreement
    from ep_plugin.analysis.agreement import gradient_agreement as gradient_agreement
    from ep_plugin.analysis.energy import EnergyCosts as EnergyCosts
    from ep_plugin.analysis.operation_counts import OperationCounts as OperationCounts
    from ep_plugin.analysis.operation_counts import Operations as Operations
    from ep_plugin.analysis.operations import count_operations as count_operations
    from ep_plugin.comparison import ComparisonSettings as ComparisonSettings
    from ep_plugin.comparison import compare as compare
    from ep_plugin.conversion import ConversionWarning as ConversionWarning
    from ep_plugin.conversion import convert as convert
    from ep_plugin.conversion.adapters.registered import register_neuron as register_neuron
    from ep_plugin.deployment import to_norse as to_norse
    from ep_plugin.deployment import to_snntorch as to_snntorch
    from ep_plugin.dynamics.activations import Activation as Activation
    from ep_plugin.dynamics.deviations import Deviations as Deviations
    from ep_plugin.dynamics.encoders.adaptive_delta import AdaptiveDelta as AdaptiveDelta
    from ep_plugin.dynamics.encoders.binary import Bernoulli as Bernoulli
    from ep_plugin.dynamics.encoders.binary import PredictiveSigmaDelta as PredictiveSigmaDelta
    from ep_plugin.dynamics.encoders.binary import SigmaDelta as SigmaDelta
    from ep_plugin.dynamics.encoders.graded import Graded as Graded
    from ep_plugin.dynamics.layer import Layer as Layer
    from ep_plugin.dynamics.relaxation import Equilibrium as Equilibrium
    from ep_plugin.dynamics.relaxation import Relaxation as Relaxation
    from ep_plugin.dynamics.relaxation import Trajectory as Trajectory
    from ep_plugin.estimators.backprop_through_time import BackpropThroughTime as BackpropThroughTime
    from ep_plugin.estimators.equilibrium_propagation import EquilibriumPropagation as EquilibriumPropagation
    from ep_plugin.estimators.full_phases import FullPhaseEP as FullPhaseEP
    from ep_plugin.estimators.implicit_differentiation import ImplicitDifferentiation as ImplicitDifferentiation
    from ep_plugin.initialization import initialize_ as initialize_
    from ep_plugin.lightning.bptt_module import BPTTLightningModule as BPTTLightningModule
    from ep_plugin.lightning.callbacks import FewStepsFirst as FewStepsFirst
    from ep_plugin.lightning.callbacks import RecordErrors as RecordErrors
    from ep_plugin.lightning.data import CIFAR10DataModule as CIFAR10DataModule
    from ep_plugin.lightning.data import DigitsDataModule as DigitsDataModule
    from ep_plugin.lightning.data import EventDataModule as EventDataModule
    from ep_plugin.lightning.data import FashionMNISTDataModule as FashionMNISTDataModule
    from ep_plugin.lightning.data import ImageFolderDataModule as ImageFolderDataModule
    from ep_plugin.lightning.data import MNISTDataModule as MNISTDataModule
    from ep_plugin.lightning.data import SaccadeMNISTDataModule as SaccadeMNISTDataModule
    from ep_plugin.lightning.health import HealthMonitor as HealthMonitor
    from ep_plugin.lightning.module import EPLightningModule as EPLightningModule
    from ep_plugin.lightning.monitors import EquilibriumMonitor as EquilibriumMonitor
    from ep_plugin.lightning.monitors import FeedbackMonitor as FeedbackMonitor
    from ep_plugin.lightning.monitors import GradientMonitor as GradientMonitor
    from ep_plugin.lightning.monitors import SpikeMonitor as SpikeMonitor
    from ep_plugin.lightning.operations import OperationsMonitor as OperationsMonitor
    from ep_plugin.linear.base import LinearMap as LinearMap
    from ep_plugin.linear.base import register_linear as register_linear
    from ep_plugin.linear.connection import Connection as Connection
    from ep_plugin.muon import MuonAdamW as MuonAdamW
    from ep_plugin.network import ConvergentNetwork as ConvergentNetwork
    from ep_plugin.neurons.norse import ConvergentLIFBoxCell as ConvergentLIFBoxCell
    from ep_plugin.neurons.snntorch import ConvergentLeaky as ConvergentLeaky
    from ep_plugin.nir.reading import from_nir as from_nir
    from ep_plugin.nir.writing import to_nir as to_nir
    from ep_plugin.profiling import profile as profile
    from ep_plugin.trained import pretrained as pretrained

__version__ = "0.2.0"

_HOMES = {
    "analysis.agreement": ("Agreement", "gradient_agreement"),
    "analysis.energy": ("EnergyCosts",),
    "analysis.operation_counts": ("OperationCounts", "Operations"),
    "analysis.operations": ("count_operations",),
    "comparison": ("ComparisonSettings", "compare"),
    "conversion": ("ConversionWarning", "convert"),
    "conversion.adapters.registered": ("register_neuron",),
    "deployment": ("to_norse", "to_snntorch"),
    "dynamics.activations": ("Activation",),
    "dynamics.deviations": ("Deviations",),
    "dynamics.encoders.adaptive_delta": ("AdaptiveDelta",),
    "dynamics.encoders.binary": ("Bernoulli", "PredictiveSigmaDelta", "SigmaDelta"),
    "dynamics.encoders.graded": ("Graded",),
    "dynamics.layer": ("Layer",),
    "dynamics.relaxation": ("Equilibrium", "Relaxation", "Trajectory"),
    "estimators.backprop_through_time": ("BackpropThroughTime",),
    "estimators.equilibrium_propagation": ("EquilibriumPropagation",),
    "estimators.full_phases": ("FullPhaseEP",),
    "estimators.implicit_differentiation": ("ImplicitDifferentiation",),
    "initialization": ("initialize_",),
    "lightning.bptt_module": ("BPTTLightningModule",),
    "lightning.callbacks": ("FewStepsFirst", "RecordErrors"),
    "lightning.data": (
        "CIFAR10DataModule",
        "DigitsDataModule",
        "EventDataModule",
        "FashionMNISTDataModule",
        "ImageFolderDataModule",
        "MNISTDataModule",
        "SaccadeMNISTDataModule",
    ),
    "lightning.health": ("HealthMonitor",),
    "lightning.module": ("EPLightningModule",),
    "lightning.monitors": ("EquilibriumMonitor", "FeedbackMonitor", "GradientMonitor", "SpikeMonitor"),
    "lightning.operations": ("OperationsMonitor",),
    "linear.base": ("LinearMap", "register_linear"),
    "linear.connection": ("Connection",),
    "muon": ("MuonAdamW",),
    "network": ("ConvergentNetwork",),
    "neurons.norse": ("ConvergentLIFBoxCell",),
    "neurons.snntorch": ("ConvergentLeaky",),
    "nir.reading": ("from_nir",),
    "nir.writing": ("to_nir",),
    "profiling": ("profile",),
    "trained": ("pretrained",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
_SUBMODULES = (
    "analysis",
    "chips",
    "comparison",
    "conversion",
    "deployment",
    "dynamics",
    "estimators",
    "lightning",
    "linear",
    "models",
    "neurons",
    "nir",
    "plots",
)

_NEEDS = {"neurons.norse": "norse", "nir": "nir", "nir.reading": "nir", "nir.writing": "nir"}


def _usable(home: str) -> bool:
    return home not in _NEEDS or _installed(_NEEDS[home])


_PRESENT = [name for name, home in _HOME.items() if _usable(home)]

__all__ = sorted(_PRESENT)  # `import *` must not ask for an optional package that is not there


def __getattr__(name: str) -> object:
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _needed_by(f"ep_plugin.{name}"):
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PRESENT, *filter(_usable, _SUBMODULES)})
