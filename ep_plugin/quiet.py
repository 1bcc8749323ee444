"""What other packages say while a command runs, and its reader can do nothing about."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

# Notes of Lightning, by how they begin, as regular expressions, and the loggers that they come by.
_NOTES = (
    "💡 Tip",  # advertises packages of a cloud
    "GPU available: False",  # a device that is not there; one that is, and whether it is used, is told
    "TPU available",
    "HPU available",
    "Seed set to",  # the configuration has it, and the copy of it beside the logs
    "Loading `train_dataloader` to estimate",
    r"`Trainer\(\w+=1(\.0)?\)` was configured so",  # as the configuration says
    # What has stopped a training is told by the command's own last line.
    "`Trainer.fit` stopped: `max_",
    "\\s*Detected KeyboardInterrupt",
    "Received SIGTERM",
)
_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.trainer.connectors.signal_connector",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
)
_NOTE = re.compile(rf"(\[rank: \d+\] )?({'|'.join(_NOTES)})")

# Warnings, by how they begin, as regular expressions.
_WARNINGS = (
    r"Starting from v1\.9\.0, `tensorboardX`",  # advertises a logger that the commands do not need
    # The data modules hold the images in memory; worker processes would slow most nets down.
    r"The '\w+' does not have many workers",
    r"Consider setting `persistent_workers=True`",
    r"Precision \S+ is not supported by the model summary",  # of its size in MB
    r"`\w+\.configure_optimizers` will be overridden by `_CommandLine",  # the configuration names an optimizer
    # All that the modules of this package log is logged once an epoch.
    r"The number of training batches \(\d+\) is smaller than the logging interval",
)

# Packages whose own calls of outdated functions only their authors can change. The warning is attributed to the caller,
# so that those of a user's own modules are told.
_OTHERS = r"(lightning|lightning_utilities|torch|torchmetrics|torchvision|snntorch|norse|jsonargparse|rich|typer)(\.|$)"


class _Notes(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not _NOTE.match(record.getMessage())


@contextmanager
def without_foreign_notes() -> Iterator[None]:
    """In which Lightning's advertisements and other packages' outdated calls are not told; all else is.

    Example:
        >>> with without_foreign_notes():
        ...     trainer.fit(task, data)
    """
    quiet = _Notes()
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        for message in _WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category, module=_OTHERS)
        for logger in map(logging.getLogger, _LOGGERS):
            logger.addFilter(quiet)
            stack.callback(logger.removeFilter, quiet)
        yield
