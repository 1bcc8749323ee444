"""Lightning's summary of a module, without a count of operations that is not one."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichModelSummary
from lightning.pytorch.utilities.model_summary import get_human_readable_count


class _WithoutFlops(RichModelSummary):
    """Lightning counts a forward pass of some modules, and 0 where it has no example of an input.

    `ep-plugin count` counts what a convergent network does.
    """

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        from rich import get_console
        from rich.table import Table

        shown = [(name.strip(), values) for name, values in summary_data if name != "FLOPs"]
        table = Table(header_style=summarize_kwargs.get("header_style", "bold magenta"))
        for name, _ in shown:
            table.add_column(name, justify="left" if name in ("", "Name", "Type", "Mode") else "right")
        for row in zip(*(values for _, values in shown), strict=True):
            table.add_row(*map(str, row))
        get_console().print(table)
        trained, fixed = map(_readable, (trainable_parameters, total_parameters - trainable_parameters))
        get_console().print(
            f"Trainable params: {trained}, non-trainable params: {fixed}, {model_size:.3g} MB", highlight=False
        )


def _readable(number: int) -> str:
    return get_human_readable_count(int(number)).strip()


def without_flops(trainer: L.Trainer) -> None:
    """Lets a trainer's summary be so; those of other classes stay as they are."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if type(callback) is RichModelSummary:
            callback.__class__ = _WithoutFlops
