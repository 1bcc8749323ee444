"""What the commands say: nothing of other packages' making, and how to go on.

Those that take a quarter of a minute each: `pytest -m slow tests/lightning/test_quiet.py`.
"""

import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from test_module import loader, make_model, trainer
from typer.testing import CliRunner

import ep_plugin as ep
from ep_plugin.cli import app
from ep_plugin.lightning.ending import ending
from ep_plugin.quiet import without_foreign_notes

DIGITS = str(Path(__file__).parents[2] / "examples" / "configs" / "digits.yaml")
SHORT = ["--data.init_args.train_samples=64", "--trainer.accelerator=cpu"]
FOREIGN = re.compile(
    r"\bTip\b|http|site-packages|Warning|deprecat|litlogger|litmodels|TPU|workers|logging interval|━", re.I
)
MINE = """
import warnings
import snntorch as snn
from torch import nn
def net() -> nn.Sequential:
    warnings.warn("mine is outdated", FutureWarning)
    warnings.warn("mine is odd")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), snn.Leaky(0.9, init_hidden=True), nn.Linear(16, 10))
"""


def run(command, where):
    """stdout and stderr of a command, which is a success and says nothing foreign."""
    entry = [sys.executable, "-m", "ep_plugin.cli", *command]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(where), os.environ.get("PYTHONPATH")]))}
    done = subprocess.run(entry, cwd=where, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not FOREIGN.search(re.sub("[┏┡━╇┳┩┓]{2,}", "", done.stdout)), done.stdout  # but for a table's lines
    return done.stdout, done.stderr


def followed(line, what):
    """The command that the last line advises."""
    command = shlex.split(re.search(rf"{what}: (ep-plugin [^;]*)", line).group(1))
    assert command[0] == "ep-plugin"
    return command[1:]


def test_commands_and_those_that_the_last_line_advises(tmp_path):
    out, err = run(["fit", "--config", DIGITS, *SHORT, "--trainer.max_epochs=1"], tmp_path)
    assert err == ""
    last = out.splitlines()[-1]
    path = "lightning_logs/version_0/checkpoints/epoch=0-step=2.ckpt"
    assert re.match(rf"Trained 1 epoch, val/accuracy \d+\.\d %\. Checkpoint: {path}\. Test it: ", last)
    assert (tmp_path / path).exists()

    out, err = run(followed(last, "Test it"), tmp_path)
    assert "test/accuracy" in out
    assert all(note.startswith(("Restoring states from", "Loaded model weights from")) for note in err.splitlines())

    out, err = run(followed(last, "Train on"), tmp_path)
    assert "Trained 2 epochs, val/accuracy" in out
    assert all(note.startswith(("Restoring states from", "Restored all states from")) for note in err.splitlines())
    again = followed(out.splitlines()[-1], "Train on")
    assert again.count("--ckpt_path") == again.count("--trainer.max_epochs") == 1
    assert not any(word.startswith("--trainer.max_epochs=") for word in again)

    out, err = run(["validate", "--config", DIGITS, *SHORT], tmp_path)
    assert "val/accuracy" in out
    assert err == ""


def test_what_a_users_own_net_and_settings_say_is_told(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    own = ["--model.init_args.model.init_args.net=mine.net", "--model.init_args.schedule=cosine"]
    settings = ["--trainer.max_epochs=1", "--trainer.detect_anomaly=true", "--trainer.gradient_clip_val=1"]
    _, err = run(["fit", "--config", DIGITS, *SHORT, *own, *settings], tmp_path)
    said = err.splitlines()
    warned = [line for line in said if "mine is" in line and not line.startswith(" ")]
    assert [re.sub(r".*mine\.py:\d+: ", "", line) for line in warned] == [
        "FutureWarning: mine is outdated",
        "UserWarning: mine is odd",
    ]
    assert any(line.startswith("You have turned on `Trainer(detect_anomaly=True)`") for line in said)
    others = [line for line in said if line not in warned and not line.startswith(("  warnings.warn(", "You have"))]
    assert others == []


@pytest.mark.parametrize(
    "command",
    [
        ["check", "mine:net", "--shape", "1,8,8"],
        ["count", "mine:net", "--shape", "1,8,8", "--picture", "operations.png"],
    ],
    ids=lambda command: command[0],
)
def test_commands_for_a_net_of_ones_own(command, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    out, err = run(command, tmp_path)
    assert out
    assert [line for line in err.splitlines() if "mine" not in line and not line.startswith("  warnings.warn(")] == []
    assert err.count("mine is odd") == 1 + err.count('warn("mine is odd')


@pytest.mark.parametrize(
    "command",
    [
        ["profile", "--model", "digits", "--repeats", "1"],
        pytest.param(["compare", "--epochs", "1", "--train-samples", "64"], marks=pytest.mark.slow),
    ],
    ids=lambda command: command[0],
)
def test_commands_of_the_packages_own_nets(command, tmp_path):
    out, err = run(command, tmp_path)
    assert out
    assert err == ""


@pytest.mark.slow
def test_evaluate(tmp_path, data_dir):
    out, err = run(["evaluate", "mnist-2c2fc", "--data-dir", str(data_dir), "--batch-size", "1000"], tmp_path)
    assert re.fullmatch(r"mnist-2c2fc: test error .* of 10,000 images, .*\n", out)
    assert err == ""


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_what_a_configuration_asks_for_is_not_told(tmp_path, monkeypatch, recwarn):
    """A test without a trainer's checkpoints, of one that had some; an optimizer; all batches."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # which a run sets; taken back after the test
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["--config", DIGITS, *SHORT, "--trainer.logger=false", "--optimizer=SGD", "--optimizer.lr=0.1"]
    arguments += ["--trainer.limit_val_batches=1.0", "--trainer.max_epochs=1"]
    done = CliRunner().invoke(app, ["fit", *arguments])
    assert done.exit_code == 0, done.output
    assert "FLOPs" not in done.output
    assert "Trainable params: " in done.output
    (kept,) = tmp_path.rglob("*.ckpt")
    done = CliRunner().invoke(
        app, ["test", *arguments, "--trainer.enable_checkpointing=false", "--ckpt_path", str(kept)]
    )
    assert done.exit_code == 0, done.output
    told = [str(warning.message) for warning in recwarn]
    assert not [text for text in told if "Be aware that" in text or "will be overridden" in text]


def warned(message, category, module):
    """As if the module's own code had warned."""
    warnings.warn_explicit(message, category, f"{module}.py", 1, module=module)


def test_what_stays(caplog):
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addHandler(caplog.handler)
    told = ("GPU available: True (cuda), used: True", "`Trainer.fit` stopped: No training batches.")
    notes = (
        "💡 Tip: buy",
        "TPU available: False",
        "[rank: 1] Seed set to 0",
        "`Trainer(limit_val_batches=1.0)` was configured so 100% of the batches will be used..",
        "`Trainer.fit` stopped: `max_steps=1` reached.",
    )
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with without_foreign_notes():
                warned("f is outdated", FutureWarning, "lightning.pytorch.utilities._pytree")
                warned("f is outdated", DeprecationWarning, "torch.utils.data")
                warned("f is outdated", FutureWarning, "my_nets")
                warned("f is outdated", DeprecationWarning, "torches")
                warned("weights grow", UserWarning, "lightning")
                warned("The 'val_dataloader' does not have many workers which", UserWarning, "lightning.pytorch")
                with caplog.at_level(logging.INFO, logger.name):
                    for note in (*notes, *told):
                        rank_zero_info(note)
            warned("f is outdated", FutureWarning, "lightning.pytorch.utilities._pytree")
    finally:
        logger.removeHandler(caplog.handler)
    kept = [(str(w.message), Path(w.filename).stem) for w in caught]
    assert kept == [
        ("f is outdated", "my_nets"),
        ("f is outdated", "torches"),
        ("weights grow", "lightning"),
        ("f is outdated", "lightning.pytorch.utilities._pytree"),
    ]
    assert {record.getMessage() for record in caplog.records} == set(told)


def test_only_for_the_commands():
    """Neither an import nor a command that is over leaves a filter behind."""
    code = """
import logging, warnings
import lightning, snntorch, torchmetrics, norse
def state():
    names = list(logging.root.manager.loggerDict)
    return list(warnings.filters), {name: list(logging.getLogger(name).filters) for name in names}
before = state()
import ep_plugin.cli, ep_plugin.lightning.cli, ep_plugin.lightning.module
assert state()[0] == before[0]
assert not any(filters for filters in state()[1].values())
with ep_plugin.quiet.without_foreign_notes():
    assert any(filters for filters in state()[1].values())
assert state()[0] == before[0] and not any(filters for filters in state()[1].values())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_endings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def ended(arguments=(), task=None, **options):
        run = trainer(tmp_path, **{"max_epochs": 1} | options)
        run.fit(ep.EPLightningModule(make_model()[0], **task or {}), loader())
        return ending(run, arguments)

    assert ended().endswith("No checkpoint was kept: the trainer's checkpoints are switched off.")
    kept = {"enable_checkpointing": True}
    assert ended(**kept | {"max_epochs": 0}).endswith("No checkpoint was kept.")
    assert re.match(
        r"Trained 1 epoch, train/accuracy [\d.]+ %\. Checkpoint: checkpoints/epoch=0-step=6\.ckpt", ended(**kept)
    )
    line = ended(["--config", "a b.yaml", "--ckpt_path", "old.ckpt", "--trainer.max_steps=4"], max_steps=4, **kept)
    assert followed(line, "Test it")[:5] == ["test", "--config", "a b.yaml", "--trainer.max_steps=4", "--ckpt_path"]
    longer = [
        "--trainer.max_epochs",
        "2",
        "--trainer.max_steps",
        "8",
    ]  # the epoch that the steps have cut off has ended
    assert followed(line, "Train on")[:8] == ["fit", "--config", "a b.yaml", *longer, "--ckpt_path"]
    assert "old.ckpt" not in line
    # A cosine has come to its end, and would rise again.
    assert "Train on" not in ended(task={"schedule": "cosine"}, **kept)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_ending_of_a_module_that_logs_under_other_names(tmp_path):
    class Plain(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(64, 10)

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    run = trainer(tmp_path, max_epochs=2)
    run.fit(Plain(), loader())
    assert ending(run, []).startswith("Trained 2 epochs. No checkpoint")


def begun(arguments, where, file):
    """A `fit` that trains: it has written the file."""

    def heed_signals() -> None:  # a shell's background jobs inherit that they are ignored
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    command = [sys.executable, "-m", "ep_plugin.cli", "fit", "--config", DIGITS, *SHORT, *arguments]
    process = subprocess.Popen(
        command, cwd=where, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_signals
    )
    while not list(where.glob(file)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sends signals")
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(signal.SIGINT, 130, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, 143, id="SIGTERM", marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, id="SIGHUP", marks=pytest.mark.slow),
    ],
)
def test_a_training_that_is_stopped_tells_how_to_go_on(tmp_path, sent, code):
    process = begun(["--trainer.max_epochs=100000"], tmp_path, "lightning_logs/version_0/checkpoints/*.ckpt")
    try:
        process.send_signal(sent)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in out + err
    (line,) = err.splitlines()
    match = re.match(r"Stopped in epoch (\d+), after step \d+\. Checkpoint: (\S+\.ckpt)\. Resume: ep-plugin fit ", line)
    place = tmp_path / match[2]
    assert all(path.suffix == ".ckpt" for path in place.parent.iterdir())  # no half of a file
    command, epochs = followed(line, "Resume"), int(match[1]) + 1
    assert command[-1] == match[2]
    out, _ = run([*command, f"--trainer.max_epochs={epochs}"], tmp_path)
    assert f"Trained {epochs} epochs" in out


STOPS = """
import os, signal
import lightning as L
class Stops(L.Callback):
    def on_test_batch_start(self, *_):
        os.kill(os.getpid(), signal.{})
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sends signals")
@pytest.mark.parametrize(("sent", "code"), [("SIGTERM", 143), pytest.param("SIGINT", 130, marks=pytest.mark.slow)])
def test_a_test_that_is_stopped_ends_with_the_code_of_the_signal(tmp_path, sent, code):
    (tmp_path / "stops.py").write_text(STOPS.format(sent))
    command = ["test", "--config", DIGITS, *SHORT, "--trainer.callbacks=stops.Stops"]
    entry = [sys.executable, "-c", f"import sys; sys.argv[1:] = {command}; from ep_plugin.cli import main; main()"]
    done = subprocess.run(entry, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stderr == "ep-plugin: interrupted\n"
