"""The command line."""

from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ep_plugin import cli_compare, cli_count
from ep_plugin.cli_group import Commands, at_least
from ep_plugin.progress import track, working
from ep_plugin.quiet import without_foreign_notes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rich.console import Console
    from torch import Tensor
    from torch.nn import Module

    from ep_plugin.analysis.diagnosis import Diagnosis
    from ep_plugin.dynamics.encoders import EncoderName
    from ep_plugin.estimators.estimator import GradientEstimator
    from ep_plugin.network import ConvergentNetwork
    from ep_plugin.profiling import Profile

app = typer.Typer(
    name="ep-plugin",
    cls=Commands,
    help="Equilibrium propagation for spiking networks of snnTorch and Norse.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        from ep_plugin import __version__

        typer.echo(f"ep-plugin {__version__}")
        raise typer.Exit


@app.callback()
def commands(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Equilibrium propagation for spiking networks of snnTorch and Norse."""
    context.with_resource(without_foreign_notes())


app.command()(cli_compare.compare)


@app.command()
def profile(
    model: Annotated[str, typer.Option(help="2c2fc, perceptron or digits.")] = "2c2fc",
    batch_size: Annotated[int, typer.Option(callback=at_least(1), help="Images per step.")] = 64,
    encoder: Annotated[
        str,
        typer.Option(
            help="What neurons send: adaptive_delta, predictive_sigma_delta, sigma_delta, bernoulli or graded."
        ),
    ] = "adaptive_delta",
    estimator: Annotated[
        str,
        typer.Option(
            help="How the gradient is computed: ep, full (EP with two full phases), bptt (through the same dynamics) "
            "or implicit (differentiation)."
        ),
    ] = "ep",
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Compute products in bfloat16, by autocast.")] = False,
    repeats: Annotated[int, typer.Option(callback=at_least(1), help="Number of training steps to time.")] = 10,
) -> None:
    """Show how long each phase and layer of a training step takes.

    It uses random images and default settings. For your own network call ep_plugin.profile(model, x, y).
    """
    import warnings

    with working("Loading"):
        import torch
        from rich.console import Console

        from ep_plugin.conversion import ConversionWarning, convert
        from ep_plugin.models import REFERENCE_NETS
        from ep_plugin.out_of_memory import in_a_batch_of
        from ep_plugin.profiling import profile as measure
        from ep_plugin.validation import chosen, count

    warnings.filterwarnings("ignore", category=ConversionWarning)
    try:
        make, shape = chosen("model", model, REFERENCE_NETS)
        count("batch_size", batch_size)
        gradient = chosen("estimator", estimator, _estimators())
        network = convert(make(), encoder=cast("EncoderName", encoder), estimator=gradient())
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=bfloat16)
        with in_a_batch_of(batch_size), autocast, working("Measuring"):
            x, y = torch.rand(batch_size, *shape), torch.randint(10, (batch_size,))
            result = measure(network, x, y, repeats=repeats)
    except (ValueError, TypeError) as error:
        typer.echo(f"ep-plugin: {error}", err=True)
        raise typer.Exit(2) from None
    console = Console()
    console.print(_profile_table(result))
    precision = ", products in bfloat16" if bfloat16 else ""
    console.print(
        f"A training step of {model}, batch {batch_size}, {encoder} encoder, {type(network.estimator).__name__}"
        f"{precision}, {torch.get_num_threads()} threads: {1e3 * result.seconds:.1f} ms (median); "
        f"{1e3 * result.profiled:.1f} ms with the clock read at every part. "
        "0 -> 1: the connection from layer 0 to layer 1; down: its adjoint.",
        style="dim",
    )


def _estimators() -> "dict[str, Callable[[], GradientEstimator]]":
    from ep_plugin.estimators.backprop_through_time import BackpropThroughTime
    from ep_plugin.estimators.equilibrium_propagation import EquilibriumPropagation
    from ep_plugin.estimators.full_phases import FullPhaseEP
    from ep_plugin.estimators.implicit_differentiation import ImplicitDifferentiation

    return {
        "ep": EquilibriumPropagation,
        "full": FullPhaseEP,
        "bptt": BackpropThroughTime,
        "implicit": ImplicitDifferentiation,
    }


@app.command()
def check(
    net: Annotated[str, typer.Argument(help="path.to.module:net, an nn.Module or a function that returns one.")],
    shape: Annotated[
        str | None,
        typer.Option(help="Shape of an input without the batch, such as 1,28,28.", show_default="from the net"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Data for the check: digits, mnist, fashion-mnist, or path.to.module:data, a LightningDataModule or "
            "a function that returns one.",
            show_default="random inputs",
        ),
    ] = None,
    data_dir: Annotated[
        Path, typer.Option(help="Directory of mnist or fashion-mnist, as torchvision keeps it.")
    ] = Path("data"),
    batch_size: Annotated[int, typer.Option(callback=at_least(1), help="Number of inputs in the batch.")] = 32,
    seed: Annotated[
        int, typer.Option(callback=at_least(0), help="Seed of the inputs, their classes and the net's random numbers.")
    ] = 0,
) -> None:
    """Check your own model: does it convert, settle, fire, use all of its input, and learn by the right gradient?

    It uses the first training inputs of your data, or random inputs in [0, 1] of random classes. (Neurons may fire
    differently for your own inputs.) It compares the outputs with those of your model when its neurons send their
    rates, or says why it cannot; and EP's gradient with that of BPTT through graded states that have settled in full.
    It names the parameters that are not trained, and the modules that draw random numbers in evaluation mode, as in
    your model. The exit code is 1 if there is something to repair. A net that is converted already
    (ep_plugin.convert) keeps its settings; any other net is converted with the default settings.

    Of 86 small nets that learn, all passed. Of 51 that do not learn, 48 were found: 22 before their training, the
    others after it. (The learning rate is not part of a net, so damage by a large one shows only in the weights.)
    """
    with working("Loading"):
        import torch
        from rich.console import Console

        from ep_plugin.analysis.diagnosis import diagnose
        from ep_plugin.loading import data_batch, load_data, load_net, random_batch
        from ep_plugin.network import ConvergentNetwork
        from ep_plugin.out_of_memory import in_a_batch_of
        from ep_plugin.validation import count, input_shape

    console = Console()
    try:
        sizes = None if shape is None else _sizes(shape)
        if data is not None and sizes is not None:
            raise ValueError(f"--shape is {shape} and --data {data}, which tells the shape; expected one of both")
        count("batch_size", batch_size)
        torch.manual_seed(seed)
        given = load_net(net)
        model = given if isinstance(given, ConvergentNetwork) else _converted(given, console)
        model.eval()
        if model.time_varying and sizes is None and data is None:
            raise ValueError(
                "the input changes over time, in a number of steps that the net does not tell; give its shape without "
                "the batch, with the steps where it has them: --shape 10,28,28"
            )
        with in_a_batch_of(batch_size), working("Checking") as next_is:
            if data is None:
                x, y = random_batch(model, input_shape(model.stem, sizes, "--shape 1,28,28"), batch_size, classes=2)
            else:
                x, y = data_batch(model, load_data(data, data_dir, batch_size, seed), batch_size)
            found = diagnose(model, x, y, original=None if model is given else given, on_part=next_is)
    except (ValueError, TypeError, FloatingPointError) as error:
        typer.echo(f"ep-plugin: {error}", err=True)
        raise typer.Exit(2) from None
    for table in _diagnosis_tables(found, model.steps[0]):
        console.print(table)
    if found.compared is not None and (why := found.compared.left_out) is not None:
        console.print(f"Its outputs were not compared with those of your model: {why}.", markup=False, highlight=False)
    for advice in found.advice:
        console.print(f"- {advice}.", style="bold", markup=False, highlight=False)
    if found.advice:
        raise typer.Exit(1)
    console.print("Nothing to mend: it settles, fires, and its gradient points where BPTT's does.")


app.command()(cli_count.count)


def _sizes(shape: str) -> list[int]:
    try:
        return [int(n) for n in shape.split(",")]
    except ValueError:
        raise ValueError(f"--shape is {shape!r}; expected sizes without the batch, such as 1,28,28") from None


def _converted(net: "Module", console: "Console") -> "ConvergentNetwork":
    import warnings

    from ep_plugin.conversion import ConversionWarning, convert

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ConversionWarning)
        try:
            model = convert(net)
        except (ValueError, TypeError) as error:
            typer.echo(f"ep-plugin: it does not convert: {error}", err=True)
            raise typer.Exit(1) from None
    for warning in (w for w in warned if issubclass(w.category, UserWarning)):
        console.print(f"{warning.message}.", style="dim", markup=False, highlight=False)
    return model


@app.command()
def evaluate(
    name: Annotated[
        str,
        typer.Argument(
            help="mnist-2c2fc or fashion-mnist-2c2fc, either also with -max; mnist-vgg, fashion-mnist-residual or "
            "cifar10-small.",
        ),
    ],
    data_dir: Annotated[Path, typer.Option(help="Directory of the images, as torchvision keeps it.")] = Path("data"),
    batch_size: Annotated[int, typer.Option(callback=at_least(1), help="Images per step.")] = 250,
    folders: Annotated[
        bool, typer.Option("--folders", help="The directory has train and test instead, each with a folder per class.")
    ] = False,
) -> None:
    """Measure the test error of a trained network that the package contains."""
    with working("Loading"):
        from ep_plugin.lightning import data
        from ep_plugin.out_of_memory import in_a_batch_of
        from ep_plugin.trained import PRETRAINED, pretrained
        from ep_plugin.validation import chosen

    try:
        with working("Reading the images"):
            module, (channels, *size) = chosen("name", name, PRETRAINED)
            images = (
                data.ImageFolderDataModule(data_dir, size, channels, batch_size, validation="test")
                if folders
                else getattr(data, module)(data_dir, batch_size)
            )
            images.setup()
            model = pretrained(name)
        with in_a_batch_of(batch_size):
            wrong, spikes, seen = _tested(model, track(images.test_dataloader(), "Testing"))
    except (ValueError, TypeError) as error:
        typer.echo(f"ep-plugin: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(
        f"{name}: test error {100 * wrong / seen:.2f} % of {seen:,.0f} images, {spikes / seen:,.0f} spikes per "
        f"inference, readout from the {model.observe}s"
    )


def _tested(model: "ConvergentNetwork", batches: "Iterable[Sequence[Tensor]]") -> tuple[float, float, int]:
    """How many images were taken for another class, how many spikes that took, and of how many images."""
    import torch

    wrong = spikes = 0.0
    seen = 0
    with torch.no_grad():
        for x, y in batches:
            output, equilibrium = model(x, return_equilibrium=True)
            wrong += (output.argmax(1) != y).sum().item()
            assert equilibrium.spikes is not None  # none of these networks is graded
            spikes += equilibrium.spikes.sum().item()
            seen += len(y)
    return wrong, spikes, seen


_FORWARDED = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=_FORWARDED, add_help_option=False)
def fit(context: typer.Context) -> None:
    """Train by Lightning's command line: `ep-plugin fit --config FILE`; `--help` lists its options."""
    _lightning("fit", context)


@app.command(context_settings=_FORWARDED, add_help_option=False)
def validate(context: typer.Context) -> None:
    """Evaluate on held-out training images: `ep-plugin validate --config FILE --ckpt_path CHECKPOINT`."""
    _lightning("validate", context)


@app.command(context_settings=_FORWARDED, add_help_option=False)
def test(context: typer.Context) -> None:
    """Evaluate on test images: `ep-plugin test --config FILE --ckpt_path CHECKPOINT`."""
    _lightning("test", context)


def _lightning(subcommand: str, context: typer.Context) -> None:
    with working("Loading"):
        from ep_plugin.lightning import cli

    cli.run(subcommand, context.args)


def _diagnosis_tables(found: "Diagnosis", free: int) -> list[object]:
    from rich.table import Table

    def table(title: str, *headings: str) -> Table:
        made = Table(title=title, title_justify="left")
        for n, heading in enumerate(headings):
            made.add_column(heading, justify="right" if n else "left")
        return made

    settling = table(
        "Does it settle? Largest difference between what a neuron's drive asks for and what its neighbours know",
        *("steps", "graded", "as it is"),
    )
    for row in found.settling:
        steps = f"{row.steps} (free phase)" if row.steps == free else str(row.steps)
        settling.add_row(steps, f"{row.graded:.1e}", "-" if isnan(row.own) else f"{row.own:.1e}")
    gradients = table("Is the gradient BPTT's?", "parameter", "cosine", "norm ratio", "cosine without spikes")
    for own, graded in zip(found.agreement, found.without_spikes, strict=True):
        gradients.add_row(own.name, f"{own.cosine:.3f}", f"{own.norm_ratio:.2f}", f"{graded.cosine:.3f}")
    activity = table("Does it fire?", "layer", "neurons", "mean state", "saturated", "spikes per neuron and inference")
    for l, layer in enumerate(found.activity):
        spikes = "-" if layer.spikes is None else f"{layer.spikes:.2f}"
        activity.add_row(str(l), f"{layer.neurons:,}", f"{layer.mean:.3f}", f"{layer.saturated:.0%}", spikes)
    return [settling, gradients, activity]


def _profile_table(result: "Profile") -> object:
    from rich.table import Table

    table = Table()
    for heading in ("phase", "part", "calls", "ms", "share"):
        table.add_column(heading, justify="right" if heading in ("calls", "ms", "share") else "left")
    for phase in dict.fromkeys(part.phase for part in result.parts):
        own = [part for part in result.parts if part.phase == phase]
        if len(own) > 1:
            seconds = sum(part.seconds for part in own)
            table.add_row(phase, "", "", f"{1e3 * seconds:.2f}", f"{seconds / result.profiled:.1%}", style="bold")
        for part in own:
            table.add_row(
                "" if len(own) > 1 else phase,
                "" if part.name == "all" else part.name,
                str(part.calls),
                f"{1e3 * part.seconds:.2f}",
                f"{part.seconds / result.profiled:.1%}",
                style=None if len(own) > 1 else "bold",
            )
        table.add_section()
    return table


def main() -> None:
    """The entry point of `ep-plugin`."""
    app()


if __name__ == "__main__":
    main()
