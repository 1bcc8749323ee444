"""The comparison and its command line, in short runs."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from ep_plugin.cli import app
from ep_plugin.comparison import Comparison, ComparisonSettings
from ep_plugin.comparison.results import Result, picture

FILES = {"comparison.csv", "history.csv", "comparison.png"}


def test_two_runs_and_two_seeds(tmp_path):
    for seeds in ("1", "2"):
        options = ["--epochs", "1", "--train-samples", "96", "--seeds", seeds, "--output-dir", str(tmp_path)]
        result = CliRunner().invoke(app, ["compare", *options])
        assert result.exit_code == 0, result.output
        for word in ("EP", "BPTT", "test accuracy", "spikes", "digits"):
            assert word in result.output
    assert "±" in result.output
    assert "seeds 0 to 1" in " ".join(result.output.split())
    assert {p.name for p in tmp_path.iterdir()} == {"run-1", "run-2"}
    assert {p.name for p in (tmp_path / "run-2").iterdir()} == FILES
    assert len(pd.read_csv(tmp_path / "run-1" / "comparison.csv")) == 2
    table = pd.read_csv(tmp_path / "run-2" / "comparison.csv")
    assert list(zip(table.contender, table.seed, strict=True)) == [("EP", 0), ("BPTT", 0), ("EP", 1), ("BPTT", 1)]
    assert (table.peak_memory_mb > 0).all()
    memory = table.groupby("contender").peak_memory_mb.mean()
    assert memory["EP"] < memory["BPTT"]  # which keeps 25 steps
    assert (table.spikes_per_inference > 0).all()
    operations = table.groupby("contender").operations_per_trained_image.mean()
    assert 0 < operations["EP"] < operations["BPTT"]
    assert {"torch", "snntorch", "ep-plugin", "written", "lr", "epochs"} <= set(table.columns)
    history = pd.read_csv(tmp_path / "run-2" / "history.csv")
    assert list(history.epoch) == [1, 1, 1, 1]
    assert list(history.test_accuracy) == list(table.test_accuracy)


def test_the_picture_has_means_and_bands():
    accuracies = {"EP": ([0.5, 0.8], [0.7, 0.9]), "BPTT": ([0.6], [])}  # one is in its second epoch, one has not begun
    results = [
        Result(name, seed, own, [2.0 + seed] * len(own))
        for name, both in accuracies.items()
        for seed, own in enumerate(both)
    ]
    figure = picture(results, ComparisonSettings(seeds=2, epochs=2))
    left, right = figure.axes
    assert [list(line.get_ydata()) for line in left.lines] == [pytest.approx([60, 85]), [60]]
    assert list(right.lines[0].get_xdata()) == [2.5, 5]
    (band,) = left.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((50, 90))
    assert figure.get_suptitle().startswith("The same spiking net on digits, trained by equilibrium propagation (EP)")
    assert "Mean of 2 seeds" in figure.get_supxlabel()
    assert "seeds 0 to 1" in " ".join(figure.get_supxlabel().split())
    alone = picture(results[:1], ComparisonSettings())
    assert not alone.axes[0].collections
    assert "Mean" not in alone.get_supxlabel()


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A module of the user's, in the directory of the command."""
    layers = "nn.Flatten(), nn.Linear(64, 16), snn.Leaky(0.9{}), nn.Linear(16, 10)"
    (tmp_path / "my_nets.py").write_text(
        "import snntorch as snn\nfrom torch import nn\n"
        f"def net():\n    return nn.Sequential({layers.format(', init_hidden=True')})\n"
        "def of_other_images():\n    return nn.Sequential(nn.Flatten(), nn.Linear(63, 16), *list(net())[2:])\n"
        f"def shows_its_state():\n    return nn.Sequential({layers.format('')})\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield
    sys.modules.pop("my_nets", None)


QUICK = {"epochs": 2, "train_samples": 32, "net": "my_nets:net", "num_steps": 2}


def test_net_of_ones_own(nets, tmp_path):
    options = ["--net", "my_nets:net", "--epochs", "1", "--train-samples", "32", "--output-dir", "out"]
    result = CliRunner().invoke(app, ["compare", *options])
    assert result.exit_code == 0, result.output
    assert "the same my_nets:net on digits" in " ".join(result.output.split())
    assert list(pd.read_csv(tmp_path / "out" / "run-1" / "comparison.csv").net) == ["my_nets:net"] * 2


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ("my_nets:shows_its_state", "init_hidden=True"),
        ("my_nets:nothing", "has no 'nothing'"),
        ("my_nets", "path.to.module:net"),
        ("nowhere:net", "no module 'nowhere'"),
    ],
)
def test_net_that_one_of_them_cannot_train(nets, tmp_path, net, message):
    result = CliRunner().invoke(app, ["compare", "--net", net, "--output-dir", "out"])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()  # nothing was trained


def test_a_run_of_which_nothing_came_leaves_no_directory(nets, tmp_path):
    options = ["--net", "my_nets:of_other_images", "--epochs", "1", "--train-samples", "32", "--output-dir", "out"]
    result = CliRunner().invoke(app, ["compare", *options])
    assert result.exit_code != 0
    assert "EP: an input of shape [32, 1, 8, 8] does not fit" in " ".join(result.output.split())
    assert not list((tmp_path / "out").iterdir())


def test_contender_that_dies_leaves_its_epochs(nets, tmp_path):
    run = Comparison(ComparisonSettings(**QUICK), tmp_path / "out")

    def kill(result):
        if result.contender == "BPTT" and result.accuracy:
            multiprocessing.active_children()[0].kill()

    with pytest.raises(RuntimeError, match="process of BPTT was ended by SIGKILL; was it out of memory"):
        run.run(kill)
    assert list(pd.read_csv(run.directory / "comparison.csv").contender) == ["EP"]
    assert list(pd.read_csv(run.directory / "history.csv").contender)[:3] == ["EP", "EP", "BPTT"]


def test_full_disk_is_told_after_the_table(nets, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ep_plugin.files.os.fsync", full)
    options = ["--net", "my_nets:net", "--epochs", "1", "--train-samples", "32", "--output-dir", "out"]
    result = CliRunner().invoke(app, ["compare", *options])
    assert result.exit_code == 2
    shown, said = result.output.index("test accuracy"), result.output.index("No space left on device")
    assert shown < said
    assert "Traceback" not in result.output
    assert not list((tmp_path / "out").rglob("*"))  # no half of a file


def test_read_only_directory(tmp_path):
    place = tmp_path / "out"
    place.touch()  # a file in the directory's place cannot be written into by anybody, root either
    result = CliRunner().invoke(app, ["compare", "--output-dir", str(place)])
    assert result.exit_code == 2
    assert f"cannot write {place}" in " ".join(result.output.split())


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
        (["--seeds", "0"], "seeds is 0"),
        (["--seed", "-1"], "seed is -1"),
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
        "--seeds",
        "--net",
        "--output-dir",
    ):
        assert option in result.output


def begun(tmp_path, *options):
    """The command, when EP has finished and BPTT trains."""
    command = [sys.executable, "-m", "ep_plugin.cli", "compare", "--output-dir", str(tmp_path), *options]

    def heed_interrupts() -> None:  # a shell's background jobs inherit that they are ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    )
    while not (tmp_path / "run-1" / "comparison.csv").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    time.sleep(1)
    return process


def children(process):
    return [int(n) for n in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def await_end(processes):
    until = time.monotonic() + 20
    while any(Path(f"/proc/{n}").exists() for n in processes):
        assert time.monotonic() < until, "they run on"
        time.sleep(0.2)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sends signals, looks at /proc")
@pytest.mark.parametrize(
    ("sent", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_ctrl_c_and_sigterm_keep_what_has_finished(tmp_path, sent, code):
    process = begun(tmp_path, "--epochs", "2", "--train-samples", "400")
    trained = children(process)
    try:
        process.send_signal(sent)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert "interrupted; what had finished is in" in errors
    assert "Traceback" not in errors
    assert list(pd.read_csv(tmp_path / "run-1" / "comparison.csv").contender) == ["EP"]
    await_end(trained)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sends signals, looks at /proc")
def test_no_process_outlives_a_command_that_was_killed(tmp_path):
    process = begun(tmp_path, "--epochs", "2", "--train-samples", "400")
    trained = children(process)
    assert trained
    process.kill()
    process.communicate()
    await_end(trained)
