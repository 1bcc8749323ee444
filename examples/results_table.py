"""Prints the recorded results as the tables in examples/README.md: `python examples/results_table.py`."""

import json
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

RESULTS = Path(__file__).parent / "results" / "results.jsonl"
FORMER = "Measured with full phases, the method of earlier versions"
PRESENT = "Measured with this version"
HELD_OUT = "By which epochs are chosen: error of held-out training images"


def finished(path: Path) -> pd.DataFrame:
    """The last line of every run that reached its last epoch; of a name, seed, method and images the newest."""
    lines = pd.DataFrame(json.loads(line) for line in path.read_text().splitlines())
    lines["measured"] = [_title(row) for row in lines.to_dict("records")]
    seconds = lines.groupby(["name", "seed", "started"])
    lines["seconds_per_epoch"] = lines.seconds / (
        lines.epoch - seconds.epoch.transform("min") + 1
    )  # since it was resumed
    last = lines[lines.epoch == lines.epochs].sort_values("started")
    return last.groupby(["measured", "name", "seed"]).tail(1)


def _title(line: dict) -> str:
    """The table that a line belongs to. Records of earlier versions do not tell the number of parameters."""
    if line["watched"] != "test":
        return HELD_OUT
    return PRESENT if line.get("parameters", 0) > 0 else FORMER


def main(results: Annotated[Path, typer.Argument(help="What the runs have recorded.")] = RESULTS) -> None:
    """A row a recipe: the error at the last epoch of each seed."""
    rows = finished(results)
    for measured in (PRESENT, FORMER, HELD_OUT):
        if (rows.measured == measured).any():
            print(f"#### {measured}\n")
            (_print_former if measured == FORMER else _print)(rows[rows.measured == measured])


def _print(rows: pd.DataFrame) -> None:
    columns = "recipe", "error (%)", "mean", "epochs", "sees", "augmented", "parameters", "s / epoch", "spikes"
    print("|", " | ".join((*columns, "cosine", "feedback")), "|")
    print("|---" * (len(columns) + 2) + "|")
    for name, runs in rows.groupby("name"):
        first = runs.iloc[0]
        errors = runs.sort_values("seed").error
        mean = f"{errors.mean():.2f} ± {errors.std():.2f}" if len(runs) > 1 else "-"
        spikes = f"{runs.spikes.mean():,.0f}" if runs.spikes.notna().any() else "-"
        cosine = f"{runs.cosine.min():.3f}" if runs.cosine.notna().any() else "-"
        print(
            f"| `{name}` | {', '.join(f'{e:.2f}' for e in errors)} | {mean} | {first.epochs} | {_sees(first)} | "
            f"{'yes' if first.augmented else 'no'} | {first.parameters / 1000:,.0f} k | "
            f"{runs.seconds_per_epoch.min():.0f} ({', '.join(sorted(set(runs.device)))}) | {spikes} | {cosine} | "
            f"{first.feedback if isinstance(first.observe, str) else '-'} |"
        )
    print()


def _sees(row: pd.Series) -> str:
    """What readout and contrasts see."""
    return f"{row.observe}s" if isinstance(row.observe, str) else "-"


def _print_former(rows: pd.DataFrame) -> None:
    print("| recipe | test error (%) | seeds | epochs | observe | augmented | minutes | products |")
    print("|---|---|---|---|---|---|---|---|")
    for name, runs in rows.groupby("name"):
        first = runs.iloc[0]
        errors = ", ".join(f"{e:.2f}" for e in runs.sort_values("seed").error)
        mean = f" (mean {runs.error.mean():.2f})" if len(runs) > 1 else ""
        observe = first.observe if isinstance(first.observe, str) else "-"
        print(
            f"| `{name}` | {errors}{mean} | {', '.join(map(str, sorted(runs.seed)))} | {first.epochs} | {observe} | "
            f"{'yes' if first.augmented else 'no'} | {runs.seconds.mean() / 60:.0f} | {first.precision} |"
        )
    print()


if __name__ == "__main__":
    typer.run(main)
