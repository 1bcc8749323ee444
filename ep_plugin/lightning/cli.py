"""`ep-plugin fit|validate|test`: Lightning's own command line over this package's modules and data."""

import warnings
from collections.abc import Sequence

import lightning as L
from lightning.pytorch.cli import LightningCLI

from ep_plugin.conversion import ConversionWarning


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
        return LightningCLI(
            L.LightningModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},  # a second run in one directory is not an error
            args=list(arguments),
            run=run,
        )
