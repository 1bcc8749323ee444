"""Why a forward cannot be traced, in one line: the reason, and the line of the user's code."""

import pathlib
import traceback
from importlib.util import find_spec

import torch
from torch import nn

from ep_plugin.conversion.sizes import NotKnown
from ep_plugin.conversion.watch import DRAWN

_LIBRARIES = {
    pathlib.Path(found.origin).parent
    for name in ("torch", "snntorch", "norse", "ep_plugin")
    if (found := find_spec(name)) is not None and found.origin is not None
}
"""Where code lies that is not the user's: the user's own may lie in a folder of the same name."""


def untraceable(net: nn.Module, error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    files = [f.filename.replace("\\", "/") for f in frames]
    encoder = next((f.name for f in frames if f.filename.endswith("spikegen.py")), "")
    if "rate" in encoder or any("/torch/distributions/" in file for file in files):
        error = NotKnown(f"it depends on {DRAWN}")
    elif encoder:
        error = NotKnown(
            f"it encodes the input by spikegen.{encoder}, which cannot be read; give the network the values, "
            "or encode outside and give all steps, with time_varying=True"
        )
    elif any(file.endswith("/torch/utils/checkpoint.py") for file in files):
        error = NotKnown(
            "it calls torch.utils.checkpoint, which needs real tensors; call the function itself, since a converted "
            "model keeps nothing for a backward pass through it"
        )
    elif not isinstance(error, NotKnown) and (function := _applied(error)) is not None:
        error = calls_function(function)
    elif isinstance(error, (TypeError, RuntimeError)) and any(name in str(error) for name in ("Traced", "Proxy(")):
        error = NotKnown(
            "it gives a value to what takes real tensors only (TorchScript, NumPy); call that outside, or in a module "
            "without neurons"
        )
    own = [
        f
        for f in frames
        if not f.filename.startswith("<") and not _LIBRARIES.intersection(pathlib.Path(f.filename).parents)
    ]
    place = f" (line {own[-1].lineno}: {own[-1].line})" if own else ""
    message = f"the forward of {type(net).__name__} cannot be traced: {' '.join(str(error).split())}"
    if isinstance(error, NotKnown):
        return message + place
    return (
        f"{message}{place}. Expected neurons and modules called one after the other, in a loop over steps if you like; "
        "what depends on the values of the input belongs outside, or into a module without neurons"
    )


def calls_function(name: str) -> NotKnown:
    return NotKnown(
        f"it calls the autograd function {name}, which has a backward of its own that a trace does not see; call it in "
        "a module without neurons, or, if it makes spikes, use a neuron of snnTorch or Norse, or one of your own after "
        "ep_plugin.register_neuron"
    )


def _applied(error: BaseException) -> str | None:
    """The autograd function whose `apply` took no value of a trace, as PyTorch before 2.7 has it."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "apply" and frame.f_code.co_filename.endswith("function.py"):
            kind = frame.f_locals.get("cls")
            if isinstance(kind, type) and issubclass(kind, torch.autograd.Function):
                return kind.__name__
    return None
