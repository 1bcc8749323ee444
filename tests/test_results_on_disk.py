"""What the commands write is written whole or not at all, apart from other runs, and tells where it is from."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from typer.testing import CliRunner

from ep_plugin import files
from ep_plugin.cli import app
from ep_plugin.lightning import csv_files
from ep_plugin.signals import terminated_as_interrupted

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits files, sends signals")

DIGITS = ["--config", str(Path(__file__).parents[1] / "examples" / "configs" / "digits.yaml")]
SHORT = [*DIGITS, "--trainer.max_epochs=1", "--data.init_args.train_samples=64", "--trainer.accelerator=cpu"]
RECORD = json.dumps([{"class_path": "ep_plugin.RecordErrors", "init_args": {"path": "lines.jsonl", "name": "digits"}}])
NET = "from ep_plugin.models import small_convolutional as net\n"


def full_disk_at(size):
    """For a process to be started: files end at so many bytes, with the error that a full disk has the like of."""
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def start(command, where, **options):
    paths = os.pathsep.join(filter(None, [str(where), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, *command], cwd=where, env=os.environ | {"PYTHONPATH": paths}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def written(where):
    return sorted(path.name for path in where.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def refused(process):
    """The one line of a command that could not write."""
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    (line,) = err.splitlines()
    return line


def test_fit_on_a_full_disk(tmp_path):
    """Room for the configuration and the rows, not for the checkpoint."""
    line = refused(start(["-m", "ep_plugin.cli", "fit", *SHORT], tmp_path, preexec_fn=full_disk_at(20_000)))
    place = "lightning_logs/version_0/checkpoints/epoch=0-step=2.ckpt"
    assert line == (
        f"ep-plugin: cannot write {tmp_path / place}: File too large; make room there, or name another directory"
    )
    assert written(tmp_path) == ["config.yaml", "metrics.csv"]


def test_count_on_a_full_disk(tmp_path):
    (tmp_path / "mine.py").write_text(NET)
    command = ["-m", "ep_plugin.cli", "count", "mine:net", "--shape", "1,8,8", "--picture", "operations.png"]
    line = refused(start(command, tmp_path, preexec_fn=full_disk_at(1000)))
    assert line.startswith("ep-plugin: cannot write operations.png: File too large; make room there")
    assert written(tmp_path) == ["mine.py"]


SCRIPT = """
import pytest, torch
from pathlib import Path
from ep_plugin import files
lines = Path("lines.jsonl")
lines.write_text(4000 * "x" + "\\n")
with pytest.raises(files.CannotWrite, match="cannot write lines.jsonl: File too large; make room"):
    files.append(lines, 200 * "y" + "\\n")
assert lines.read_text() == 4000 * "x" + "\\n"
with pytest.raises(files.CannotWrite, match="cannot write net.pt: File too large"):
    files.save({"w": torch.rand(10000)}, Path("net.pt"))
files.save({"w": torch.rand(100)}, Path("small.pt"))
"""


def test_lines_and_tensors_on_a_full_disk(tmp_path):
    process = start(["-c", SCRIPT], tmp_path, preexec_fn=full_disk_at(4096))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert written(tmp_path) == ["lines.jsonl", "small.pt"]


@pytest.mark.parametrize(
    ("command", "place"),
    [
        (["fit", *SHORT, "--trainer.default_root_dir=taken"], "taken/lightning_logs"),
        (["test", *SHORT, "--trainer.default_root_dir=taken"], "taken/lightning_logs"),
        (["fit", *SHORT, "--trainer.callbacks", RECORD.replace("lines", "taken/lines")], "taken"),
        (["count", "mine:net", "--shape", "1,8,8", "--picture", "taken/operations.png"], "taken/operations.png"),
        (["compare", "--output-dir", "taken"], "taken"),
    ],
    ids=["fit", "test", "RecordErrors", "count", "compare"],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_directory_that_cannot_be_written(command, place, tmp_path, monkeypatch):
    """A file in its place: into that nobody can write, root either."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # which a run sets; taken back after the test
    (tmp_path / "mine.py").write_text(NET)
    (tmp_path / "taken").touch()
    done = CliRunner().invoke(app, command)
    sys.modules.pop("mine", None)
    assert done.exit_code == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("ep-plugin: ")]
    assert re.match(rf"ep-plugin: cannot write (\S*/)?{place}: \w[\w ]+; make room there, or name another", line)
    assert "Traceback" not in done.output
    assert written(tmp_path) == ["mine.py", "taken"]


def test_a_line_after_half_a_line(tmp_path):
    """That a killed process has left."""
    place = tmp_path / "lines.jsonl"
    files.append(place, "first\n")
    files.append(place, "second\n")
    with place.open("a") as file:
        file.write('{"half')
    files.append(place, "third\n")
    assert place.read_text() == 'first\nsecond\n{"half\nthird\n'


def test_nothing_is_left_of_what_sigterm_interrupts(tmp_path):
    code = """
import os, signal, time
from pathlib import Path
from ep_plugin.files import whole
from ep_plugin.signals import terminated_as_interrupted
with terminated_as_interrupted(), whole(Path("table.csv")) as part:
    part.write_text("half")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""
    process = start(["-c", code], tmp_path)
    _, err = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "Terminated" in err
    assert written(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_command_that_writes_nothing_is_interrupted_in_a_line(tmp_path, sent, code):
    (tmp_path / "mine.py").write_text("import time\nopen('begun', 'w').close()\ntime.sleep(60)\n")

    def heed_signals() -> None:  # a shell's background jobs inherit that they are ignored
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    process = start(["-m", "ep_plugin.cli", "check", "mine:net"], tmp_path, preexec_fn=heed_signals)
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(sent)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (code, "", "ep-plugin: interrupted\n")


COMMANDS = ["check x", "count x", "evaluate x", "profile", "compare", "fit", "validate", "test"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[0])
def test_every_command_says_that_it_is_interrupted(command, monkeypatch):
    """While it loads as later."""
    for sent, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        before = signal.signal(sent, signal.default_int_handler if sent == signal.SIGINT else signal.SIG_DFL)
        try:
            for module in ("cli", "cli_count", "cli_compare"):
                monkeypatch.setattr(f"ep_plugin.{module}.working", lambda _, sent=sent: signal.raise_signal(sent))
            done = CliRunner().invoke(app, command.split())
        finally:
            signal.signal(sent, before)
        assert (done.exit_code, done.stdout, done.stderr) == (code, "", "ep-plugin: interrupted\n")


def test_signals_that_are_ignored_stay_so():
    """As `nohup` asks for."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminated_as_interrupted():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


class Full(io.StringIO):
    """What cannot be written."""

    number = errno.ENOSPC

    def flush(self):
        raise OSError(self.number, os.strerror(self.number))


class Closed(Full):
    """Whose reader has gone."""

    number = errno.EPIPE


@pytest.mark.parametrize(
    ("output", "code", "said"), [(Full, 2, "cannot write the output: No space left"), (Closed, 1, "")]
)
@pytest.mark.parametrize("command", [["--help"], ["count", "mine:net", "--shape", "1,8,8"]], ids=["help", "count"])
def test_output_that_cannot_be_written(command, output, code, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "stdout", output())
    with pytest.raises(SystemExit) as end:
        app(command)
    sys.modules.pop("mine", None)
    assert end.value.code == code
    assert capsys.readouterr().err == (f"ep-plugin: {said} on device\n" if said else "")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_test_that_is_interrupted_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")

    def interrupted(*_):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("ep_plugin.lightning.module.EPLightningModule.test_step", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    done = CliRunner().invoke(app, ["test", *SHORT])
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (143, "ep-plugin: interrupted")
    assert signal.getsignal(signal.SIGTERM) == before


def test_no_worker_outlives_a_training_that_is_stopped(tmp_path):
    workers = ["--data.init_args.num_workers=2", "--trainer.max_epochs=100000"]
    process = start(["-m", "ep_plugin.cli", "fit", *SHORT, *workers], tmp_path)
    while not list(tmp_path.rglob("*.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    theirs = [int(n) for n in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.splitlines()[-1].startswith("Stopped in epoch ")
    assert len(theirs) >= 2
    until = time.monotonic() + 20
    while any(Path(f"/proc/{n}").exists() for n in theirs):
        assert time.monotonic() < until, "they run on"
        time.sleep(0.1)
    assert not [name for name in written(tmp_path) if name.startswith(".") or name.endswith(".part")]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_where_results_are_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    for _ in range(2):
        done = CliRunner().invoke(app, ["fit", *SHORT, "--trainer.callbacks", RECORD])
        assert done.exit_code == 0, done.output
    logs = tmp_path / "lightning_logs"
    assert written(logs) == sorted(2 * ["config.yaml", "epoch=0-step=2.ckpt", "metrics.csv"])
    assert written(tmp_path / "lightning_logs" / "version_1") == ["config.yaml", "epoch=0-step=2.ckpt", "metrics.csv"]
    config = (logs / "version_0" / "config.yaml").read_text()
    for word in ("# ep-plugin: ", "# torch: ", "# snntorch: ", "# written: 20", "seed_everything: 0", "lr: 0.01"):
        assert word in config
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert line["seed"] == 0
        assert (line["optimizer"], line["lr"], line["schedule"]) == ("Adam", 0.01, "constant")
        assert {"started", "torch", "ep_plugin", "encoder", "estimator", "batch_size"} <= set(line)


def test_two_runs_that_begin_together_have_logs_of_their_own(tmp_path):
    trainers = [L.Trainer(logger=CSVLogger(tmp_path), accelerator="cpu") for _ in range(2)]
    for trainer in trainers:
        csv_files.write_whole(trainer)
    first, second = (trainer.logger for trainer in trainers)
    assert first.version != second.version  # before either has written
    for number, logger in enumerate((first, second)):
        logger.log_metrics({"loss": number}, step=0)
        logger.save()
    assert [pd.read_csv(Path(logger.log_dir) / "metrics.csv").loss.item() for logger in (first, second)] == [0, 1]


def test_rows_are_those_of_lightnings_own_logger(tmp_path):
    """Also where columns come later, and numbers that a row lacks."""

    def log(name, whole):
        trainer = L.Trainer(logger=CSVLogger(tmp_path, name=name, flush_logs_every_n_steps=2), accelerator="cpu")
        if whole:
            csv_files.write_whole(trainer)
        logger = trainer.logger
        logger.log_hyperparams({"lr": 0.1})
        for step in range(5):
            logger.log_metrics({"loss": torch.tensor(0.1 * step), "epoch": step // 2}, step)
            if step > 2:
                logger.log_metrics({"accuracy": 0.3}, step)
        logger.finalize("success")
        return [(Path(logger.log_dir) / file).read_bytes() for file in ("metrics.csv", "hparams.yaml")]

    assert log("own", True) == log("lightning", False)
