"""Numbers as people have them: scalars of NumPy and PyTorch are taken, and what cannot be meant is refused."""

import numpy as np
import pytest
import snntorch as snn
import torch
from changed_nets import plain_net
from torch import nn

import ep_plugin as ep
from ep_plugin import chips, models
from ep_plugin.lightning.data.folders import _height_and_width
from ep_plugin.validation import finite_number

pytestmark = pytest.mark.filterwarnings("ignore::ep_plugin.ConversionWarning")

LARGEST = 2**63 - 1


def network():
    return ep.convert(nn.Sequential(nn.Linear(6, 4), snn.Leaky(beta=0.5, init_hidden=True), nn.Linear(4, 3)))


def digits(**options):
    data = ep.DigitsDataModule(**options)
    data.setup()
    return data


def mismatch(**options):
    model = network()
    chips.add_mismatch(model, torch.rand(2, 6), **{"std": 0.05, **options})
    return model.layers[0].threshold


def small_vgg(**options):
    return models.vgg(**{"shape": (1, 8, 8), "channels": (2, 3), "hidden": 4, **options})


def small_residual(**options):
    return models.residual(**{"shape": (1, 8, 8), "channels": (2, 3), "blocks": (1, 1), **options})


def small_2c2fc(**options):
    return models.convolutional_2c2fc(**{"channels": (2, 3), "hidden": 4, **options})


NETS = [models.perceptron, models.small_convolutional, small_2c2fc, small_vgg, small_residual]


@pytest.mark.parametrize("three", [np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)], ids=repr)
def test_whole_numbers_of_numpy_and_pytorch_become_pythons_own(three):
    data = digits(seed=three, batch_size=three)
    assert (type(data.seed), data.seed, data.batch_size) == (int, 3, 3)
    batch, like = (next(iter(d.train_dataloader()))[1] for d in (data, digits(seed=3, batch_size=3)))
    assert torch.equal(batch, like)
    assert torch.equal(mismatch(seed=three), mismatch(seed=3))
    x = torch.rand(2, 6)
    model = network()
    assert torch.equal(ep.to_snntorch(model, num_steps=three)(x), ep.to_snntorch(model, num_steps=3)(x))
    assert chips.QuantizedWeight(three).levels == 3
    assert type(chips.QuantizedWeight(three).levels) is int
    assert chips.check_budget(model, x, neurons=three) == chips.check_budget(model, x, neurons=3)
    assert type(ep.EPLightningModule(model, population=three).population) is int
    for make in NETS:
        assert make(classes=three)[-1].out_features == 3
    assert [c.out_channels for c in small_vgg(channels=[three, three]) if isinstance(c, nn.Conv2d)] == [3, 3]


@pytest.mark.parametrize("make", [np.float32, np.float64, torch.tensor, np.array])
def test_numbers_of_numpy_and_pytorch_become_pythons_own(make):
    data = digits(validation=make(0.25))
    assert (type(data.validation), len(data._sets["val"])) == (float, 359)
    assert type(ep.EquilibriumPropagation(make(0.25)).beta) is float
    assert type(ep.EnergyCosts(multiply_add=make(0.25)).multiply_add) is float
    for net in (make_net(leak=make(0.25)) for make_net in NETS):
        assert ep.convert(net)
    for net in (make_net(gain=make(2.0)) for make_net in (models.perceptron, small_2c2fc, small_vgg, small_residual)):
        assert ep.convert(net)
    normalize = small_2c2fc(normalize=(make(0.5), np.array([0.25])))[0]
    assert (normalize.mean, normalize.std) == ([0.5], [0.25])


@pytest.mark.parametrize("seeded", [digits, mismatch])
def test_a_seed_is_a_whole_number_of_63_bits(seeded):
    seeded(seed=LARGEST)
    for seed in -1, 2**63, 2**64, 10**20:
        with pytest.raises(ValueError, match=rf"seed is {seed}; expected a whole number, 0 (or more|to {LARGEST})$"):
            seeded(seed=seed)
    for seed in 3.0, "3", True, None, torch.tensor(3.0), np.array([3]):
        with pytest.raises(TypeError, match=r"seed is .*; expected a whole number, 0 or more"):
            seeded(seed=seed)


COUNTS = [
    *((models.perceptron, name) for name in ("inputs", "hidden", "classes")),
    *((models.small_convolutional, name) for name in ("channels", "hidden", "classes")),
    *((small_2c2fc, name) for name in ("hidden", "classes")),
    *((small_vgg, name) for name in ("hidden", "classes")),
    (small_residual, "classes"),
    *((digits, name) for name in ("batch_size", "train_samples", "rate_coded")),
    (lambda **options: ep.to_snntorch(network(), **options), "num_steps"),
    (lambda **options: models.StandardizedWeight(**options), "outputs"),
    (ep.HealthMonitor, "every_n_batches"),
]


@pytest.mark.parametrize("number", [0, -1, 8.0, float("nan"), True, "3", int(1e30)], ids=repr)
def test_a_count_that_is_none(number):
    for make, name in COUNTS:
        error = ValueError if type(number) is int else TypeError
        with pytest.raises(error, match=rf"{name} is .*; expected a whole number, 1 (or more|to {LARGEST})$"):
            make(**{name: number})


@pytest.mark.parametrize("number", [-1, 2, float("nan"), float("inf"), True, "0.5", 10**400], ids=lambda n: f"{n!r:.9}")
@pytest.mark.parametrize("name", ["leak", "dropout"])
def test_a_share_that_is_none(name, number):
    for make in NETS:
        if name == "dropout" and make is models.small_convolutional:
            continue
        with pytest.raises((ValueError, TypeError), match=rf"{name} is .*; expected a (finite )?number"):
            make(**{name: number})


def test_a_dropout_of_everything_is_refused():
    for make in models.perceptron, small_2c2fc, small_vgg, small_residual:
        with pytest.raises(ValueError, match=r"dropout is 1\.0, with which the readout sees nothing"):
            make(dropout=1)


def test_sequences_that_are_none():
    for make, length in (small_2c2fc, "2"), (small_vgg, "one or more"), (small_residual, "one or more"):
        with pytest.raises(TypeError, match="channels is 3; expected a sequence of whole numbers"):
            make(channels=3)
        with pytest.raises(ValueError, match=rf"channels is \[\]; expected {length} whole numbers"):
            make(channels=())
        with pytest.raises(TypeError, match="shape is 8; expected a sequence of whole numbers"):
            make(shape=8)
        with pytest.raises(TypeError, match=r"normalize is 0\.5; expected a pair"):
            make(normalize=0.5)
        with pytest.raises(ValueError, match="mean is nan; expected a finite number"):
            make(normalize=(float("nan"), 1))
    with pytest.raises(TypeError, match="the input's shape is 6; expected whole numbers"):
        ep.to_snntorch(network(), feedback=True, input_shape=6)
    assert _height_and_width(np.array([3, 4])) == (3, 4)
    assert _height_and_width(np.int64(3)) == (3, 3)


def test_sets_that_nothing_is_left_of():
    with pytest.raises(ValueError, match=r"validation is 0\.99999, which leaves 1 of 1437 training images to train on"):
        digits(validation=0.99999)
    with pytest.raises(ValueError, match=r"train_samples is 1000000000; expected 1294 or fewer: of 1437 .* 143 are"):
        digits(train_samples=10**9)
    assert len(digits(train_samples=1437, validation="test")._sets["train"]) == 1437


def test_a_mismatch_that_no_threshold_survives():
    model = network()
    with pytest.raises(ValueError, match="std is 1000, with which some thresholds would be 0 or infinite"):
        chips.add_mismatch(model, torch.rand(2, 6), 1e3)
    assert model.layers[0].threshold == 1


def test_a_beta_whose_force_is_lost():
    """In float32 the gradient would be zero, infinite or nothing but rounding."""
    for rule, beta in (ep.EquilibriumPropagation, 1e-38), (ep.EquilibriumPropagation, 1e38), (ep.FullPhaseEP, 1e-20):
        with pytest.raises(ValueError, match=rf"beta is {beta:g}; expected a number from ".replace("+", r"\+")):
            rule(beta)
    assert ep.EquilibriumPropagation(10**20).beta == 1e20


def test_bits_are_checked_where_there_is_nothing_to_round():
    with pytest.raises(ValueError, match="bits is 99; expected 2 to 16"):
        chips.quantize_weights(nn.ReLU(), 99)


def test_a_flag_is_no_number():
    with pytest.raises(TypeError, match="spikes is 1; expected True or False"):
        ep.to_snntorch(network(), spikes=1)


def test_a_whole_number_beyond_all_floats():
    with pytest.raises(ValueError, match=r"a is 1000.*; expected a finite number"):
        finite_number("a", 10**400)


SCALARS = [np.float64, np.float32, torch.tensor, lambda n: np.asarray(n)]


@pytest.mark.parametrize("scalar", SCALARS, ids=["float64", "float32", "tensor", "array"])
def test_scalars_of_numpy_and_pytorch_are_numbers(scalar):
    number, whole = scalar(0.5), np.int64(3) if scalar in (np.float32, np.float64) else scalar(3)
    for made, expected in (
        (ep.Relaxation(whole, step_size=number), ep.Relaxation(3, step_size=0.5)),
        (ep.EquilibriumPropagation(number, whole), ep.EquilibriumPropagation(0.5, 3)),
        (ep.FullPhaseEP(number, whole), ep.FullPhaseEP(0.5, 3)),
        (ep.ImplicitDifferentiation(number, whole), ep.ImplicitDifferentiation(0.5, 3)),
        (ep.AdaptiveDelta(digits=whole), ep.AdaptiveDelta(digits=3)),
        (ep.PredictiveSigmaDelta(number), ep.PredictiveSigmaDelta(0.5)),
    ):
        assert repr(made) == repr(expected)
    assert ep.convert(plain_net(), feedback=number).feedback == 0.5
    with pytest.raises(TypeError, match="expected a whole number"):
        ep.Relaxation(number)
    with pytest.raises(TypeError, match="expected a number"):
        ep.EquilibriumPropagation(np.array([0.1, 0.2]))


def test_an_input_of_another_type_or_with_a_bad_sample_is_named():
    model = ep.convert(plain_net())
    with pytest.raises(
        ValueError, match=r"the input has the type torch\.float64 and the network's weights torch\.float32"
    ):
        model(torch.rand(4, 6).double())
    model(torch.rand(4, 6).double().to(torch.float32))
    x = torch.rand(4, 6)
    x[2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinite values in sample 2 of 4 \(1 in all\)"):
        model(x)


def test_types_that_do_not_go_together_are_named():
    model = ep.convert(plain_net())
    model.connections[0].module[2].half()
    message = r"0 -> 1 has weights of several types, 'module\.0\.weight' torch\.float32 and 'module\.2\.weight'"
    with pytest.raises(ValueError, match=message):
        model(torch.rand(4, 6))
    with pytest.raises(TypeError, match=r"the input is sparse .*x\.to_dense\(\)"):
        ep.convert(plain_net())(torch.rand(4, 6).to_sparse())
    net = plain_net()
    model = ep.convert(net)
    for part in net:
        for parameter in part.parameters():
            parameter.data = parameter.data.to(torch.complex64)
    for run in (lambda: model(torch.rand(4, 6)), lambda: ep.convert(net)):
        with pytest.raises(TypeError, match="weights are complex"):
            run()
