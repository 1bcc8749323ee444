"""Equilibrium propagation for snnTorch and Norse models.

The public names, loaded when they are first used: importing the package costs little more than
importing PyTorch, and Lightning, snnTorch, matplotlib and the data packages are imported only by
who needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from ep_plugin.comparison import compare as compare
    from ep_plugin.connections import Connection as Connection
    from ep_plugin.conversion import convert as convert
    from ep_plugin.encoders import Bernoulli as Bernoulli
    from ep_plugin.encoders import Graded as Graded
    from ep_plugin.encoders import PredictiveSigmaDelta as PredictiveSigmaDelta
    from ep_plugin.encoders import SigmaDelta as SigmaDelta
    from ep_plugin.gradients.agreement import gradient_agreement as gradient_agreement
    from ep_plugin.gradients.backprop_through_time import BackpropThroughTime as BackpropThroughTime
    from ep_plugin.gradients.equilibrium_propagation import EquilibriumPropagation as EquilibriumPropagation
    from ep_plugin.gradients.implicit_differentiation import (
        ImplicitDifferentiation as ImplicitDifferentiation,
    )
    from ep_plugin.initialization import initialize_ as initialize_
    from ep_plugin.lightning.callbacks import RecordErrors as RecordErrors
    from ep_plugin.lightning.data import DigitsDataModule as DigitsDataModule
    from ep_plugin.lightning.data import FashionMNISTDataModule as FashionMNISTDataModule
    from ep_plugin.lightning.data import MNISTDataModule as MNISTDataModule
    from ep_plugin.lightning.module import BPTTLightningModule as BPTTLightningModule
    from ep_plugin.lightning.module import EPLightningModule as EPLightningModule
    from ep_plugin.lightning.monitors import EquilibriumMonitor as EquilibriumMonitor
    from ep_plugin.lightning.monitors import GradientMonitor as GradientMonitor
    from ep_plugin.lightning.monitors import SpikeMonitor as SpikeMonitor
    from ep_plugin.network import ConvergentNetwork as ConvergentNetwork
    from ep_plugin.neurons.activations import Activation as Activation
    from ep_plugin.neurons.layer import Layer as Layer
    from ep_plugin.neurons.norse import ConvergentLIFBoxCell as ConvergentLIFBoxCell
    from ep_plugin.neurons.snntorch import ConvergentLeaky as ConvergentLeaky
    from ep_plugin.nir_export import to_nir as to_nir
    from ep_plugin.profiling import profile as profile
    from ep_plugin.relaxation import Equilibrium as Equilibrium
    from ep_plugin.relaxation import Relaxation as Relaxation
    from ep_plugin.weights import pretrained as pretrained

__version__ = "0.1.0"

_HOME = {
    "Activation": "neurons.activations",
    "BPTTLightningModule": "lightning.module",
    "BackpropThroughTime": "gradients.backprop_through_time",
    "Bernoulli": "encoders",
    "Connection": "connections",
    "ConvergentLIFBoxCell": "neurons.norse",
    "ConvergentLeaky": "neurons.snntorch",
    "ConvergentNetwork": "network",
    "DigitsDataModule": "lightning.data",
    "EPLightningModule": "lightning.module",
    "Equilibrium": "relaxation",
    "EquilibriumMonitor": "lightning.monitors",
    "EquilibriumPropagation": "gradients.equilibrium_propagation",
    "FashionMNISTDataModule": "lightning.data",
    "Graded": "encoders",
    "GradientMonitor": "lightning.monitors",
    "ImplicitDifferentiation": "gradients.implicit_differentiation",
    "Layer": "neurons.layer",
    "MNISTDataModule": "lightning.data",
    "PredictiveSigmaDelta": "encoders",
    "RecordErrors": "lightning.callbacks",
    "Relaxation": "relaxation",
    "SigmaDelta": "encoders",
    "SpikeMonitor": "lightning.monitors",
    "compare": "comparison",
    "convert": "conversion",
    "gradient_agreement": "gradients.agreement",
    "initialize_": "initialization",
    "pretrained": "weights",
    "profile": "profiling",
    "to_nir": "nir_export",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
