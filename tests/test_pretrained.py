"""Networks that come trained, and how they are written."""

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import ep_plugin as ep
from ep_plugin.cli import app
from ep_plugin.models import convolutional_2c2fc
from ep_plugin.trained import PRETRAINED, load, save

NAMES = sorted(PRETRAINED)


NET = {"channels": [3, 4], "hidden": 6, "dropout": 0.5, "normalize": [0.1, 0.3], "centered": True}
SETTINGS = {
    "defaults": {},
    "every setting": {
        "encoder": ep.SigmaDelta(rate=0.9, exponent=0.6),
        "observe": "membrane",
        "feedback": [0.2, 0.3],
        "relaxation": ep.Relaxation(7, step_size=0.6, order="alternating", tolerance=0.1),
        "estimator": ep.FullPhaseEP(3.0, 5, "random_sign"),
    },
    "graded": {"encoder": "graded", "estimator": ep.BackpropThroughTime()},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_what_is_saved_is_loaded(settings, tmp_path):
    model = ep.convert(convolutional_2c2fc(**NET), **settings)
    save(model, NET, tmp_path / "net.pt")
    loaded = load(tmp_path / "net.pt")
    assert not loaded.training
    assert loaded.settings == model.settings
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(loaded(x), model.eval()(x))


def test_origin_stands_in_the_file(tmp_path):
    save(ep.convert(convolutional_2c2fc(**NET)), NET, tmp_path / "net.pt", {"recipe": "mnist", "seed": 3})
    assert torch.load(tmp_path / "net.pt", weights_only=True)["origin"] == {"recipe": "mnist", "seed": 3}
    with pytest.raises(ValueError, match="expected strings and numbers"):
        save(
            ep.convert(convolutional_2c2fc(**NET)), NET, tmp_path / "net.pt", {"torch": torch.__version__}
        )  # a class of its own


def test_fixed_events_keep_their_weights(tmp_path):
    model = ep.convert(convolutional_2c2fc(**NET), encoder=ep.AdaptiveDelta("fixed"))
    x = torch.rand(2, 1, 28, 28)
    model(x).sum().backward()
    save(model, NET, tmp_path / "net.pt")
    loaded = load(tmp_path / "net.pt")
    assert loaded.event_weights.batches.tolist() == [1, 1]
    assert torch.equal(loaded(x), model.eval()(x))


def test_an_encoder_of_ones_own_is_refused(tmp_path):
    class Own(ep.SigmaDelta):
        pass

    model = ep.convert(convolutional_2c2fc(**NET), encoder=Own())
    with pytest.raises(
        ValueError, match=r"encoder is .*Own\(.*, which a file cannot hold; expected one of AdaptiveDelta"
    ):
        save(model, NET, tmp_path / "net.pt")


def test_unknown_names():
    with pytest.raises(ValueError, match="'mnist-2c2fc', 'fashion-mnist-2c2fc'"):
        ep.pretrained("cifar")
    result = CliRunner().invoke(app, ["evaluate", "cifar"])
    assert result.exit_code == 2
    assert "'mnist-2c2fc'" in result.output


@pytest.mark.parametrize("name", NAMES)
def test_ready_to_use(name):
    model = ep.pretrained(name)
    assert model.encoder == ep.AdaptiveDelta(digits=4 if name in ("fashion-mnist-residual", "cifar10-small") else 3)
    assert model.observe == "trace"
    assert not model.training
    assert model(torch.rand(1, *PRETRAINED[name][1])).shape == (1, 10)


def test_evaluate_without_the_images(tmp_path):
    result = CliRunner().invoke(app, ["evaluate", "mnist-2c2fc", "--data-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert "no MNIST in" in result.output


def test_evaluate_on_folders_of_images(tmp_path):
    for place in (tmp_path / part / kind for part in ("train", "test") for kind in ("cat", "dog")):
        place.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(place / "one.png")
    for name in ("mnist-2c2fc", "cifar10-small"):
        result = CliRunner().invoke(app, ["evaluate", name, "--folders", "--data-dir", str(tmp_path)])
        assert result.exit_code == 0, result.output
        assert f"{name}: test error" in result.output
        assert "of 2 images" in result.output
    result = CliRunner().invoke(app, ["evaluate", "cifar10-small", "--folders", "--data-dir", str(tmp_path / "train")])
    assert result.exit_code == 2
    assert "there is no folder" in result.output


def test_evaluate(data_dir):
    result = CliRunner().invoke(app, ["evaluate", "mnist-2c2fc", "--data-dir", str(data_dir)])
    assert result.exit_code == 0
    error = float(result.output.split("test error ")[1].split(" %")[0])
    assert error <= 0.97  # arXiv:2405.02546
