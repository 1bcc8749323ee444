"""The profile adds up, names every phase and layer, and changes nothing."""

import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

import ep_plugin as ep
from ep_plugin import profiling
from ep_plugin.cli import app
from ep_plugin.models import small_convolutional


def test_parts_add_up_and_are_counted():
    model = ep.convert(small_convolutional(), relaxation=ep.Relaxation(4), gradient=ep.EquilibriumPropagation(steps=3))
    result = ep.profile(model, torch.rand(5, 1, 8, 8), torch.randint(10, (5,)), repeats=2)
    assert sum(part.seconds for part in result.parts) == pytest.approx(result.profiled)
    calls = {(part.phase, part.name): part.calls for part in result.parts}
    for phase, steps in (("free phase", 4), ("nudged phases", 3)):
        for name in ("0 -> 1 up", "0 -> 1 down", "layer 0 neurons", "layer 1 neurons"):
            assert calls[phase, name] == steps
    assert calls["stem", "all"] == calls["contrast", "all"] == 1
    assert profiling._active is None


def test_a_profile_changes_no_gradient_and_survives_an_error():
    model, x, y = ep.convert(small_convolutional()), torch.rand(5, 1, 8, 8), torch.randint(10, (5,))
    F.cross_entropy(model(x), y).backward()
    before = [p.grad.clone() for p in model.parameters()]
    ep.profile(model, x, y, repeats=1)
    assert all(torch.equal(p.grad, b) for p, b in zip(model.parameters(), before, strict=True))
    with pytest.raises(ValueError, match="shape"):
        ep.profile(model, torch.rand(5, 3, 8, 8), y, repeats=1)
    with pytest.raises(ValueError, match="repeats is 0"):
        ep.profile(model, x, y, repeats=0)
    assert profiling._active is None


def test_command():
    done = CliRunner().invoke(
        app, ["profile", "--model", "digits", "--batch-size", "1", "--repeats", "1", "--bfloat16"]
    )
    assert done.exit_code == 0, done.output
    for word in ("free phase", "nudged phases", "contrast", "0 -> 1 down", "layer 1 neurons", "bfloat16"):
        assert word in done.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "vgg"], "'2c2fc', 'perceptron', 'digits'"),
        (["--encoder", "rate"], "'predictive'"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--repeats", "0"], "repeats is 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(options, message):
    done = CliRunner().invoke(app, ["profile", *options])
    assert done.exit_code == 2
    assert message in done.output
    assert "Traceback" not in done.output
