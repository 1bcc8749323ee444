"""`ep-plugin fit|validate|test`: Lightning's own command line over this package's modules and data."""

import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import ep_plugin
from ep_plugin.conversion import ConversionWarning
from ep_plugin.files import CannotWrite, origin, require_writable, whole
from ep_plugin.lightning import checkpoint_files, csv_files, plain_yaml
from ep_plugin.lightning.allowed import require_allowed
from ep_plugin.lightning.checkpoints import read, require_fitting
from ep_plugin.lightning.ending import ending, stopped
from ep_plugin.lightning.faults import explained, of_own_code
from ep_plugin.lightning.parsed_numbers import Trainer
from ep_plugin.lightning.stopping import Stopping
from ep_plugin.lightning.summary import without_flops
from ep_plugin.lightning.task import Task
from ep_plugin.loading import find_from_here
from ep_plugin.out_of_memory import is_out_of_memory, too_large
from ep_plugin.quiet import without_foreign_notes
from ep_plugin.validation import count, not_negative


class _Parser(LightningArgumentParser):
    """Tells what is wrong in one line, where jsonargparse prints all options and every type that it has tried."""

    def error(self, message: str, *_: object) -> NoReturn:
        raise _Refused(_condensed(message))

    def save(self, cfg: Any, path: Any, skip_none: bool = True, **options: Any) -> None:
        """The copy beside the logs."""
        with whole(Path(path)) as part:
            super().save(cfg, str(part), skip_unset=skip_none, **options | {"overwrite": True})


class _CommandLine(LightningCLI):
    def __init__(self, subcommand: str, **options: Any) -> None:
        self._asked_for = subcommand
        super().__init__(L.LightningModule, L.LightningDataModule, **options)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one that was asked for: the parsers of the others would take as long to make as all the rest."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name == self._asked_for}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = super().init_parser(**kwargs)
        parser.__class__ = _Parser  # Lightning makes no room for another class
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self._given = list(args)[1:]  # after the subcommand
        super().parse_arguments(parser, args)

    def _parse_ckpt_path(self) -> None:
        if path := self._checkpoint(self.config):  # Lightning reads its settings before anything is made
            try:
                read(path)
            except ValueError as error:
                _stop(error)
        super()._parse_ckpt_path()

    def _checkpoint(self, config: Any) -> Path | None:
        """The file that was given, if one was: a few words mean that the trainer finds it by itself."""
        path = (config.get(config.get("subcommand", "")) or {}).get("ckpt_path")
        return Path(path) if path and path not in _WORDS else None

    def instantiate_classes(self) -> None:
        try:
            given = self.config.get(str(self.subcommand), self.config)
            require_allowed(given)
            super().instantiate_classes()
            _require_sensible(self.trainer)
            _require_one_optimizer(self.model, given.get("optimizer"), given.get("lr_scheduler"))
        except (ValueError, TypeError, ModuleNotFoundError, MisconfigurationException) as error:
            reason = _reason(error)
            if not _ours(reason) and of_own_code(reason):
                raise reason from None  # the traceback finds it
            _stop(" ".join(str(reason).split()))

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[L.Callback]) -> L.Trainer:
        given = config.get("callbacks") or []
        own = any(isinstance(c, ProgressBar) for c in (given if isinstance(given, list) else [given]))
        if config.get("enable_progress_bar") is None and not own and not sys.stdout.isatty():
            config["enable_progress_bar"] = False  # a bar means nothing in a file
        return super()._instantiate_trainer(config, callbacks)

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            _stop(f"seed_everything: {error}")

    def _run_subcommand(self, subcommand: str) -> None:
        path = self._checkpoint(self.config)
        try:
            if path:
                require_fitting(path, self.model, self.trainer.max_epochs if subcommand == "fit" else None)
            if not any(getattr(keeper, "monitor", None) for keeper in self.trainer.checkpoint_callbacks):
                # What is not taken over is which checkpoint was the best, and none is looked for.
                warnings.filterwarnings("ignore", message="The dirpath has changed from")
                warnings.filterwarnings("ignore", message=_NO_KEEPER)
            for place in _places(self.trainer):
                require_writable(place)
            csv_files.write_whole(self.trainer)
            checkpoint_files.write_whole(self.trainer)
            without_flops(self.trainer)
            super()._run_subcommand(subcommand)
        except SystemExit as end:
            if end.code == 1 and isinstance(end.__context__, KeyboardInterrupt):  # Lightning ends with 1
                raise end.__context__ from None
            raise
        except CannotWrite as error:
            _stop(error)
        except Exception as error:
            if is_out_of_memory(error):
                _stop(too_large(getattr(self.datamodule, "batch_size", None), "--data.init_args.batch_size"))
            if isinstance(error, (ValueError, TypeError, FloatingPointError)) and _ours(error):
                _stop(error)
            if line := explained(error, path):
                _stop(line)
            raise  # of the user's own code, which its traceback finds

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """A checkpoint that the trainer finds by itself runs nothing either, whatever the configuration says."""
        options = super()._prepare_subcommand_kwargs(subcommand)
        return options | ({"weights_only": True} if "weights_only" in options else {})

    def fit(self, **options: Any) -> None:
        """The trainer's, which ends with a line that tells how to go on."""
        stopping = Stopping()
        self.trainer.callbacks.append(stopping)  # type: ignore[attr-defined]
        try:
            with stopping.listening(self.trainer):
                self.trainer.fit(**options)
        except (SystemExit, KeyboardInterrupt):
            if stopping.signal is None:
                raise
            if self.trainer.is_global_zero:
                with suppress(OSError):  # the terminal may have been closed
                    told = stopped(self.trainer, self._given, stopping.checkpoint, stopping.started)
                    print(told, file=sys.stderr)
            raise SystemExit(128 + stopping.signal) from None
        if self.trainer.is_global_zero:
            print(ending(self.trainer, self._given))


# What Lightning says where a checkpoint has the state of a `ModelCheckpoint` alone that is not there now.
_NO_KEEPER = r"Be aware that when using `ckpt_path`, callbacks .*callbacks: \[.ModelCheckpoint\{[^}]*\}.\]"
_WORDS = ("best", "last", "hpc")  # with which Lightning's trainer finds a checkpoint by itself


def _stop(why: object) -> NoReturn:
    print(f"ep-plugin: {why}", file=sys.stderr)
    raise SystemExit(2)


def _require_sensible(trainer: L.Trainer) -> None:
    """What Lightning does not look at, and divides by or turns the gradient around with."""
    count("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches)
    count("trainer.log_every_n_steps", trainer.log_every_n_steps, least=0)  # type: ignore[attr-defined]
    if trainer.check_val_every_n_epoch is not None:
        count("trainer.check_val_every_n_epoch", trainer.check_val_every_n_epoch)
    if trainer.gradient_clip_val is not None:
        not_negative("trainer.gradient_clip_val", trainer.gradient_clip_val)


def _require_one_optimizer(module: L.LightningModule, optimizer: object, schedule: object) -> None:
    """Lightning's options replace what a module configures, and a schedule alone counts for nothing."""
    if schedule and not optimizer:
        raise ValueError("--lr_scheduler counts only beside --optimizer; expected both, or neither")
    if optimizer and isinstance(module, Task) and (module.optimizer is not None or module.schedule != "constant"):
        what = "optimizer" if module.optimizer is not None else f"schedule={module.schedule!r}"
        raise ValueError(
            f"--optimizer takes the place of the model's own, with its {what}; expected one of both: "
            "--model.init_args.optimizer (with --model.init_args.schedule), or --optimizer (with --lr_scheduler)"
        )


def _places(trainer: L.Trainer) -> list[Path]:
    """Directories that a trainer writes its logs and checkpoints into."""
    logs = [getattr(logger, "root_dir", None) or logger.save_dir for logger in trainer.loggers]
    keepers = trainer.checkpoint_callbacks
    kept = [getattr(keeper, "dirpath", None) or (None if logs else trainer.default_root_dir) for keeper in keepers]
    return [Path(place) for place in (*logs, *kept) if place and "://" not in str(place)]


def _ours(error: BaseException) -> bool:
    """Whether this package has raised it, so that its message tells what to do."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(last.filename).is_relative_to(Path(ep_plugin.__file__).parent)


class _Refused(Exception):
    """What the parser says of the arguments and of the files that they name."""


_EMPTY = (  # starts of lines that say nothing of what is wrong
    *("Does not validate", "Subtypes", "Errors", "Expected a <class 'NoneType'>", "Given value type"),
    *("Subclass types expect one of", "a class path (str)", "a dict with", "a dict without"),
    *(
        "Given value: {",
        "Given value: [{",
        'in "<unicode',
    ),  # a whole table in Python's spelling; a place without a name
)
_OF_AN_ARGUMENT = ('Parser key "', "Option '")


def _condensed(message: str) -> str:
    """The lines that say something of a message that lists all types which a value is not."""
    if message.startswith("Unexpected config"):
        return "the configuration is empty, or no table of settings"
    lines = [line.strip().removeprefix("- ").rstrip(":") for line in message.splitlines()]
    said = [line.removeprefix("Problems parsing config: ") for line in lines if line and not line.startswith(_EMPTY)]
    if of_one := [line for line in said[1:] if line.startswith(_OF_AN_ARGUMENT)]:
        said = [said[0], *of_one]  # the class is right, and one of its arguments is not: no other type was meant
    whole = ": ".join(said) or lines[0]
    if "does not correspond to a subclass of" in whole and "annotated" not in whole:
        whole += " (a function has to be annotated to return one, such as `def net() -> nn.Module`)"
    return whole[:500]


_WRAPPED = ("Does not validate", "Problem with given class_path")


def _reason(error: BaseException) -> BaseException:
    """What a constructor raised: jsonargparse wraps it into a list of all the types that it tried."""
    while str(error).startswith(_WRAPPED) and (inner := error.__cause__ or error.__context__):
        error = inner
    return error


def run(subcommand: str, arguments: Sequence[str]) -> None:
    """What `ep-plugin SUBCOMMAND ARGUMENTS` does.

    Args:
        subcommand: "fit", "validate" or "test".
        arguments: such as `--config FILE`, `--trainer.max_epochs 3`.

    Raises:
        SystemExit: 2 if an argument or a setting is wrong, with a message that says which.
    """
    with without_foreign_notes():
        find_from_here()  # what a configuration names, as `ep-plugin check` and `python -m` find it
        from_arguments([subcommand, *arguments], run=True)


def from_arguments(arguments: Sequence[str], run: bool) -> LightningCLI:
    """The model, the data and the trainer that the arguments describe; `run` starts the subcommand too."""
    header = [f"{what}: {value}" for what, value in origin().items()]  # of the copy beside the logs
    options = {"dump_header": header, "parser_mode": plain_yaml.MODE}
    with warnings.catch_warnings():
        # The arguments are the command line's own, handed on; and a configuration says what is converted.
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        warnings.filterwarnings("ignore", category=ConversionWarning)
        try:
            return _CommandLine(
                arguments[0] if run else "",
                trainer_class=Trainer,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_kwargs={"overwrite": True},  # a second run in one directory is not an error
                parser_kwargs=options | ({arguments[0]: options} if run else {}),
                args=list(arguments),
                run=run,
            )
        except (_Refused, UnicodeDecodeError) as error:
            said = str(error) if isinstance(error, _Refused) else "the configuration is no text"
            given = [str(file) for word, file in pairwise(arguments) if word in ("--config", "-c")]
            where = f" (in {', '.join(given)})" if given else ""
            _stop(f"{said}{where}; `ep-plugin fit --help` and examples/recipes show what is accepted")
