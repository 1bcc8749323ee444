"""Networks that come trained."""

import warnings
from pathlib import Path
from typing import Any

import torch

from ep_plugin.checks import chosen
from ep_plugin.conversion import ConversionWarning, convert
from ep_plugin.encoders import ENCODERS
from ep_plugin.models import convolutional_2c2fc
from ep_plugin.network import ConvergentNetwork
from ep_plugin.relaxation import Relaxation

PRETRAINED = {"mnist-2c2fc": "MNISTDataModule", "fashion-mnist-2c2fc": "FashionMNISTDataModule"}
"""Name -> the data module of the images that the network was trained on."""

_HERE = Path(__file__).parent


def pretrained(name: str) -> ConvergentNetwork:
    """A spiking 2C2FC network trained by equilibrium propagation alone, in evaluation mode.

    It takes images `[B, 1, 28, 28]` in [0, 1] and gives the scores of ten classes, `[B, 10]`. How it
    was trained, and its test error, stand in `examples/README.md`; `ep-plugin evaluate NAME` measures
    the error anew.

    Args:
        name: "mnist-2c2fc" or "fashion-mnist-2c2fc".

    Raises:
        ValueError: an unknown name.
    """
    chosen("name", name, PRETRAINED)
    return load(_HERE / f"{name}.pt")


def load(path: Path) -> ConvergentNetwork:
    """The network that `save` has written."""
    saved: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        model = convert(
            convolutional_2c2fc(**saved["net"]),
            encoder=ENCODERS[saved["encoder"]](**saved["encoder_settings"]),
            observe=saved["observe"],
            feedback=saved["feedback"],
            relaxation=Relaxation(**saved["relaxation"]),
        )
    model.load_state_dict(saved["state_dict"])
    return model.eval()


def save(model: ConvergentNetwork, net: dict[str, Any], path: Path) -> None:
    """Writes the weights of a converted `convolutional_2c2fc(**net)`, and how it infers, as plain data."""
    relaxation, encoder = model.relaxation, model.encoder
    (name,) = (name for name, kind in ENCODERS.items() if type(encoder) is kind)
    torch.save(
        {
            "net": net,
            "encoder": name,
            "encoder_settings": vars(encoder).copy(),
            "observe": model.observe,
            "feedback": list(model.feedback),
            "relaxation": {"steps": relaxation.steps, "step_size": relaxation.step_size, "order": relaxation.order},
            "state_dict": {name: value.detach().clone() for name, value in model.state_dict().items()},
        },
        path,
    )
