"""Puts a trained network into the package, from where `ep_plugin.pretrained` takes it.

python examples/export_weights.py RECIPE CHECKPOINT ep_plugin/weights/NAME.pt --half
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from ep_plugin.lightning.cli import from_arguments
from ep_plugin.trained import save


def main(
    recipe: Annotated[Path, typer.Argument(help="The configuration that the network was trained with.")],
    checkpoint: Annotated[Path, typer.Argument(help="What the training left.")],
    output: Annotated[Path, typer.Argument(help="The file to write.")],
    seed: Annotated[int, typer.Option(help="That it was trained with.")] = 0,
    data_dir: Annotated[Path, typer.Option(help="Where the recipe's images lie.")] = Path("data"),
    size: Annotated[int | None, typer.Option(help="In pixels, where the images lie in folders, one per class.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Round the weights to float16, for half the size.")] = False,
) -> None:
    """Writes the weights, the net's shape and how it infers."""
    arguments = ["--config", str(recipe)]
    if size is not None:
        arguments += ["--data", "ep_plugin.ImageFolderDataModule", f"--data.init_args.size={size}"]
    arguments.append(f"--data.init_args.data_dir={data_dir}")
    cli = from_arguments(arguments, run=False)
    saved = torch.load(checkpoint, weights_only=True, map_location="cpu")
    cli.model.load_state_dict(saved["state_dict"])
    model = cli.model.model.half() if half else cli.model.model
    described = cli.config["model"]["init_args"]["model"]["init_args"]
    net = {name: list(v) if isinstance(v, tuple) else v for name, v in described["net"]["init_args"].items()}
    origin = {"recipe": recipe.stem, "seed": seed, "epochs": saved["epoch"] + 1, "torch": str(torch.__version__)}
    save(model, net, output, origin, described["net"]["class_path"].rpartition(".")[2])
    print(f"wrote {output}: {output.stat().st_size / 2**20:.1f} MB")


if __name__ == "__main__":
    typer.run(main)
