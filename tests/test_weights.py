"""Networks that come trained, and how they are written."""

import pytest
import torch
from typer.testing import CliRunner

import ep_plugin as ep
from ep_plugin import weights
from ep_plugin.cli import app
from ep_plugin.models import convolutional_2c2fc

NAMES = sorted(weights.PRETRAINED)


def test_what_is_saved_is_loaded(tmp_path):
    net = {"channels": [3, 4], "hidden": 6, "dropout": 0.5, "normalize": [0.1, 0.3], "centred": True}
    relaxation = ep.Relaxation(7, step_size=0.6)
    encoder = ep.SigmaDelta(rate=0.9, exponent=0.6)
    model = ep.convert(
        convolutional_2c2fc(**net), encoder=encoder, observe="trace", feedback=[0.2, 0.3], relaxation=relaxation
    )
    weights.save(model, net, tmp_path / "net.pt")
    loaded = weights.load(tmp_path / "net.pt")
    assert not loaded.training
    assert loaded.encoder == encoder
    assert (loaded.observe, loaded.feedback, loaded.relaxation) == ("trace", (0.2, 0.3), relaxation)
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(loaded(x), model.eval()(x))


def test_unknown_names():
    with pytest.raises(ValueError, match="'mnist-2c2fc', 'fashion-mnist-2c2fc'"):
        ep.pretrained("cifar")
    result = CliRunner().invoke(app, ["evaluate", "cifar"])
    assert result.exit_code == 2
    assert "'mnist-2c2fc'" in result.output


@pytest.mark.parametrize("name", NAMES)
def test_ready_to_use(name):
    model = ep.pretrained(name)
    assert model.encoder.spiking
    assert model(torch.rand(1, 1, 28, 28)).shape == (1, 10)


def test_evaluate_without_the_images(tmp_path):
    result = CliRunner().invoke(app, ["evaluate", "mnist-2c2fc", "--data-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert "no MNIST in" in result.output


def test_evaluate(data_dir):
    result = CliRunner().invoke(app, ["evaluate", "mnist-2c2fc", "--data-dir", str(data_dir)])
    assert result.exit_code == 0
    error = float(result.output.split("test error ")[1].split(" %")[0])
    assert error <= 0.97  # arXiv:2405.02546
