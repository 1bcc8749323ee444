"""Networks that come trained, and the files that hold them."""

import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from ep_plugin import files, saved
from ep_plugin.conversion import ConversionWarning, convert
from ep_plugin.dynamics.encoders import AdaptiveDelta, Bernoulli, Graded, PredictiveSigmaDelta, SigmaDelta
from ep_plugin.dynamics.relaxation import Relaxation
from ep_plugin.estimators.backprop_through_time import BackpropThroughTime
from ep_plugin.estimators.equilibrium_propagation import EquilibriumPropagation
from ep_plugin.estimators.full_phases import FullPhaseEP
from ep_plugin.estimators.implicit_differentiation import ImplicitDifferentiation
from ep_plugin.models import compact_residual, convolutional_2c2fc, residual, vgg
from ep_plugin.network import ConvergentNetwork
from ep_plugin.validation import chosen

PRETRAINED = {
    "mnist-2c2fc": ("MNISTDataModule", (1, 28, 28)),
    "fashion-mnist-2c2fc": ("FashionMNISTDataModule", (1, 28, 28)),
    "mnist-2c2fc-max": ("MNISTDataModule", (1, 28, 28)),
    "fashion-mnist-2c2fc-max": ("FashionMNISTDataModule", (1, 28, 28)),
    "mnist-vgg": ("MNISTDataModule", (1, 28, 28)),
    "fashion-mnist-residual": ("FashionMNISTDataModule", (1, 28, 28)),
    "cifar10-small": ("CIFAR10DataModule", (3, 32, 32)),
}
"""Name -> the data module of the images that the network was trained on, and the shape of one image."""

NETS = {function.__name__: function for function in (convolutional_2c2fc, vgg, residual, compact_residual)}
"""Name -> the function of `ep_plugin.models` that makes the net which a file holds the weights of."""

_WEIGHTS = Path(__file__).parent / "weights"

# What a setting may be in a file, beside numbers and strings.
_KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        *(AdaptiveDelta, Bernoulli, Graded, PredictiveSigmaDelta, SigmaDelta, Relaxation),
        *(EquilibriumPropagation, FullPhaseEP, BackpropThroughTime, ImplicitDifferentiation),
    )
}


def pretrained(name: str) -> ConvergentNetwork:
    """A spiking network trained by equilibrium propagation alone, in evaluation mode.

    It takes images in [0, 1], `[B, 1, 28, 28]` or, of CIFAR-10, `[B, 3, 32, 32]`. It returns the scores of ten
    classes, `[B, 10]`.
    `examples/guide/results.md` says how it was trained, and what its test error is; `ep-plugin evaluate NAME` measures
    the error again.

    Args:
        name: "mnist-2c2fc" or "fashion-mnist-2c2fc", with average pooling; "mnist-2c2fc-max" or
            "fashion-mnist-2c2fc-max", with max pooling; "mnist-vgg", with seven layers; or "fashion-mnist-residual" or
            "cifar10-small", with eight layers and shortcuts. Only these last three were trained with augmented images.

    Returns:
        The network: signed events, and a readout that sees nothing else. The nets with shortcuts have the feedback,
        digits and steps of their recipes, all others have the default settings.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> ep.pretrained("mnist-2c2fc")(torch.rand(1, 1, 28, 28)).shape
        torch.Size([1, 10])
    """
    chosen("name", name, PRETRAINED)
    return load(_WEIGHTS / f"{name}.pt")


def load(path: Path) -> ConvergentNetwork:
    """The network that `save` has written, in evaluation mode."""
    found: dict[str, Any] = saved.read(path, "weights file")
    settings = {name: _made(value) for name, value in found["settings"].items() if name != "time_axis"}  # the net's own
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        model = convert(NETS[found.get("function", "convolutional_2c2fc")](**found["net"]), **settings)
    model.load_state_dict(found["state_dict"])
    return model.eval()


def save(
    model: ConvergentNetwork,
    net: dict[str, Any],
    path: Path,
    origin: dict[str, Any] | None = None,
    function: str = "convolutional_2c2fc",
) -> None:
    """Writes a trained network as plain data: weights, shape and settings.

    Args:
        model: the converted net.
        net: the arguments of the function that made the net.
        path: the file to write.
        origin: how it was trained, as plain data: recipe, seed, versions.
        function: the name of that function: one of `NETS`.

    Raises:
        ValueError: the file cannot be written, or cannot hold the origin; or an encoder or estimator is not of this
            package, so that `load` would not know it; or the function is unknown.
    """
    if origin is not None and any(type(value) not in (str, int, float, bool) for value in origin.values()):
        raise ValueError(f"origin is {origin!r}; expected strings and numbers, which a file can hold")
    state = {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in model.state_dict().items()}
    settings = {name: _plain(name, value) for name, value in vars(model.settings).items()}
    files.save(
        {"function": function, "net": net, "settings": settings, "state_dict": state, "origin": origin or {}}, path
    )


def _plain(name: str, value: Any) -> Any:
    """A setting as numbers, strings, lists and dictionaries."""
    if isinstance(value, tuple):
        return list(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    kind = type(value).__name__
    if _KINDS.get(kind) is not type(value):
        raise ValueError(f"{name} is {value!r}, which a file cannot hold; expected one of {', '.join(_KINDS)}")
    return {"kind": kind, **vars(value)}


def _made(value: Any) -> Any:
    """The setting that `_plain` has written."""
    if not isinstance(value, dict):
        return value
    return _KINDS[value["kind"]](**{k: v for k, v in value.items() if k != "kind"})
