"""Files from elsewhere: each fault is one line that names the file, exit code 2, and nothing in a file is run."""

import gzip
import io
import logging
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

import ep_plugin as ep
from ep_plugin import trained
from ep_plugin.cli import app
from ep_plugin.lightning import checkpoints
from ep_plugin.lightning.allowed import require_allowed
from ep_plugin.models import convolutional_2c2fc

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

N = 40
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def images(n=N, side=28):
    return struct.pack(">4i", 2051, n, side, side) + bytes(np.arange(n * side * side, dtype=np.uint8))


def labels(n=N, values=None):
    return struct.pack(">2i", 2049, n) + bytes(values or [k % 10 for k in range(n)])


@pytest.fixture
def raw(tmp_path):
    """The four files of MNIST, whole."""
    place = tmp_path / "data" / "MNIST" / "raw"
    place.mkdir(parents=True)
    for part in ("train", "t10k"):
        (place / f"{part}-images-idx3-ubyte").write_bytes(images())
        (place / f"{part}-labels-idx1-ubyte").write_bytes(labels())
    return place


@pytest.fixture
def settings(raw, tmp_path, monkeypatch):
    """A configuration that works, in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # which a run sets; taken back after the test
    monkeypatch.setattr(logging, "raiseExceptions", False)  # handlers of other tests, whose output is closed
    net = {"class_path": "ep_plugin.models.perceptron", "init_args": {"hidden": 8}}
    model = {"class_path": "ep_plugin.convert", "init_args": {"net": net}}
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "logger"), False)
    return {
        "seed_everything": 0,
        "model": {"class_path": "ep_plugin.EPLightningModule", "init_args": {"model": model}},
        "data": {"class_path": "ep_plugin.MNISTDataModule", "init_args": {"data_dir": "data", "batch_size": 20}},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_checkpointing": False, **quiet},
    }


def said(*arguments):
    """What a command says of a fault: one line, exit code 2."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 2, (result.output, result.exception)
    lines = [line for line in result.output.splitlines() if line.startswith("ep-plugin: ")]
    assert len(lines) == 1, result.output
    assert "Traceback" not in result.output
    assert "usage:" not in result.output
    return lines[0]


def fit(settings, *arguments):
    Path("settings.yaml").write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
    return ["fit", "--config", "settings.yaml", *arguments]


def test_whole_files_train(settings):
    result = CliRunner().invoke(app, fit(settings))
    assert result.exit_code == 0, (result.output, result.exception)


def packed(raw):
    (raw / f"{IMAGES}.gz").write_bytes(gzip.compress(images()))
    (raw / IMAGES).unlink()


def swapped(raw):
    (raw / IMAGES).write_bytes(labels())
    (raw / LABELS).write_bytes(images())


def a_directory(raw):
    (raw / LABELS).unlink()
    (raw / LABELS).mkdir()


DATA = {
    "cut": (lambda raw: (raw / IMAGES).write_bytes(images()[:5000]), f"{IMAGES} is not whole: it has 5,000 bytes"),
    "cut in its head": (lambda raw: (raw / IMAGES).write_bytes(images()[:9]), f"{IMAGES} is not whole"),
    "longer": (lambda raw: (raw / IMAGES).write_bytes(images() + b"0"), f"{IMAGES} is not whole"),
    "empty": (lambda raw: (raw / IMAGES).write_bytes(b""), f"{IMAGES} is no such file"),
    "labels cut": (lambda raw: (raw / LABELS).write_bytes(labels()[:20]), f"{LABELS} is not whole"),
    "labels empty": (lambda raw: (raw / LABELS).write_bytes(b""), f"{LABELS} is no such file"),
    "swapped": (swapped, "holds what labels-idx1-ubyte files hold"),
    "packed in place": (lambda raw: (raw / IMAGES).write_bytes(gzip.compress(images())), "is packed; unpack it"),
    "left packed": (packed, f"unpack {IMAGES}.gz"),
    "random": (lambda raw: (raw / IMAGES).write_bytes(b"\x07" * 3000), "or a damaged one"),
    "text": (lambda raw: (raw / LABELS).write_text("0 1 2 3"), "or a damaged one"),
    "one missing": (lambda raw: (raw / LABELS).unlink(), f"there is no file data/MNIST/raw/{LABELS}"),
    "a directory": (a_directory, "there is no file"),
    "fewer labels": (lambda raw: (raw / LABELS).write_bytes(labels(30)), "40 images and 30 labels"),
    "class 99": (lambda raw: (raw / LABELS).write_bytes(labels(N, [99] * N)), "from 99 to 99; expected 0 to 9"),
    "other size": (lambda raw: (raw / IMAGES).write_bytes(images(N, 20)), "20 x 20 pixels; expected 28 x 28"),
    "test images cut": (
        lambda raw: (raw / "t10k-images-idx3-ubyte").write_bytes(images()[:-1]),
        "t10k-images-idx3-ubyte is not whole",
    ),
    "nothing there": (lambda raw: [file.unlink() for file in raw.iterdir()], "no MNIST in data/MNIST/raw"),
}


@pytest.mark.parametrize("fault", DATA)
def test_data(settings, raw, fault):
    damage, message = DATA[fault]
    damage(raw)
    assert message in said(*fit(settings))


@pytest.mark.parametrize("command", [("evaluate", "mnist-2c2fc"), ("compare", "--data", "mnist")])
def test_data_of_other_commands(settings, raw, command):
    (raw / IMAGES).write_bytes(images()[:5000])
    assert f"{IMAGES} is not whole" in said(*command, "--data-dir", "data")
    assert not Path("ep-plugin-compare").exists()


def changed(path, value):
    """The settings with another value at a path of keys."""

    def change(settings):
        *keys, last = path.split("/")
        place = settings
        for key in keys:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
        return settings

    return change


def bomb():
    """A few lines, each of which names the one before ten times."""
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join(10 * [f'*a{n - 1}'])}]" for n in range(1, 9))]
    return "\n".join([*lines, "model: *a8"])


LINEAR = {"in_features": 2, "out_features": 2}
NET = "model/init_args/model/init_args/net"
SETTINGS = {
    "unknown key": (changed("nonsense", 3), "does not accept option 'nonsense'"),
    "unknown argument": (changed(f"{NET}/init_args/hiden", 8), "Option 'hiden' is not accepted"),
    "wrong type": (changed(f"{NET}/init_args/hidden", "many"), "Expected a <class 'int'>. Got value: many"),
    "negative number": (changed(f"{NET}/init_args/hidden", -4), "-4"),
    "foreign model": (changed("model/class_path", "os.system"), "os.system"),
    "foreign net": (changed(f"{NET}/class_path", "subprocess.Popen"), "subprocess.Popen"),
    "no such class": (changed(f"{NET}/class_path", "ep_plugin.models.nothing"), "nothing"),
    "no such module": (changed(f"{NET}/class_path", "nowhere.net"), "nowhere"),
    "foreign data": (changed("data/class_path", "torch.nn.Linear"), "torch.nn.Linear"),
    "no model": (changed("model", None), "model"),
    "no data": (changed("data", None), "data"),
    "epochs": (changed("trainer/max_epochs", -5), "max_epochs"),
    "epochs in words": (changed("trainer/max_epochs", "three"), "trainer.max_epochs"),
    "seed below 0": (changed("seed_everything", -3), "seed_everything: -3"),
    "seed too large": (changed("seed_everything", 2**40), "seed_everything"),
    "learning rate": (changed("model/init_args/lr", -1.0), "lr is -1.0; expected a number above 0"),
    "schedule": (changed("model/init_args/schedule", "often"), "often"),
    "loss": (changed("model/init_args/loss", "often"), "often"),
    "encoder": (changed("model/init_args/model/init_args/encoder", "loud"), "loud"),
    "feedback": (changed("model/init_args/model/init_args/feedback", 3.0), "feedback"),
    "argument of a loss": (
        changed("model/init_args/loss", {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"weigth": 1}}),
        "Parser key \"loss\": Option 'weigth' is not accepted (in",
    ),
    "argument of a callback": (
        changed("trainer/callbacks", [{"class_path": "ep_plugin.GradientMonitor", "init_args": {"every": 3}}]),
        "Parser key \"trainer.callbacks\": Option 'every' is not accepted (in",
    ),
    "function without annotation": (changed(f"{NET}/class_path", "snntorch.utils.reset"), "`def net() -> nn.Module`"),
    "batch size": (changed("data/init_args/batch_size", 0), "batch_size is 0"),
    "workers": (changed("data/init_args/num_workers", -1), "num_workers is -1"),
    "validation": (changed("data/init_args/validation", 2.0), "validation is 2.0"),
    "no directory": (changed("data/init_args/data_dir", "nowhere"), "no MNIST in nowhere"),
    "precision": (changed("trainer/precision", "5-bit"), "precision"),
    "accelerator": (changed("trainer/accelerator", "steam"), "steam"),
    "empty": (lambda _: "", "the configuration is empty"),
    "a list": (lambda _: "- 1\n- 2\n", "no table of settings"),
    "a word": (lambda _: "hello", "no table of settings"),
    "control characters": (lambda _: "\x00\x01", "control characters"),
    "half of it": (lambda _: "model: [\n", "did not find expected node content"),
    "tabs": (lambda _: "model:\n\t- x\n", "cannot start any token"),
    "a key twice": (
        lambda settings: "seed_everything: 1\n" + yaml.safe_dump(settings),
        "'seed_everything' a second time",
    ),
    "itself": (lambda _: "model: &m\n  x: *m\n", "line 1 contains itself"),
    "a billion values": (lambda _: bomb(), "it has more than 100,000 values"),
    "no accumulation": (changed("trainer/accumulate_grad_batches", 0), "trainer.accumulate_grad_batches is 0"),
    "clipping": (changed("trainer/gradient_clip_val", -1.0), "trainer.gradient_clip_val is -1.0"),
    "three classes": (
        changed("model/init_args/model/init_args/net/init_args/classes", 3),
        "the loss does not fit the output and the targets: Target ",
    ),
    "augmentation": (
        changed("data/init_args/augmentation", {"class_path": "torch.nn.Linear", "init_args": LINEAR}),
        "the augmentation does not fit the images: mat1 and mat2 shapes cannot be multiplied",
    ),
    "best": (changed("ckpt_path", "best"), 'ckpt_path="best")` is set but `ModelCheckpoint` is not configured'),
    "a command": (
        lambda settings: yaml.safe_dump(settings) + "extra: !!python/object/apply:os.system ['touch owned']\n",
        "could not determine a constructor",
    ),
}


@pytest.mark.parametrize("fault", SETTINGS)
def test_configurations(settings, fault):
    change, message = SETTINGS[fault]
    line = said(*fit(change(settings)))
    assert message in line
    assert not Path("owned").exists()


CALLS = ("builtins.eval", "builtins.exec", "os.system", "subprocess.run", "subprocess.Popen", "functools.partial")
CALLS += ("ep_plugin.loading.load_net", "torch.hub.load", "torch.load", "theirs.plain", "theirs.Plain", "nowhere.net")
THEIRS = """
from __future__ import annotations
import torch
from torch import nn
def net(hidden: int = 3) -> nn.Sequential: ...
def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor: ...
class Noise:
    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...
class Shrinking:
    def start(self, like, layer): ...
    def encode(self, signal, state, time, maximum): ...
    def for_deviations(self): ...
def plain(x): ...
class Plain:
    def __call__(self, x): ...
"""
ALLOWED = ("theirs.net", "theirs.loss", "theirs.Noise", "theirs.Shrinking", "ep_plugin.convert", "ep_plugin.Relaxation")
ALLOWED += ("ep_plugin.models.perceptron", "ep_plugin.BackpropThroughTime", "torch.nn.CrossEntropyLoss")
ALLOWED += ("torch.nn.functional.gelu", "torch.optim.SGD", "torch.optim.lr_scheduler.StepLR", "snntorch.Leaky")
ALLOWED += (
    "snntorch.functional.mse_count_loss",
    "torchvision.transforms.v2.Compose",
    "torchvision.transforms.ToTensor",
)
ALLOWED += ("lightning.pytorch.callbacks.ModelCheckpoint", "lightning.pytorch.loggers.CSVLogger")
ALLOWED += ("lightning.pytorch.strategies.DDPStrategy", "lightning.pytorch.plugins.MixedPrecision")


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("theirs", None)


def test_what_a_configuration_may_name(theirs):
    for name in ALLOWED:
        require_allowed({"model": {"init_args": {"loss": [{"class_path": name}]}}})
    for name in CALLS:
        with pytest.raises(ValueError, match=f"model.loss names {name}, which a configuration may not"):
            require_allowed({"model": {"init_args": {"loss": [{"class_path": name}]}}})
    require_allowed({"loss": torch.nn.functional.gelu, "activation": ep.Activation(torch.relu)})
    for found in (os.system, exit, subprocess.Popen):  # which the parser has found by its name alone
        with pytest.raises(ValueError, match=r"^loss names "):
            require_allowed({"loss": found})


PLACES = {
    "augmentation": "data/init_args/augmentation",
    "loss": "model/init_args/loss",
    "optimizer": "model/init_args/optimizer",
    "activation": "model/init_args/model/init_args/activation",
    "example input": "model/init_args/model/init_args/example_input",
    "net": NET,
    "callbacks": "trainer/callbacks",
}


@pytest.mark.parametrize("place", PLACES)
def test_no_configuration_runs_a_command(settings, place):
    command = {"class_path": "os.system", "init_args": {"command": "touch owned"}}
    assert "os.system" in said(*fit(changed(PLACES[place], command)(settings)))
    assert not Path("owned").exists()


def test_configuration_that_is_no_text(settings):
    Path("noise.yaml").write_bytes(b"\xf6\x90\x00" * 100)
    assert "the configuration is no text (in noise.yaml)" in said("fit", "--config", "noise.yaml")


@pytest.mark.parametrize(("file", "message"), [("none.yaml", "does not exist"), (".", "not a file")])
def test_configuration_that_is_not_there(settings, file, message):
    assert message in said("fit", "--config", file)


class Runs:
    """Where this is unpickled, a command runs."""

    def __reduce__(self):
        return os.system, ("touch owned",)


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint of the net of `settings`."""
    import lightning as L

    place = tmp_path_factory.mktemp("run")
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "logger"), False)
    task = ep.EPLightningModule(ep.convert(ep.models.perceptron(hidden=8)))
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=place, **quiet)
    x, y = torch.rand(4, 1, 28, 28), torch.arange(4)
    trainer.fit(task, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 4))
    (file,) = place.rglob("*.ckpt")
    return file.read_bytes()


def with_state(change):
    def changed(whole):
        checkpoint = torch.load(io.BytesIO(whole), weights_only=True)
        checkpoint["state_dict"] = change(checkpoint["state_dict"])
        return saved(checkpoint)

    return changed


def flipped(whole):
    """A byte of a tensor is another."""
    state = torch.load(io.BytesIO(whole), weights_only=True)["state_dict"]
    at = whole.index(max(state.values(), key=torch.numel).numpy().tobytes())
    return whole[: at + 9] + bytes([whole[at + 9] ^ 255]) + whole[at + 10 :]


CHECKPOINTS = {
    "empty": (lambda _: b"", "(0 bytes) is no checkpoint, or not the whole of one"),
    "cut": (lambda whole: whole[: len(whole) // 2], "not the whole of one"),
    "cut at its end": (lambda whole: whole[:-30], "not the whole of one"),
    "random": (lambda _: b"\x91\x17" * 2000, "is no checkpoint"),
    "text": (lambda _: b"hello", "is no checkpoint"),
    "flipped": (flipped, "is damaged: the checksum of"),
    "a command, pickled": (lambda _: pickle.dumps(Runs()), "is no checkpoint"),
    "a command, saved": (lambda _: saved({"state_dict": Runs()}), "nothing in it was run"),
    "a command among the settings": (
        lambda whole: saved({**torch.load(io.BytesIO(whole), weights_only=True), "more": Runs()}),
        "nothing in it was run",
    ),
    "a whole module": (lambda _: saved(torch.nn.Linear(2, 2)), "nothing in it was run"),
    "a list": (lambda _: saved([1, 2]), "it has no state_dict"),
    "a tensor": (lambda _: saved(torch.zeros(3)), "it has no state_dict"),
    "weights alone": (
        lambda whole: saved(torch.load(io.BytesIO(whole), weights_only=True)["state_dict"]),
        "no state_dict",
    ),
    "no version": (
        lambda whole: saved({"state_dict": torch.load(io.BytesIO(whole), weights_only=True)["state_dict"]}),
        "it has no pytorch-lightning_version",
    ),
    "a weight less": (with_state(lambda s: dict(list(s.items())[:-1])), "it lacks model.readout.0.bias"),
    "a weight more": (with_state(lambda s: {**s, "extra": torch.zeros(1)}), "it has extra, which this model has not"),
    "other shapes": (
        with_state(lambda s: {k: v[:4] if v.dim() else v for k, v in s.items()}),
        "has the shape [4, 784] there and [8, 784] here",
    ),
    "other names": (with_state(lambda s: {f"net.{k}": v for k, v in s.items()}), "is of another model"),
}


@pytest.mark.parametrize("fault", CHECKPOINTS)
def test_checkpoints(settings, whole, fault):
    make, message = CHECKPOINTS[fault]
    Path("bad.ckpt").write_bytes(make(whole))
    line = said(*fit(settings, "--ckpt_path", "bad.ckpt"))
    assert "bad.ckpt" in line
    assert message in line
    assert not Path("owned").exists()


def test_checkpoint_of_more_epochs(settings, whole):
    Path("done.ckpt").write_bytes(whole)
    line = said(*fit(settings, "--ckpt_path", "done.ckpt", "--trainer.max_epochs", "0"))
    assert "done.ckpt has 1 epoch, and the training is to end after 0; give --trainer.max_epochs above 1" in line


def test_checkpoint_that_lightning_cannot_restore(settings, whole):
    checkpoint = torch.load(io.BytesIO(whole), weights_only=True)
    Path("old.ckpt").write_bytes(saved({**checkpoint, "pytorch-lightning_version": "0.0.1"}))
    line = said(*fit(settings, "--ckpt_path", "old.ckpt", "--trainer.max_epochs", "2"))
    assert "the checkpoint old.ckpt cannot be restored: KeyError" in line


OF_OTHER_KINDS = {
    "version": ({"pytorch-lightning_version": "rubbish"}, "its pytorch-lightning_version is 'rubbish'"),
    "epoch": ({"epoch": -5}, "its epoch is -5"),
    "step": ({"global_step": 10**30}, "its global_step is 1000"),
    "steps": ({"ep_plugin": {"steps": "y"}}, "the steps of its network is 'y'"),
    "encoder": ({"ep_plugin": {"encoder": 3}}, "the encoder of its network is 3"),
    "feedback": ({"ep_plugin": {"feedback": ["x"]}}, "the feedback of its network is ['x']"),
}
PARTS = (
    "epoch",
    "state_dict",
    "loops",
    "callbacks",
    "optimizer_states",
    "lr_schedulers",
    "hyper_parameters",
    "ep_plugin",
)
OF_OTHER_KINDS |= {name: ({name: "rubbish"}, f"its {name} is of the type str") for name in PARTS}


@pytest.mark.parametrize("fault", OF_OTHER_KINDS)
def test_parts_of_checkpoints(tmp_path, whole, fault):
    change, message = OF_OTHER_KINDS[fault]
    (tmp_path / "bad.ckpt").write_bytes(saved(torch.load(io.BytesIO(whole), weights_only=True) | change))
    with pytest.raises(ValueError, match=r"bad\.ckpt is damaged, or is not Lightning's: ") as error:
        checkpoints.read(tmp_path / "bad.ckpt")
    assert message in str(error.value)


@pytest.mark.parametrize("kind", ["complex", "int", "sparse", "meta"])
def test_weights_of_other_kinds(tmp_path, whole, kind):
    def other(value):
        made = {"complex": value.to(torch.complex64), "int": value.long(), "meta": value.to("meta")}
        return value.to_sparse() if kind == "sparse" else made[kind]

    checkpoint = torch.load(io.BytesIO(whole), weights_only=True)
    state = {name: other(value) for name, value in checkpoint["state_dict"].items()}
    (tmp_path / "bad.ckpt").write_bytes(saved(checkpoint | {"state_dict": state}))
    task = ep.EPLightningModule(ep.convert(ep.models.perceptron(hidden=8)))
    with pytest.raises(
        ValueError, match=f"bad.ckpt is of another model: .* is of the type {kind} there and float here"
    ):
        checkpoints.require_fitting(tmp_path / "bad.ckpt", task)


def test_errors_of_a_users_own_code_keep_their_traceback(settings, tmp_path, monkeypatch):
    (tmp_path / "faulty.py").write_text("def loss(*_): raise IndexError('mine')\n")
    monkeypatch.syspath_prepend(tmp_path)
    import faulty

    monkeypatch.setattr("torch.nn.functional.cross_entropy", faulty.loss)
    result = CliRunner().invoke(app, fit(settings))
    sys.modules.pop("faulty")
    assert isinstance(result.exception, IndexError)


def test_whole_checkpoint_goes_on(settings, whole):
    Path("good.ckpt").write_bytes(whole)
    result = CliRunner().invoke(app, fit(settings, "--ckpt_path", "good.ckpt", "--trainer.max_epochs", "2"))
    assert result.exit_code == 0, (result.output, result.exception)


@pytest.mark.parametrize("command", ["validate", "test"])
def test_checkpoints_of_other_commands(settings, command):
    Path("bad.ckpt").write_bytes(b"")
    assert "bad.ckpt (0 bytes)" in said(command, *fit(settings)[1:], "--ckpt_path", "bad.ckpt")


@pytest.mark.parametrize(("path", "message"), [("none.ckpt", "there is no checkpoint"), (".", "is no file")])
def test_checkpoint_that_is_not_there(settings, path, message):
    assert message in said(*fit(settings, "--ckpt_path", path))


WEIGHTS = {
    "empty": (lambda _: b"", "not the whole of one"),
    "cut": (lambda whole: whole[:5000], "not the whole of one"),
    "flipped": (flipped, "is damaged: the checksum of"),
    "a command": (lambda _: saved(Runs()), "nothing in it was run"),
}


@pytest.mark.parametrize("fault", WEIGHTS)
def test_weights(tmp_path, monkeypatch, fault):
    monkeypatch.chdir(tmp_path)
    net = {"channels": [2, 4], "hidden": 64}
    trained.save(ep.convert(convolutional_2c2fc(**net)), net, Path("net.pt"))
    make, message = WEIGHTS[fault]
    Path("net.pt").write_bytes(make(Path("net.pt").read_bytes()))
    with pytest.raises(ValueError, match=r"net\.pt") as error:
        trained.load(Path("net.pt"))
    assert message in str(error.value)
    assert not Path("owned").exists()


def test_eighty_faults():
    assert len(DATA) + len(SETTINGS) + len(CHECKPOINTS) + len(WEIGHTS) + 9 >= 80
