"""The comparison and its command line, in short runs."""

import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from typer.testing import CliRunner

from ep_plugin.cli import app

FILES = {"comparison.csv", "history.csv", "comparison.png"}


def test_short_run_twice_in_one_directory(tmp_path):
    for epochs in ("1", "2"):
        options = ["--epochs", epochs, "--train-samples", "96", "--output-dir", str(tmp_path)]
        result = CliRunner().invoke(app, ["compare", *options])
        assert result.exit_code == 0, result.output
        for word in ("EP", "BPTT", "test accuracy", "spikes", "seed 0", "digits"):
            assert word in result.output
    assert {p.name for p in tmp_path.iterdir()} == FILES
    table = pd.read_csv(tmp_path / "comparison.csv")
    assert list(table.contender) == ["EP", "BPTT"]
    assert (table.peak_memory_mb > 0).all()
    memory = table.set_index("contender").peak_memory_mb
    assert memory["EP"] < memory["BPTT"]  # which keeps 25 steps
    assert (table.spikes_per_inference > 0).all()
    assert len(pd.read_csv(tmp_path / "history.csv")) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "cifar"], "'digits', 'mnist', 'fashion-mnist'"),
        (["--encoder", "rate"], "'adaptive_delta'"),
        (["--encoder", "predictive"], "now called 'predictive_sigma_delta'"),
        (["--epochs", "0"], "epochs is 0"),
        (["--batch-size", "-1"], "batch_size is -1"),
        (["--data", "mnist", "--data-dir", "nowhere"], "no MNIST in"),
        (["--output-dir", "/proc/nowhere"], "cannot write"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(options, message):
    result = CliRunner().invoke(app, ["compare", *options])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_help():
    result = CliRunner().invoke(app, ["compare", "--help"])
    assert result.exit_code == 0
    for option in (
        "--data",
        "--data-dir",
        "--epochs",
        "--batch-size",
        "--train-samples",
        "--encoder",
        "--seed",
        "--output-dir",
    ):
        assert option in result.output


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_keeps_what_has_finished(tmp_path):
    command = [sys.executable, "-m", "ep_plugin.cli", "compare", "--epochs", "8", "--output-dir", str(tmp_path)]

    def heed_interrupts() -> None:  # a shell's background jobs inherit that they are ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    )
    try:
        while not (tmp_path / "comparison.png").exists():  # EP has finished, BPTT trains
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert list(pd.read_csv(tmp_path / "comparison.csv").contender) == ["EP"]
