"""What all commands share: how they end when they are interrupted, or their output cannot be written."""

import errno
import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from ep_plugin.signals import exit_code, terminated_as_interrupted

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # the last one of a terminal that has been closed


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
