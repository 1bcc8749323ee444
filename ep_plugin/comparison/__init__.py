"""Equilibrium propagation and snnTorch's backpropagation through time, side by side.

Every contender trains in a separate process, so that its peak memory is its own.
"""

from contextlib import suppress
from pathlib import Path

from ep_plugin.comparison.processes import OnEpoch, train
from ep_plugin.comparison.results import Result, write
from ep_plugin.comparison.settings import CONTENDERS, ComparisonSettings
from ep_plugin.files import numbered

__all__ = ["CONTENDERS", "Comparison", "ComparisonSettings", "Result", "compare"]


def compare(
    settings: ComparisonSettings | None = None,
    output_dir: str | Path = "ep-plugin-compare",
    on_epoch: OnEpoch | None = None,
) -> list[Result]:
    """Trains EP and BPTT one after the other and writes comparison.csv, history.csv and comparison.png.

    Each trains in a separate process. A script calls this behind `if __name__ == "__main__":`.

    Args:
        settings: what is trained, and how; by default digits.
        output_dir: where each run makes a new directory: run-1, run-2, ... Earlier runs are not touched.
        on_epoch: called with the result so far, when a contender begins and after each of its epochs.

    Returns:
        A result for each seed and contender. Each is written to disk as soon as it is finished, and so are the finished
        epochs of a contender that failed or was interrupted.

    Raises:
        ValueError: the directory cannot be written, or EP or BPTT cannot train the net.
        RuntimeError: a contender's process ended early. The message says why.

    Example:
        >>> ep_result, bptt_result = ep.compare(ep.ComparisonSettings(epochs=5))
    """
    return Comparison(settings or ComparisonSettings(), output_dir).run(on_epoch)


class Comparison:
    """A run of `compare` whose results can be read while it goes on, and after it has failed.

    Attributes:
        directory: the run's own, in `output_dir`.
        results: a result for each seed and contender that has begun.
    """

    def __init__(self, settings: ComparisonSettings, output_dir: str | Path) -> None:
        self.settings = settings
        self.directory = numbered(Path(output_dir))
        self.results: list[Result] = []

    def run(self, on_epoch: OnEpoch | None = None) -> list[Result]:
        """Trains what the settings say; see `compare`."""
        try:
            for seed in range(self.settings.seed, self.settings.seed + self.settings.seeds):
                for contender in CONTENDERS:
                    self.results.append(Result(contender, seed))
                    train(self.settings, self.results[-1], on_epoch)
                    write(self.results, self.settings, self.directory)
        except BaseException:
            with suppress(ValueError):  # it is told what stopped the run, and not that this cannot be written either
                write(self.results, self.settings, self.directory)
            with suppress(OSError):
                self.directory.rmdir()  # where nothing has come of the run
            raise
        return self.results
