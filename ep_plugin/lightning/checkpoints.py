"""Checkpoints, looked at before a trainer takes them."""

from pathlib import Path
from typing import Any

import lightning as L

from ep_plugin import saved


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
    return checkpoint


def require_fitting(path: Path, module: L.LightningModule) -> None:
    """Stops where a checkpoint is not one of this module.

    Raises:
        ValueError: the message names the file and says what is wrong with it.
    """
    there, own = read(path)["state_dict"], module.state_dict()
    if missing := [name for name in own if name not in there]:
        raise _other(path, f"it lacks {_some(missing)}")
    if unknown := [name for name in there if name not in own]:
        raise _other(path, f"it has {_some(unknown)}, which this model has not")
    for name, value in own.items():
        here, given = (list(getattr(v, "shape", [])) for v in (value, there[name]))
        if here != given:
            raise _other(path, f"{name} has the shape {given} there and {here} here")


def _other(path: Path, how: str) -> ValueError:
    return ValueError(
        f"the checkpoint {path} is of another model: {how}. Give the model and its options as they were in its training"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
