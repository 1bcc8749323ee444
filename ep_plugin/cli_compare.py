"""`ep-plugin compare`: one net trained by EP and by BPTT."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ep_plugin.cli_group import at_least
from ep_plugin.progress import working
from ep_plugin.signals import exit_code

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ep_plugin.comparison import Result
    from ep_plugin.dynamics.encoders import EncoderName


def compare(
    data: Annotated[str, typer.Option(help="digits (installed with scikit-learn), mnist or fashion-mnist.")] = "digits",
    data_dir: Annotated[
        Path, typer.Option(help="Directory of mnist or fashion-mnist, as torchvision keeps it.")
    ] = Path("data"),
    epochs: Annotated[int, typer.Option(callback=at_least(1), help="Passes over the training images.")] = 15,
    batch_size: Annotated[int, typer.Option(callback=at_least(1), help="Images per step.")] = 32,
    train_samples: Annotated[
        int | None, typer.Option(callback=at_least(1), help="Use only the first N training images.", show_default="all")
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(
            help="What EP's neurons send: adaptive_delta, predictive_sigma_delta, sigma_delta, bernoulli or graded."
        ),
    ] = "adaptive_delta",
    seed: Annotated[
        int, typer.Option(callback=at_least(0), help="Seed of the weights and the order of the images.")
    ] = 0,
    seeds: Annotated[
        int,
        typer.Option(callback=at_least(1), help="Number of seeds to train, from seed on; shows mean and deviation."),
    ] = 1,
    net: Annotated[
        str | None,
        typer.Option(
            help="Your own net: path.to.module:net, a function that returns an nn.Module.",
            show_default="the package's",
        ),
    ] = None,
    output_dir: Annotated[
        Path, typer.Option(help="Directory in which each run makes a new one: run-1, run-2, ...")
    ] = Path("ep-plugin-compare"),
) -> None:
    """Train one spiking net twice, by equilibrium propagation and by snnTorch BPTT, and compare.

    Both have the same shape, images and seed, and each trains in a separate process. The result shows test accuracy,
    seconds per epoch, peak memory above the start, spikes per inference and operations per trained image. Ctrl-C
    keeps what has finished.
    """
    with working("Loading"):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        from ep_plugin.comparison import CONTENDERS, Comparison, ComparisonSettings, Result

    console, failed = Console(), 0
    try:
        with working("Reading the images and the net"):
            settings = ComparisonSettings(
                data,
                data_dir,
                epochs,
                batch_size,
                train_samples,
                cast("EncoderName", encoder),
                seed,
                seeds=seeds,
                net=net,
            )
            comparison = Comparison(settings, output_dir)
    except (ValueError, TypeError) as error:
        typer.echo(f"ep-plugin: {error}", err=True)
        raise typer.Exit(2) from None
    with Progress(
        TextColumn("{task.description:5}"), BarColumn(), TextColumn("epoch {task.completed}/{task.total}"),
        TextColumn("{task.fields[accuracy]}"), TimeElapsedColumn(), console=console, disable=not sys.stdout.isatty(),
    ) as progress:  # fmt: skip
        tasks = {name: progress.add_task(name, total=epochs * seeds, accuracy="", start=False) for name in CONTENDERS}

        def on_epoch(result: Result) -> None:
            task, before = tasks[result.contender], (result.seed - seed) * epochs
            if not result.accuracy:  # its process begins, and its clock
                for other in progress.tasks:
                    if other.id == task:
                        other.stop_time = None  # of the seed before
                    else:
                        progress.stop_task(other.id)
                progress.reset(task, completed=before)
                return
            shown = f"test accuracy {result.accuracy[-1]:.1%}" + (f", seed {result.seed}" if seeds > 1 else "")
            progress.update(task, completed=before + len(result.accuracy), accuracy=shown)

        try:
            comparison.run(on_epoch)
        except (ValueError, RuntimeError) as error:
            failed, said = 1 if isinstance(error, RuntimeError) else 2, str(error)
        except KeyboardInterrupt as error:
            failed, said = exit_code(error), "interrupted"

    if rows := _comparison_rows(comparison.results):
        console.print(_table(rows))
        console.print(settings.described(), style="dim")
    if failed:
        place = f"; what had finished is in {comparison.directory}" if rows else ""
        typer.echo(f"ep-plugin: {said}{place}", err=True)
        raise typer.Exit(failed)
    console.print(f"Written to {comparison.directory}: comparison.csv, history.csv, comparison.png", style="dim")


def _comparison_rows(results: "Sequence[Result]") -> list[list[str]]:
    """A row a contender, of its seeds' last epochs."""
    from statistics import mean

    from ep_plugin.comparison.results import by_contender, spread

    rows = []
    for name, own in by_contender(results).items():
        spikes = [r.spikes for r in own if r.spikes is not None]
        operations = [r.operations for r in own if r.operations is not None]
        rows.append(
            [
                name if all(r.finished for r in own) else f"{name} (not finished)",
                f"{spread([100 * r.accuracy[-1] for r in own], 2)} %",
                f"{mean(sum(r.seconds) / len(r.seconds) for r in own):.2f}",
                f"{mean(r.peak_memory_mb for r in own):.0f} MB",
                f"{mean(spikes):,.0f}" if spikes else "-",
                f"{mean(operations) / 1e6:,.2f} M" if operations else "-",
            ]
        )
    return rows


def _table(rows: "list[list[str]]") -> object:
    from rich.table import Table

    table = Table()
    headings = "test accuracy", "s / epoch", "peak memory above start", "spikes / inference"
    for heading in ("", *headings, "operations / image trained"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=heading == headings[0])
    for row in rows:
        table.add_row(*row)
    return table
