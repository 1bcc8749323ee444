"""`ep-plugin count`: the operations of a model of one's own."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ep_plugin.cli_group import at_least
from ep_plugin.progress import working

if TYPE_CHECKING:
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
        typer.Option(
            callback=at_least(1), help="How often BPTT calls the net.", show_default="25, or the net's own loop"
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(callback=at_least(1), help="Number of random inputs in the batch.")] = 16,
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
        from ep_plugin.analysis.plain_operations import any_loss, own_steps
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
            x, classes = random_batch(model.eval(), inputs, batch_size)
            y = classes if any(p.requires_grad for p in model.parameters()) else None
            loss = torch.nn.functional.cross_entropy if bool(classes.any()) else any_loss  # of one class it is flat
            counts = {"EP": count_operations(model, x, y, loss)}
            notes = {"EP": _silent(counts["EP"])}
            if model is not given:
                loop = own_steps(given, x)
                steps = _calls(given, num_steps, loop)
                name = "BPTT, its own loop" if steps is None else f"BPTT, {steps} steps"
                counts[name] = count_operations(given, x, None if y is None else 0, any_loss, steps)
                notes[name] = [*_twice(loop, steps), *_repeated(counts[name], steps), *_silent(counts[name])]
    except (ValueError, TypeError, FloatingPointError) as error:
        typer.echo(f"ep-plugin: {error}", err=True)
        raise typer.Exit(2) from None
    for name, own in counts.items():
        typer.echo("\n".join([name, str(own), *(f"note: {note}" for note in notes[name])]) + "\n")
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


def _calls(net: "Module", num_steps: int | None, own: int | None) -> int | None:
    """How often BPTT calls the net, which has so many steps of its `own`; None where the loop is in its forward."""
    from ep_plugin.conversion import adapters

    neurons = [m for m in net.modules() if adapters.find_adapter(m) is not None]
    if num_steps is None and own is None and all(getattr(m, "init_hidden", False) for m in neurons):
        return _STEPS
    return num_steps


def _twice(own: int | None, num_steps: int | None) -> list[str]:
    """A loop within the loop: said, since few people mean it."""
    if own is None or num_steps is None or num_steps == 1:
        return []
    return [
        f"the net runs each of its neurons {own} times in one call, so that {num_steps} calls are {own * num_steps} "
        "steps. If its forward has a loop over time, leave --num-steps out"
    ]


def _repeated(counts: "OperationCounts", num_steps: int | None) -> list[str]:
    """BPTT's loop takes the first product anew in every step, though the input stays: said, since EP takes it once."""
    first = next((row.name for row in counts.rows if not row.neurons), None)
    if num_steps is None or num_steps == 1 or first is None:
        return []
    return [
        f"the input is the same in every step, and {first} is counted in each of the {num_steps} steps, as the loop "
        "runs it. EP's stem is counted once"
    ]


def _silent(counts: "OperationCounts") -> list[str]:
    """Layers that send nothing look cheap: said, so that nobody takes it for what a trained net costs."""
    from ep_plugin.analysis.operation_counts import INFERENCE

    rows = [row for row in counts.rows if row.phase in INFERENCE]
    silent = []
    for row, behind in zip(rows, [*rows[1:], None], strict=True):
        numbers = row.multiply_adds  # what graded neurons send
        if row.phase == "forward" and behind is not None and not behind.neurons:
            numbers = behind.multiply_adds  # of a plain net they are counted at the module behind the neurons
        reads_out = re.search(r"\bLI(?!F)", row.name) is not None  # Norse's neurons that never spike
        if row.neurons and not row.spikes and not numbers and not reads_out:
            silent.append(row.name)
    if not silent:
        return []
    many = len(silent) > 1
    return [
        f"{', '.join(silent)} {'send' if many else 'sends'} no spikes on these random inputs, so what follows "
        f"{'them' if many else 'it'} looks cheaper than it is in a trained net. Count a trained net on inputs of your "
        "own: ep_plugin.count_operations(model, x, y)"
    ]
