"""What all commands share: bounds of numbers, and how they end where they are interrupted or cannot write."""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from ep_plugin.signals import exit_code, terminated_as_interrupted

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # the last one of a terminal that has been closed

_MOST = 2**31 - 1  # what a tensor's size and a seed may be everywhere

Number = int | None


def at_least(least: int) -> Callable[[typer.CallbackParam, Number], Number]:
    """For an option: stops where its number is less, or larger than any that can be meant."""

    def checked(option: typer.CallbackParam, value: Number) -> Number:
        if value is not None and not least <= value <= _MOST:
            bounds = f"{least} or more" if value < least else f"{_MOST:,} or less"
            _say(f"{option.name} is {value}; expected a whole number, {bounds}")
            raise typer.Exit(2)
        return value

    return checked


class Commands(TyperGroup):
    """The commands of `ep-plugin`."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with terminated_as_interrupted():
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            _say("interrupted")
            raise typer.Exit(exit_code(error)) from None

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            try:
                return super().main(*args, **options)
            finally:
                sys.stdout.flush()  # here, and not when Python ends, which would tell of an error in its own words
        except OSError as error:
            if error.filename is not None or error.errno not in (*_NO_ROOM, errno.EPIPE):
                raise
            _end_without_output(error)


def _end_without_output(error: OSError) -> NoReturn:
    """A reader that has gone (`| head`) has seen enough; a full disk is told."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is written when Python ends
    if error.errno == errno.EPIPE:
        raise SystemExit(1) from None
    _say(f"cannot write the output: {error.strerror}")
    raise SystemExit(2) from None


def _say(what: str) -> None:
    with suppress(OSError):  # the terminal may have been closed
        typer.echo(f"ep-plugin: {what}", err=True)
