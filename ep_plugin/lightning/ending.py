"""The line that `ep-plugin fit` ends with."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import lightning as L
from torch import Tensor

_WORTH = ("val/accuracy", "val/loss", "train/accuracy", "train/loss")  # what is told, the first that is there


def ending(trainer: L.Trainer, arguments: Sequence[str]) -> str:
    """How well the training has ended, where its checkpoint lies and the commands that go on from it.

    Args:
        trainer: after its fit.
        arguments: of the command, such as `--config FILE`.

    Returns:
        A line.

    Example:
        >>> print(ending(trainer, ["--config", "digits.yaml"]))
    """
    epochs = trainer.current_epoch
    done = f"Trained {epochs} epoch{'' if epochs == 1 else 's'}{_worth(trainer.callback_metrics)}."
    kept = _kept(trainer)
    if not kept:
        why = "" if trainer.checkpoint_callbacks else ": the trainer's checkpoints are switched off"
        return f"{done} No checkpoint was kept{why}."
    given = _without("--ckpt_path", arguments)
    commands = f"Test it: {_command('test', given, kept[0])}"
    if longer := _longer(trainer):
        for option in longer:
            given = _without(option, given)
        given += [word for option in longer.items() for word in option]
        commands += f"; Train on: {_command('fit', given, _newest(kept))}"
    return f"{done} Checkpoint: {_from_here(kept[0])}. {commands}"


def stopped(
    trainer: L.Trainer, arguments: Sequence[str], checkpoint: Path | None, started: float = float("inf")
) -> str:
    """Where a training was stopped, and the command that goes on from its newest checkpoint.

    Args:
        trainer: whose fit was stopped.
        arguments: of the command, such as `--config FILE`.
        checkpoint: what was written when it was stopped, if it was.
        started: when the training began to write checkpoints, in seconds of the system's clock.

    Returns:
        A line.

    Example:
        >>> print(stopped(trainer, ["--config", "digits.yaml"], None))
    """
    done = f"Stopped in epoch {trainer.current_epoch + 1}, after step {trainer.global_step}"
    others = [Path(trainer.ckpt_path)] if trainer.ckpt_path else []  # that it went on from
    kept = [checkpoint] if checkpoint else [*_kept(trainer), *_lying(trainer, started), *others]
    if not kept:
        return f"{done}. No checkpoint had been kept, so that it begins anew when it is started again."
    newest = _newest(kept)
    command = _command("fit", _without("--ckpt_path", arguments), newest)
    return f"{done}. Checkpoint: {_from_here(newest)}. Resume: {command}"


def _worth(logged: Mapping[str, Tensor]) -> str:
    name = next((name for name in _WORTH if name in logged), None)
    if name is None:
        return ""
    value = logged[name].item()
    return f", {name} {100 * value:.1f} %" if name.endswith("accuracy") else f", {name} {value:.4g}"


def _kept(trainer: L.Trainer) -> list[Path]:
    """The checkpoints that are there, the best one first."""
    names = ("best_model_path", "last_model_path")
    found = [getattr(keeper, name, "") for keeper in trainer.checkpoint_callbacks for name in names]
    return [path for path in map(Path, filter(None, found)) if path.is_file()]


def _lying(trainer: L.Trainer, started: float) -> list[Path]:
    """What this training has written: a keeper that is stopped while it writes has let go of what it kept before."""
    places = {Path(place) for keeper in trainer.checkpoint_callbacks if (place := getattr(keeper, "dirpath", None))}
    return [path for place in places for path in place.glob("*.ckpt") if path.stat().st_mtime >= started]


def _newest(paths: Iterable[Path]) -> Path:
    return max(paths, key=lambda path: path.stat().st_mtime_ns)


def _from_here(path: Path) -> Path:
    """As a path from here where it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _longer(trainer: L.Trainer) -> dict[str, str]:
    """The options with which the training goes on; none where its learning rate has come to its end, or it was
    stopped."""
    if getattr(trainer.lightning_module, "schedule", "constant") != "constant":
        return {}
    bounds = (
        ("--trainer.max_epochs", trainer.max_epochs or -1, trainer.current_epoch),
        ("--trainer.max_steps", trainer.max_steps, trainer.global_step),
    )
    return {option: str(2 * bound) for option, bound, reached in bounds if 0 < bound <= reached}


def _without(option: str, arguments: Sequence[str]) -> list[str]:
    """The arguments but for an option, `--name value` or `--name=value`."""
    kept: list[str] = []
    skip = False
    for word in arguments:
        if not skip and word != option and not word.startswith(f"{option}="):
            kept.append(word)
        skip = word == option
    return kept


def _command(name: str, arguments: Sequence[str], checkpoint: Path) -> str:
    return shlex.join(["ep-plugin", name, *arguments, "--ckpt_path", str(_from_here(checkpoint))])
