"""What an error of a run is due to: a checkpoint, settings that do not fit together, or code."""

import sys
import traceback
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

_KNOWN = {
    *("ep_plugin", "jsonargparse", "lightning", "norse", "packaging", "snntorch", "torch", "torchvision"),
    *sys.stdlib_module_names,
}
_RESTORING = ("lightning.pytorch.trainer.connectors.checkpoint_connector", "ep_plugin.lightning.resuming")
_DO_NOT_FIT = {  # by the function that calls what a configuration has named
    "loss_of": "the loss does not fit the output and the targets",
    "__getitems__": "the augmentation does not fit the images",
    "_verify_batch_size": "a batch of one sample is too small for batch normalization in training; expected a "
    "batch_size that leaves no single sample for the last batch",
}


def explained(error: BaseException, checkpoint: Path | None) -> str | None:
    """A line for an error that a checkpoint or the settings have led to.

    Args:
        error: as it was caught, with its traceback.
        checkpoint: the file that the run goes on from, if one was given.

    Returns:
        None if a user's own code takes part in it, or nothing is known of it: then the traceback tells more.
    """
    if of_own_code(error):
        return None
    called = _called(error)
    said = " ".join(str(error).split())[:400] or type(error).__name__
    if any(module in _RESTORING for module, _ in called):
        said = f"{type(error).__name__} {said}" if isinstance(error, LookupError) else said
        return said if checkpoint is None else f"the checkpoint {checkpoint} cannot be restored: {said}"
    if isinstance(error, MisconfigurationException) or _is_of_a_setting(error, called):
        return said
    why = next((_DO_NOT_FIT[name] for _, name in reversed(called) if name in _DO_NOT_FIT), None)
    return None if why is None else f"{why}: {said}"


def _is_of_a_setting(error: BaseException, called: list[tuple[str, str]]) -> bool:
    """Whether Lightning itself has raised it, which it does for settings."""
    kinds = (ValueError, RuntimeError, ModuleNotFoundError)
    return isinstance(error, kinds) and called[-1][0].startswith("lightning.")


def of_own_code(error: BaseException) -> bool:
    """Whether code that is neither this package's nor one of those it stands on has taken part in an error."""
    return any(module.partition(".")[0] not in _KNOWN for module, _ in _called(error))


def _called(error: BaseException) -> list[tuple[str, str]]:
    """Module and function of every call that an error has come through."""
    return [(f.f_globals.get("__name__", ""), f.f_code.co_name) for f, _ in traceback.walk_tb(error.__traceback__)]
