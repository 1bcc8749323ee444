"""Numbers of the commands that nobody can mean are refused in one line, before anything is loaded."""

import pytest
from typer.testing import CliRunner

from ep_plugin.cli import app

LARGE = str(10**20)
OPTIONS = {
    "check x": ("--batch-size", "--seed"),
    "count x": ("--batch-size", "--num-steps"),
    "profile": ("--batch-size", "--repeats"),
    "evaluate mnist-vgg": ("--batch-size",),
    "compare": ("--epochs", "--batch-size", "--train-samples", "--seed", "--seeds"),
}


@pytest.mark.parametrize(
    ("command", "option"), [(command, option) for command, options in OPTIONS.items() for option in options]
)
def test_numbers_out_of_bounds(command, option):
    name, least = option[2:].replace("-", "_"), 0 if option == "--seed" else 1
    for value, bounds in ((LARGE, "2,147,483,647 or less"), (str(least - 1), f"{least} or more")):
        done = CliRunner().invoke(app, [*command.split(), option, value])
        assert done.exit_code == 2
        assert done.output == f"ep-plugin: {name} is {value}; expected a whole number, {bounds}\n"
