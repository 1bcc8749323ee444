"""`ep-plugin fit|validate|test`: Lightning's own command line over this package's modules and data."""

import sys
import warnings
from collections.abc import Sequence

import lightning as L
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ep_plugin.conversion import ConversionWarning


class _CommandLine(LightningCLI):
    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, MisconfigurationException) as error:
            print(f"ep-plugin: {_reason(error)}", file=sys.stderr)
            raise SystemExit(2) from error


def _reason(error: BaseException) -> BaseException:
    """What a constructor raised: jsonargparse wraps it into a list of all the types that it tried."""
    while str(error).startswith("Does not validate") and (inner := error.__cause__ or error.__context__):
        error = inner
    return error


def run(subcommand: str, arguments: Sequence[str]) -> None:
    """What `ep-plugin SUBCOMMAND ARGUMENTS` does.

    Args:
        subcommand: "fit", "validate" or "test".
        arguments: such as `--config FILE`, `--trainer.max_epochs 3`.

    Raises:
        SystemExit: 2 if an argument or a setting is wrong, with a message that says which.
    """
    from_arguments([subcommand, *arguments], run=True)


def from_arguments(arguments: Sequence[str], run: bool) -> LightningCLI:
    """The model, the data and the trainer that the arguments describe; `run` starts the subcommand too."""
    with warnings.catch_warnings():
        # The arguments are the command line's own, handed on; and a configuration says what is converted.
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        warnings.filterwarnings("ignore", category=ConversionWarning)
        return _CommandLine(
            L.LightningModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},  # a second run in one directory is not an error
            args=list(arguments),
            run=run,
        )
