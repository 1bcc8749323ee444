"""Checkpoints, looked at before a trainer takes them."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from packaging.version import InvalidVersion, Version
from torch import Tensor

from ep_plugin import saved

_KINDS: dict[str, type] = {
    **dict.fromkeys(("state_dict", "loops", "callbacks", "hyper_parameters", "ep_plugin", "ep_plugin_resuming"), dict),
    **dict.fromkeys(("optimizer_states", "lr_schedulers"), list),
    **dict.fromkeys(("epoch", "global_step"), int),
    "pytorch-lightning_version": str,
}
_SETTINGS: dict[str, tuple[type, ...]] = {  # of the network
    **dict.fromkeys(("encoder", "observe"), (str,)),
    **{"time_varying": (bool,), "feedback": (int, float, list, type(None)), "steps": (int, list)},
}
_LARGEST = 2**63 - 1


def read(path: Path) -> dict[str, Any]:
    """What a checkpoint holds.

    Raises:
        ValueError: it is no whole checkpoint of Lightning; the message names the file.
    """
    checkpoint = saved.read(path, "checkpoint")
    keys = checkpoint if isinstance(checkpoint, dict) else {}
    if lacks := [key for key in ("state_dict", "pytorch-lightning_version") if key not in keys]:
        raise ValueError(
            f"{path} is no checkpoint of Lightning: it has no {lacks[0]}; expected a file that `ep-plugin fit` has "
            "written, such as lightning_logs/version_0/checkpoints/*.ckpt"
        )
    if wrong := _wrong(checkpoint):
        raise ValueError(f"the checkpoint {path} is damaged, or is not Lightning's: {wrong}; take another")
    return checkpoint


def _wrong(checkpoint: dict[str, Any]) -> str | None:
    """What is of another kind than Lightning writes."""
    for name, kind in _KINDS.items():
        found = checkpoint.get(name, kind())
        if not isinstance(found, kind) or isinstance(found, bool):
            return f"its {name} is of the type {type(found).__name__}, not {kind.__name__}"
        if isinstance(found, int) and not 0 <= found <= _LARGEST:
            return f"its {name} is {found}"
    for name, kinds in _SETTINGS.items():
        found = checkpoint.get("ep_plugin", {}).get(name, kinds[0]())
        numbers = found if isinstance(found, list) else []
        if not isinstance(found, kinds) or not all(isinstance(n, (int, float)) for n in numbers) or found == []:
            return f"the {name} of its network is {found!r}"
    try:
        Version(checkpoint["pytorch-lightning_version"])
    except InvalidVersion:
        return f"its pytorch-lightning_version is {checkpoint['pytorch-lightning_version']!r}"
    return None


def require_fitting(path: Path, module: L.LightningModule, max_epochs: int | None = None) -> None:
    """Stops where a checkpoint is not one of this module, or of a longer training.

    Args:
        path: of the checkpoint.
        module: that is to take it.
        max_epochs: of a training that is to go on from there; None or -1 where it has no bound.

    Raises:
        ValueError: the message names the file and says what is wrong with it.
    """
    checkpoint = read(path)
    there, own = checkpoint["state_dict"], module.state_dict()
    if missing := [name for name in own if name not in there]:
        raise _other(path, f"it lacks {_some(missing)}")
    if unknown := [name for name in there if name not in own]:
        raise _other(path, f"it has {_some(unknown)}, which this model has not")
    for name, value in own.items():
        here, given = (list(getattr(v, "shape", [])) for v in (value, there[name]))
        if here != given:
            raise _other(path, f"{name} has the shape {given} there and {here} here")
        if isinstance(value, Tensor) and _kind(value) != _kind(there[name]):
            raise _other(path, f"{name} is of the type {_kind(there[name])} there and {_kind(value)} here")
    done = _epochs(checkpoint)
    if max_epochs is not None and 0 <= max_epochs < done:
        epochs = f"{done} epoch{'' if done == 1 else 's'}"
        raise ValueError(
            f"the checkpoint {path} has {epochs}, and the training is to end after {max_epochs}; give "
            f"--trainer.max_epochs above {done}"
        )


def _kind(value: Any) -> str:
    """Of a tensor: a change of these loses more than digits."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.is_meta or value.layout != torch.strided:
        return "meta" if value.is_meta else "sparse"
    return "complex" if value.is_complex() else "float" if value.is_floating_point() else "int"


def _epochs(checkpoint: dict[str, Any]) -> int:
    """How many have ended."""
    found: Any = checkpoint.get("loops", {})
    for key in ("fit_loop", "epoch_progress", "current", "processed"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, int) else 0


def _other(path: Path, how: str) -> ValueError:
    return ValueError(
        f"the checkpoint {path} is of another model: {how}. Give the model and its options as they were in its training"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
