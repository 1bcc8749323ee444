"""Every recipe says what it is, makes the model that its name promises, and trains."""

import copy
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from event_files import write_dvs_gesture, write_nmnist
from PIL import Image
from snntorch import Leaky
from torch import nn
from torchvision.datasets import cifar

import ep_plugin as ep
from ep_plugin.lightning.cli import from_arguments
from ep_plugin.models import small_convolutional

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

RECIPES = sorted((Path(__file__).parents[1] / "examples" / "recipes").glob("*.yaml"))
SHAPES = {"mnist": (1, 28, 28), "fashion": (1, 28, 28), "cifar10": (3, 32, 32)}
SHAPES |= {"saccade": (2, 34, 34), "nmnist": (2, 34, 34), "dvsgesture": (2, 32, 32)}
READ_BY_TONIC = ("nmnist", "dvsgesture")
SIBLINGS = ("bptt-snntorch", "bptt-same-dynamics", "feedforward")  # rows beside a recipe: the same net and budget
FAMILIES = [path for path in RECIPES if all((path.parent / f"{path.stem}-{s}.yaml").exists() for s in SIBLINGS)]
IMAGES = 40

recipes = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # which a run sets; taken back after the test
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)  # these are not the files of the checksums


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Random images in the formats of the data sets."""
    place, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in ("MNIST", "FashionMNIST"):
        raw = place / name / "raw"
        raw.mkdir(parents=True)
        for part in ("train", "t10k"):
            pixels = random.integers(0, 256, (IMAGES, 28, 28), dtype=np.uint8)
            labels = (np.arange(IMAGES) % 10).astype(np.uint8)
            (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, *pixels.shape) + pixels.tobytes())
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, IMAGES) + labels.tobytes())
    folder = place / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        pixels = random.integers(0, 256, (IMAGES // 5, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [n % 10 for n in range(len(pixels))]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    write_nmnist(place)
    write_dvs_gesture(place)
    return place


def made(recipe, data, *arguments):
    if kind(recipe) in READ_BY_TONIC:
        pytest.importorskip("tonic", reason="tonic is not installed: pip install tonic")
    own = ["--config", str(recipe), "--trainer.accelerator=cpu", "--data.init_args.data_dir", str(data)]
    return from_arguments([*own, *arguments], run=False)


def kind(recipe):
    return recipe.stem.split("-")[0]


@recipes
def test_recipes_name_themselves_and_make_a_model(recipe, data):
    found = made(recipe, data)
    (record,) = [c for c in found.trainer.callbacks if isinstance(c, ep.RecordErrors)]
    assert (record.name, record.path) == (recipe.stem, Path("examples/results/results.jsonl"))
    if kind(recipe) in READ_BY_TONIC:
        assert found.datamodule.make.__name__.lower() == kind(recipe)
    else:
        assert type(found.datamodule).__name__.lower().startswith(kind(recipe))
    x = torch.rand(2, *SHAPES[kind(recipe)])
    if getattr(found.model, "model", found.model).time_varying:
        x = x.repeat(2, 1, 1, 1, 1)
    assert found.model(x).shape == (2, 11 if kind(recipe) == "dvsgesture" else 10)


PAPER = {
    "encoder": "SigmaDelta(rate=0.5, exponent=0.3)",
    "observe": "membrane",
    "feedback": 0.05,
    "relaxation": "Relaxation(steps=15, step_size=0.85, order='alternating', tolerance=None)",
    "estimator": "FullPhaseEP(beta=5.0, steps=8, nudging='symmetric')",
}
DEEP = {
    "feedback": 0.01,
    "encoder": "AdaptiveDelta(event_weight='sample', digits=4)",
    "relaxation": "Relaxation(steps=3, step_size=None, order='sequential', tolerance=None)",
    "estimator": "EquilibriumPropagation(beta=0.1, steps=2, nudging='positive')",
}
RECIPE_SETTINGS = {  # word in a recipe's name -> what it changes
    "cifar10-small": DEEP,
    "fashion-residual": DEEP,
    "mnist-residual": DEEP,
    "bptt-same-dynamics": {"estimator": "BackpropThroughTime()"},
    "feedforward": {
        "encoder": "Graded()",
        "relaxation": "Relaxation(steps=1, step_size=None, order='sequential', tolerance=None)",
        "estimator": "BackpropThroughTime()",
    },
    "graded": {"encoder": "Graded()"},
    "membrane": {"observe": "membrane"},
    "rate-coded": {"time_varying": True},
    "saccade": {"time_varying": True},
    "nmnist": {"time_varying": True},
    "dvsgesture": {"time_varying": True},
    "sigma-delta": PAPER,
    "paper": PAPER | {"encoder": "PredictiveSigmaDelta(rate=0.6, exponent=0.3)"},
}


@pytest.mark.parametrize("recipe", [r for r in RECIPES if "snntorch" not in r.stem], ids=lambda path: path.stem)
def test_recipes_have_default_settings_but_for_what_their_names_say(recipe, data):
    expected = ep.convert(small_convolutional()).settings.plain()
    for word, changes in RECIPE_SETTINGS.items():
        if word in recipe.stem:
            expected |= changes
    assert made(recipe, data).model.model.settings.plain() == expected


@recipes
def test_two_batches_of_every_recipe(recipe, data):
    """Of two images each. The nets for CIFAR-10 are narrower here."""
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
    few = ["--data.init_args.batch_size=2"]
    if "rate-coded" in recipe.stem:
        few.append("--data.init_args.rate_coded=4")
    own = "--model.init_args."
    if "snntorch" in recipe.stem:
        few.append(f"{own}num_steps={3 if kind(recipe) == 'saccade' else 4}")  # of the saccades a step a frame
    if kind(recipe) == "cifar10":
        channels = "[4,6]" if "2c2fc" in recipe.stem else "[4,6,8]"
        few.append(f"{own}{'' if 'snntorch' in recipe.stem else 'model.init_args.'}net.init_args.channels={channels}")
    found = made(recipe, data, *short, *few, "--trainer.enable_progress_bar=false")
    before = [p.clone() for p in found.model.parameters()]
    found.trainer.fit(found.model, found.datamodule)
    (line,) = [json.loads(line) for line in Path("examples/results/results.jsonl").read_text().splitlines()]
    assert line["name"] == recipe.stem
    assert line["watched"] == ("held out" if found.datamodule.validation == "split" else "test")
    changed = [not torch.equal(a, b) for a, b in zip(before, found.model.parameters(), strict=True)]
    assert sum(changed) > len(changed) / 2


def budget(recipe):
    """The net, the images and the training that a recipe describes, but for the leak, which a converted net has not."""
    told = yaml.safe_load(recipe.read_text())
    model = told["model"]["init_args"]
    net = model.pop("net") if "net" in model else model.pop("model")["init_args"]["net"]
    net["init_args"].pop("leak", None)
    model.pop("num_steps", None)
    model.pop("time_varying", None)  # the converted net has it beside it
    told["trainer"].pop("callbacks")
    return net, model, told["data"], told["trainer"]


@pytest.mark.parametrize("recipe", FAMILIES, ids=lambda path: path.stem)
@pytest.mark.parametrize("sibling", SIBLINGS)
def test_rows_beside_a_recipe_have_its_net_and_its_budget(recipe, sibling):
    assert budget(recipe.with_stem(f"{recipe.stem}-{sibling}")) == budget(recipe)


def test_backpropagation_sees_the_saccades_that_equilibrium_propagation_sees():
    pair = [r for r in RECIPES if r.stem in ("saccade-mnist", "saccade-mnist-bptt-snntorch")]
    assert len(pair) == 2
    assert budget(pair[0]) == budget(pair[1])


def test_recipes_with_rows_beside_them():
    assert {"2c2fc-average", "2c2fc-max", "vgg", "residual"} <= {p.stem.removeprefix("mnist-") for p in FAMILIES}
    assert {"2c2fc-average", "2c2fc-max", "residual"} <= {p.stem.removeprefix("fashion-") for p in FAMILIES}
    assert {"2c2fc-max", "small", "large", "residual"} <= {p.stem.removeprefix("cifar10-") for p in FAMILIES}
    assert all(budget(recipe)[2]["init_args"]["validation"] == "split" for recipe in FAMILIES)


def test_recipes_for_cifar10_read_folders_of_images_too(tmp_path):
    for part in ("train", "test"):
        folder = tmp_path / "images" / part / "frog"
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 32), "green").save(folder / "0.png")
    (recipe,) = (r for r in RECIPES if r.stem == "cifar10-small")
    folders = ["--data", "ep_plugin.ImageFolderDataModule", "--data.init_args.size=32"]
    arguments = ["--config", str(recipe), *folders, "--data.init_args.data_dir", str(tmp_path / "images")]
    found = from_arguments([*arguments, "--trainer.accelerator=cpu"], run=False).datamodule
    assert isinstance(found, ep.ImageFolderDataModule)
    assert (found.validation, found.batch_size, found.size) == ("split", 128, (32, 32))
    assert found.augmentation(torch.rand(3, 32, 32)).shape == (3, 32, 32)


class Clip(nn.Module):
    def forward(self, x):
        return x.clamp(0, 1)


def with_clips(module):
    for name, child in module.named_children():
        if isinstance(child, Leaky):
            setattr(module, name, Clip())
        else:
            with_clips(child)
    return module


@pytest.mark.parametrize("make", [ep.models.vgg, ep.models.residual, ep.models.compact_residual])
def test_one_step_of_graded_neurons_from_rest_is_a_feedforward_net(make):
    """Its outputs and its gradients, as the recipes called feedforward have it."""
    net = make((3, 16, 16), channels=(6, 8, 12))
    plain = with_clips(copy.deepcopy(net))
    one_step = {"encoder": "graded", "relaxation": ep.Relaxation(steps=1), "estimator": ep.BackpropThroughTime()}
    x, y = torch.rand(4, 3, 16, 16), torch.arange(4)
    outputs = [ep.convert(net, **one_step)(x), plain(x)]
    torch.testing.assert_close(*outputs)
    found, wanted = (
        torch.autograd.grad(F.cross_entropy(output, y), list(own.parameters()))
        for output, own in zip(outputs, (net, plain), strict=True)
    )
    assert all((a - b).norm() < 1e-4 * b.norm() for a, b in zip(found, wanted, strict=True))
