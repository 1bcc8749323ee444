"""`ep-plugin fit`, `validate` and `test` from configurations."""

import json
import struct
import subprocess
import sys
import traceback
from pathlib import Path

import pandas as pd
import pytest
import snntorch.functional as SF
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

import ep_plugin as ep
from ep_plugin.cli import app
from ep_plugin.lightning.cli import from_arguments
from ep_plugin.models import small_convolutional

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"
DIGITS = ["--config", str(CONFIGS / "digits.yaml")]
SHORT = ["--trainer.max_epochs=1", "--data.init_args.train_samples=64", "--trainer.accelerator=cpu"]


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # which a run sets; taken back after the test
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_digits_twice_in_one_directory_then_validate_and_test():
    for _ in range(2):
        done = run("fit", *DIGITS, *SHORT)
        assert done.exit_code == 0, done.output
    kept = sorted(Path("lightning_logs").glob("version_*/checkpoints/*.ckpt"))
    assert [path.parts[1] for path in kept] == ["version_0", "version_1"]
    first, second = (torch.load(path, weights_only=True)["state_dict"] for path in kept)
    assert all(torch.equal(first[name], second[name]) for name in first)  # the same seed
    assert "train/loss" in pd.read_csv("lightning_logs/version_0/metrics.csv")
    for command, word in (("validate", "val/accuracy"), ("test", "test/accuracy")):
        done = run(command, *DIGITS, *SHORT, "--ckpt_path", str(kept[0]))
        assert done.exit_code == 0, done.output
        assert word in done.output


def configuration_of(*arguments):
    """What a process of its own makes of the arguments."""
    command = [sys.executable, "-c", "from ep_plugin.cli import main; main()", "fit", *arguments, "--print_config"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_numbers_are_read_and_copied_as_what_they_are():
    """In a process of its own: which of two equal types Python keeps depends on what was imported before.

    "1" is one batch, and 1.0 would be all of them. `degrees` has the type `numbers.Number`.
    """
    affine = {"class_path": "torchvision.transforms.v2.RandomAffine", "init_args": {"degrees": 10}}
    few = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1.0"]
    data = ["--data=ep_plugin.MNISTDataModule", f"--data.init_args.augmentation={json.dumps(affine)}"]
    printed = configuration_of(*DIGITS, *few, *data)
    copy = yaml.safe_load(printed)
    limits = [copy["trainer"][f"limit_{stage}_batches"] for stage in ("train", "val")]
    assert [(type(limit), limit) for limit in limits] == [(int, 1), (float, 1.0)]
    assert copy["data"]["init_args"]["augmentation"]["init_args"]["degrees"] == 10
    Path("copy.yaml").write_text(printed)
    assert yaml.safe_load(configuration_of("--config=copy.yaml")) == copy


def test_a_run_goes_on_in_the_directory_of_its_configuration():
    """The second run overwrites the configuration that the first has saved beside its logs."""
    where = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=.", "--trainer.logger.version=0"]
    for rate in ("0.01", "0.02"):
        assert run("fit", *DIGITS, *SHORT, *where, "--model.init_args.lr", rate).exit_code == 0
    assert "lr: 0.02" in Path("lightning_logs/version_0/config.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        ([*DIGITS, "--model", "ep_plugin.EPModule"], "'EPModule'"),
        ([*DIGITS, "--model.init_args.rate", "1"], "rate"),
        ([*DIGITS, "--trainer.max_epochs", "many"], "many"),
        ([*DIGITS, "--model.init_args.lr", "-1"], "ep-plugin: lr is -1.0; expected a number above 0"),
        # The type's own names, which the parser checks before the network does.
        ([*DIGITS, "--model.init_args.model.init_args.encoder", "rate"], "Literal['adaptive_delta', 'graded', "),
        ([*DIGITS, "--data", "ep_plugin.MNISTDataModule"], "ep-plugin: no MNIST in data/MNIST/raw"),
        ([*DIGITS, "--trainer.accelerator", "abacus"], "ep-plugin: You selected an invalid accelerator"),
        ([*DIGITS, "--trainer.devices", "0"], "ep-plugin: `Trainer(devices="),
    ],
)
def test_bad_input_is_a_message_and_exit_code_2(arguments, message):
    done = run("fit", *arguments)
    assert done.exit_code == 2
    assert message in done.output
    assert "Traceback" not in done.output


def pretend_data():
    """What the data module looks for before any work."""
    raw = Path("data/MNIST/raw")
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, 20, 28, 28) + bytes(20 * 28 * 28))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 20) + bytes(20))


def test_an_encoder_of_ones_own_settings():
    encoder = {"class_path": "ep_plugin.PredictiveSigmaDelta", "init_args": {"rate": 0.9, "exponent": 0.7}}
    made = from_arguments(
        [*DIGITS, "--model.init_args.model.init_args.encoder", json.dumps(encoder), "--trainer.accelerator=cpu"],
        run=False,
    )
    assert isinstance(made.model, ep.EPLightningModule)
    assert made.model.model.encoder == ep.PredictiveSigmaDelta(0.9, 0.7)


def loss_of(loss):
    arguments = [*DIGITS, "--model.init_args.loss", json.dumps(loss), "--trainer.accelerator=cpu"]
    return from_arguments(arguments, run=False).model.loss


def test_losses_of_configurations(capsys):
    assert isinstance(loss_of({"class_path": "torch.nn.CrossEntropyLoss"}), nn.CrossEntropyLoss)
    rates = {"correct_rate": 0.8, "incorrect_rate": 0.2}
    found = loss_of({"class_path": "snntorch.functional.mse_count_loss", "init_args": rates})
    output, y = torch.rand(4, 10), torch.randint(10, (4,))
    assert torch.equal(found(output, y), SF.mse_count_loss(0.8, 0.2)(output.expand(100, 4, 10), y))
    with pytest.raises(SystemExit):
        loss_of({"class_path": "snntorch.functional.ce_rate_loss", "init_args": {"population_code": True}})
    assert "ep-plugin: the loss ce_rate_loss(population_code=True) does not sum" in capsys.readouterr().err


def test_the_example_for_mnist():
    pretend_data()
    made = from_arguments(["--config", str(CONFIGS / "mnist.yaml"), "--trainer.accelerator=cpu"], run=False)
    assert isinstance(made.model, ep.EPLightningModule)
    model = made.model.model
    assert model.settings.plain() == ep.convert(small_convolutional()).settings.plain()
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    kinds = {type(callback) for callback in made.trainer.callbacks}
    assert {ep.EquilibriumMonitor, ep.SpikeMonitor, ep.GradientMonitor} <= kinds


OWN_NET = """
import snntorch as snn
from torch import nn


def mine() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), snn.Leaky(0.9, init_hidden=True), nn.Linear(12, 10))
"""


def test_modules_of_this_directory_are_found(monkeypatch):
    monkeypatch.setattr("sys.path", [place for place in sys.path if place not in ("", str(Path.cwd()))])
    Path("of_this_directory.py").write_text(OWN_NET)
    done = run("fit", *DIGITS, *SHORT, "--model.init_args.model.init_args.net=of_this_directory.mine")
    assert done.exit_code == 0, done.output


def test_errors_of_ones_own_code_have_their_traceback(monkeypatch):
    monkeypatch.setattr("sys.path", list(sys.path))
    Path("with_a_fault.py").write_text(OWN_NET.replace("64, 12", "64, {}['width']"))
    done = run("fit", *DIGITS, *SHORT, "--model.init_args.model.init_args.net=with_a_fault.mine")
    assert isinstance(done.exception, KeyError)
    assert "with_a_fault.py" in traceback.extract_tb(done.exception.__traceback__)[-1].filename


def test_a_last_batch_of_one_for_batch_normalization(monkeypatch):
    monkeypatch.setattr("sys.path", list(sys.path))
    Path("normalized.py").write_text(OWN_NET.replace("nn.Flatten(),", "nn.Flatten(), nn.BatchNorm1d(64),"))
    few = ["--data.init_args.train_samples=9", "--data.init_args.batch_size=8", "--trainer.limit_val_batches=0"]
    done = run("fit", *DIGITS, *SHORT, *few, "--model.init_args.model.init_args.net=normalized.mine")
    assert done.exit_code == 2
    assert "expected a batch_size that leaves no single sample" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer=SGD", "--model.init_args.schedule=cosine"], "with its schedule='cosine'; expected one of both"),
        (["--lr_scheduler=StepLR", "--lr_scheduler.step_size=1"], "--lr_scheduler counts only beside --optimizer"),
        (["--trainer.val_check_interval=100"], "must be less than or equal to the number of the training batches"),
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/acc"], "val/accuracy"),
        (["--model.init_args.loss=torch.nn.MSELoss"], "`loss: {class_path: torch.nn.MSELoss}`"),
    ],
)
def test_settings_that_would_not_count_are_one_line(options, message):
    done = run("fit", *DIGITS, *SHORT, *options)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert "Traceback" not in done.output


def test_a_logger_whose_package_is_not_there_is_one_line(monkeypatch):
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning.fabric.loggers.tensorboard.{name}", False)
    done = run("fit", *DIGITS, *SHORT, "--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=tb")
    assert done.exit_code == 2
    (line,) = [line for line in done.output.splitlines() if "ensorboard" in line]
    assert line.startswith("ep-plugin: Neither `tensorboard` nor `tensorboardX` is available")
    assert "Traceback" not in done.output


def test_another_optimizer_is_told_where_a_training_goes_on():
    sgd = [*DIGITS, *SHORT[1:], "--optimizer=SGD"]
    assert run("fit", *sgd, "--optimizer.lr=0.1", "--trainer.max_epochs=1").exit_code == 0
    (kept,) = Path("lightning_logs").glob("version_0/checkpoints/*.ckpt")
    longer = ["--trainer.max_epochs=2", "--ckpt_path", str(kept)]
    with pytest.warns(UserWarning, match=r"optimizer had other settings: lr was 0\.1 and is 0\.2\. "):
        assert run("fit", *sgd, "--optimizer.lr=0.2", *longer).exit_code == 0
    done = run("fit", *DIGITS, *SHORT[1:], "--optimizer=Adam", *longer)
    assert done.exit_code == 2
    assert "ep-plugin: the checkpoint's optimizer is SGD, and this training's is Adam" in " ".join(done.output.split())


def test_a_cosine_goes_on_only_to_its_own_end():
    cosine = [*DIGITS, *SHORT[1:], "--model.init_args.schedule=cosine"]
    assert run("fit", *cosine, "--trainer.max_epochs=1").exit_code == 0
    (kept,) = Path("lightning_logs").glob("version_0/checkpoints/*.ckpt")
    done = run("fit", *cosine, "--trainer.max_epochs=2", "--ckpt_path", str(kept))
    assert done.exit_code != 0
    assert "the checkpoint's ends after 2 steps, and this training has 4" in " ".join(done.output.split())
