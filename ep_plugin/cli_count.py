"""`ep-plugin count`: the operations of a model of one's own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ep_plugin.progress import working

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from ep_plugin.analysis.operation_counts import OperationCounts
    from ep_plugin.network import ConvergentNetwork

_STEPS = 25  # of BPTT, where nothing else is said


def count(
    net: Annotated[str, typer.Argument(help="path.to.module:net, an nn.Module or a function that returns one.")],
    shape: Annotated[
        str | None,
        typer.Option(help="Shape of an input without the batch, such as 1,28,28.", show_default="from the net"),
    ] = None,
    num_steps: Annotated[
        int | None,
        typer.Option(help="How often BPTT calls the net.", show_default="25, or the net's own loop"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Number of random inputs in the batch.")] = 16,
    picture: Annotated[Path | None, typer.Option(help="File of the picture, such as operations.png.")] = None,
) -> None:
    """Count the operations of your own model per layer: those of EP, and those of BPTT in the original net.

    It counts spikes, synaptic operations (spikes times their fan-out), updates, multiply-adds and memory, and estimates
    the energy, for an inference and for a training step, as means per sample. The inputs are random numbers in [0, 1];
    most images have more zeros. For your own inputs call ep_plugin.count_operations(model, x, y). For a net that is
    converted already, only EP is counted.
    """
    with working("Loading"):
        import torch

        from ep_plugin.analysis.operations import count_operations
        from ep_plugin.loading import load_net, random_batch
        from ep_plugin.network import ConvergentNetwork
        from ep_plugin.out_of_memory import in_a_batch_of
        from ep_plugin.validation import count as whole
        from ep_plugin.validation import input_shape

    try:
        sizes = None if shape is None else _sizes(shape)
        whole("batch_size", batch_size)
        torch.manual_seed(0)
        given = load_net(net)
        model = given if isinstance(given, ConvergentNetwork) else _converted(given)
        inputs = input_shape(model.stem, sizes, "--shape 1,28,28")
        with in_a_batch_of(batch_size), working("Counting"):
            x, y = random_batch(model.eval(), inputs, batch_size)
            counts = {"EP": count_operations(model, x, y)}
            if model is not given:
                counts |= _through_time(given, x, num_steps)
    except (ValueError, TypeError, FloatingPointError) as error:
        typer.echo(f"ep-plugin: {error}", err=True)
        raise typer.Exit(2) from None
    for name, own in counts.items():
        typer.echo(f"{name}\n{own}\n")
    if picture is not None:
        from ep_plugin import plots
        from ep_plugin.files import whole as written_whole

        try:
            with written_whole(picture) as part:
                plots.operations(counts).figure.savefig(part, dpi=120)  # type: ignore[union-attr]
        except ValueError as error:
            typer.echo(f"ep-plugin: {error}", err=True)
            raise typer.Exit(2) from None
        typer.echo(f"Written to {picture}")


def _sizes(shape: str) -> list[int]:
    try:
        return [int(n) for n in shape.split(",")]
    except ValueError:
        raise ValueError(f"--shape is {shape!r}; expected sizes without the batch, such as 1,28,28") from None


def _converted(net: "Module") -> "ConvergentNetwork":
    import warnings

    from ep_plugin.conversion import ConversionWarning, convert

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        return convert(net)


def _through_time(net: "Module", x: "Tensor", num_steps: int | None) -> "dict[str, OperationCounts]":
    """BPTT's counts, of a net that is called once a step or has the loop in its forward."""
    from ep_plugin.analysis.operations import count_operations
    from ep_plugin.analysis.plain_operations import any_loss
    from ep_plugin.conversion import adapters

    neurons = [m for m in net.modules() if adapters.find_adapter(m) is not None]
    if num_steps is None and all(getattr(m, "init_hidden", False) for m in neurons):
        num_steps = _STEPS
    name = "BPTT, its own loop" if num_steps is None else f"BPTT, {num_steps} steps"
    return {name: count_operations(net, x, 0, any_loss, num_steps)}
