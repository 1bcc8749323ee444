"""Models in: what is shared, what is told, what is refused."""

import warnings

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import nn

import ep_plugin as ep


def model_of(*modules, **options):
    return ep.convert(nn.Sequential(*modules), **options)


def test_parameters_are_shared():
    net = nn.Sequential(
        nn.Linear(4, 8),
        snn.Leaky(beta=0.5, learn_threshold=True),
        nn.Linear(8, 2),
        snn.Leaky(beta=0.5),
        nn.Linear(2, 2),
    )
    model = ep.convert(net)
    assert {p.data_ptr() for p in net.parameters()} == {p.data_ptr() for p in model.parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    F.cross_entropy(model(torch.rand(5, 4)), torch.randint(2, (5,))).backward()
    optimizer.step()
    assert not torch.equal(net.state_dict()["0.weight"], before["0.weight"])
    assert torch.equal(net[2].weight, model.connections[0].module[0].weight)


def test_what_it_tells_once():
    with pytest.warns(ep.ConversionWarning) as told:
        model_of(nn.Linear(4, 3), snn.Leaky(beta=0.9), nn.Linear(3, 2), snn.Lapicque(beta=0.9))
    assert len(told) == 1
    text = str(told[0].message)
    assert all(word in text for word in ("leak", "reset", "Leaky", "Lapicque", "one tensor [batch, ...]"))
    assert told[0].filename == __file__


def test_convergent_neurons_need_no_telling():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model_of(nn.Linear(4, 3), ep.ConvergentLeaky(), nn.Linear(3, 2))


@pytest.mark.parametrize("leak", [0.5, 0.95])
def test_leak_does_not_matter(leak):
    torch.manual_seed(3)
    model = model_of(nn.Linear(4, 3), snn.Leaky(beta=leak), nn.Linear(3, 2))
    torch.manual_seed(3)
    other = model_of(nn.Linear(4, 3), snn.Leaky(beta=0.1), nn.Linear(3, 2))
    x = torch.rand(2, 4)
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize("last", [[snn.Leaky(beta=0.5, init_hidden=True, output=True)], [nn.Linear(5, 5)], []])
@pytest.mark.parametrize("pool_first", [True, False])
def test_sequentials_people_write(last, pool_first):
    pool = [nn.AvgPool2d(2), snn.Leaky(beta=0.5, init_hidden=True)]
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), *(pool if pool_first else pool[::-1])),
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.AvgPool2d(2), ep.ConvergentLeaky(threshold=0.8)),
        nn.Flatten(),
        nn.Linear(6, 5),
        snn.Lapicque(beta=0.5),
        *([nn.Linear(5, 5), *last] if last and isinstance(last[0], snn.Leaky) else last),
    )
    model = ep.convert(net)
    out = model(torch.rand(3, 1, 10, 10))
    assert out.shape == (3, 5)
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_stem_and_readout_may_be_anything():
    model = model_of(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2), snn.Leaky(beta=0.5),
        nn.Flatten(), nn.Linear(64, 8), snn.Leaky(beta=0.5), nn.Dropout(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip
    model(torch.rand(2, 1, 10, 10)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_max_pooling_is_a_choice():
    def modules():
        return (
            nn.Conv2d(1, 4, 3), snn.Leaky(beta=0.5), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), snn.Leaky(beta=0.5),
            nn.Flatten(), nn.Linear(36, 3),
        )  # fmt: skip

    x = torch.rand(2, 1, 10, 10)
    with pytest.warns(ep.ConversionWarning) as told:
        kept = model_of(*modules())
    assert "pooling" not in str(told[0].message)  # it does what it did, so nothing is told
    assert isinstance(kept.connections[0].module[1], nn.MaxPool2d)
    with pytest.warns(ep.ConversionWarning, match="became average pooling"):
        average = model_of(*modules(), max_pooling="average")
    assert isinstance(average.connections[0].module[1], nn.AvgPool2d)
    for model in (average, kept):
        model(x).sum().backward()
        assert all(p.grad is not None for p in model.parameters())


# Layers between neurons: 4 channels and a place of 6 (x 6 x 6) in.
torch.manual_seed(0)  # the modules draw their weights here, before any test seeds them
LAYERS = {
    "conv1d": (1, [nn.Conv1d(4, 3, 3)]),
    "conv3d": (3, [nn.Conv3d(4, 3, 3, stride=2, padding=1)]),
    "transposed 1d": (1, [nn.ConvTranspose1d(4, 3, 3, stride=2)]),
    "transposed 2d": (2, [nn.ConvTranspose2d(4, 2, 3, stride=2, output_padding=1)]),
    "strided": (2, [nn.Conv2d(4, 3, 3, stride=2)]),
    "grouped": (2, [nn.Conv2d(4, 6, 3, groups=2)]),
    "depthwise": (2, [nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.Conv2d(4, 3, 1)]),
    "adaptive": (2, [nn.Conv2d(4, 3, 3), nn.AdaptiveAvgPool2d((3, 2))]),
    "adaptive 3d": (3, [nn.Conv3d(4, 2, 3), nn.AdaptiveAvgPool3d(2)]),
    "pooled 3d": (3, [nn.Conv3d(4, 2, 3), nn.AvgPool3d(2)]),
    "reflected": (2, [nn.ReflectionPad2d(1), nn.Conv2d(4, 2, 3)]),
    "constant": (1, [nn.ConstantPad1d((2, 1), 0.5), nn.Conv1d(4, 2, 3)]),
    "circular": (2, [nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular")]),
    "upsampled": (2, [nn.Upsample(scale_factor=1.5, mode="bilinear"), nn.Conv2d(4, 2, 3)]),
    "normalized 1d": (1, [nn.Conv1d(4, 3, 3), nn.BatchNorm1d(3)]),
    "normalized 2d": (2, [nn.Conv2d(4, 3, 3, bias=False), nn.BatchNorm2d(3), nn.AvgPool2d(2)]),
    "normalized 3d": (3, [nn.BatchNorm3d(4), nn.Conv3d(4, 2, 3)]),
    "dropped": (2, [nn.Dropout2d(0.3), nn.Conv2d(4, 3, 3), nn.Dropout(0.3)]),
}
PIECEWISE = {
    "max pooled": (2, [nn.Conv2d(4, 3, 3), nn.MaxPool2d(2)]),
    "max pooled first": (1, [nn.MaxPool1d(2), nn.Conv1d(4, 3, 2)]),
    "max pooled 3d": (3, [nn.Conv3d(4, 3, 3), nn.AdaptiveMaxPool3d(2)]),
    "relu": (2, [nn.Conv2d(4, 5, 3), nn.ReLU(inplace=True), nn.Conv2d(5, 3, 1)]),
    "relu6": (2, [nn.ReLU6(), nn.Conv2d(4, 3, 3)]),
    "leaky relu": (2, [nn.Conv2d(4, 5, 3), nn.LeakyReLU(0.2), nn.AvgPool2d(2), nn.Conv2d(5, 3, 1)]),
    "clipped": (2, [nn.Conv2d(4, 5, 3), nn.Hardtanh(-0.1, 0.1), nn.Conv2d(5, 3, 1)]),
}


def gradients(modules, dim, **settings):
    """Of every parameter, by EP and by backpropagation through the same dynamics; and how far from settled they are."""
    first = getattr(nn, f"Conv{dim}d")(1, 4, 3)
    net = nn.Sequential(first, snn.Leaky(0.5), *modules, snn.Leaky(0.5), nn.Flatten(), nn.LazyLinear(3)).double()
    model = ep.convert(net, encoder="graded", activation="sigmoid", relaxation=ep.Relaxation(80), **settings)
    x, y = torch.rand(3, 1, *[8] * dim), torch.randint(3, (3,))
    model(x)  # the readout learns its size
    found = []
    for estimator in (ep.EquilibriumPropagation(1e-3, 60, "symmetric"), ep.BackpropThroughTime()):
        model.estimator = estimator
        torch.manual_seed(1)
        output, equilibrium = model(x, return_equilibrium=True)
        found.append(torch.autograd.grad(F.cross_entropy(output, y), list(model.parameters())))
    return zip(*found, strict=True), equilibrium.residual


@pytest.mark.parametrize("case", LAYERS)
def test_layers_between_neurons(case, float64):
    """Each converts, and EP's gradient is that of backpropagation through the same dynamics."""
    dim, modules = LAYERS[case]
    for a, b in gradients(modules, dim, feedback=0.3)[0]:
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("case", PIECEWISE)
def test_piecewise_linear_layers_between_neurons(case, float64):
    """The same of those that are linear only near a state; with the default feedback, under which they settle."""
    dim, modules = PIECEWISE[case]
    pairs, residual = gradients(modules, dim)
    assert residual.max() < 1e-9
    for a, b in pairs:
        assert (a - b).norm() <= 1e-5 * b.norm()


L = nn.Linear(4, 4)
REFUSED = {
    "no neuron": ([L], "has no neuron"),
    "layer norm": (
        [L, snn.Leaky(beta=0.5), L, nn.LayerNorm(4), snn.Leaky(beta=0.5)],
        r"'3' \(LayerNorm\).*smooth and not linear.*second derivative.*batch normalization",
    ),
    "batch norm without statistics": (
        [L, snn.Leaky(beta=0.5), L, nn.BatchNorm1d(4, track_running_stats=False), snn.Leaky(beta=0.5)],
        r"'3' \(BatchNorm1d\).*track_running_stats=True",
    ),
    "alpha dropout": ([L, snn.Leaky(beta=0.5), nn.AlphaDropout(), L, snn.Leaky(beta=0.5)], r"nn\.Dropout"),
    "group norm": (
        [L, snn.Leaky(beta=0.5), L, nn.GroupNorm(2, 4), snn.Leaky(beta=0.5)],
        r"'3' \(GroupNorm\).*second derivative",
    ),
    "smooth": (
        [L, snn.Leaky(beta=0.5), nn.SiLU(), L, snn.Leaky(beta=0.5)],
        r"'2' \(SiLU\).*smooth and not linear.*nonlinearity already.*ReLU",
    ),
    "unknown": (
        [L, snn.Leaky(beta=0.5), nn.Bilinear(1, 1, 1), L, snn.Leaky(beta=0.5)],
        "not known to be linear",
    ),
    "parallel": ([L, snn.LeakyParallel(4, 4), L], r"'1' \(LeakyParallel\).*all time steps in one call.*snn\.Leaky"),
    "long short-term memory": ([L, snn.SLSTM(4, 4), L], r"'1' \(SLSTM\).*gates"),
    "associative": ([L, snn.AssociativeLeaky.from_num_spiking_neurons(4, 4, False), L], "AssociativeLeaky.*gated"),
    "synapse that never settles": ([L, snn.Synaptic(alpha=1.0, beta=0.5), L], "synapse without a steady state"),
    "learnable synapse": ([L, snn.Synaptic(alpha=0.5, beta=0.5, learn_alpha=True), L], "learn_alpha=False"),
    "learnable leak": ([L, snn.Leaky(beta=0.5, learn_beta=True), L], "learn_beta=False"),
    "inhibition": ([L, snn.Leaky(beta=0.5, inhibition=True), L], "inhibition=False"),
    "graded spikes": ([L, snn.Leaky(beta=0.5, graded_spikes_factor=2.0), L], "graded_spikes_factor"),
    "threshold": ([L, snn.Leaky(beta=0.5, threshold=0.0), L], "threshold"),
    "flattened batch": ([L, snn.Leaky(beta=0.5), nn.Flatten(0), L, snn.Leaky(beta=0.5)], "start_dim=1"),
}


@pytest.mark.filterwarnings("ignore:Inhibition")
@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_where_why_and_what_to_do(case):
    modules, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        model_of(*modules)


def test_only_modules():
    with pytest.raises(TypeError, match=r"expected an nn\.Module"):
        ep.convert([nn.Linear(3, 3)])
    with pytest.raises(ValueError, match="has no neuron"):
        ep.convert(nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "rate"}, "'adaptive_delta', 'graded', 'sigma_delta', 'predictive_sigma_delta', 'bernoulli'"),
        ({"activation": "tanh"}, "'hard_sigmoid', 'sigmoid', 'relu6'"),
        ({"observe": "spikes"}, "'trace', 'membrane'"),
        ({"max_pooling": "max"}, "'keep', 'average'"),
        ({"learnable_leak": True}, "'refuse', 'freeze'"),
        ({"feedback": 0.0}, "feedback is 0.0"),
        ({"feedback": 1.5}, "feedback is 1.5"),
        ({"feedback": [0.1, 0.2]}, "feedback has 2 values"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        model_of(nn.Linear(4, 3), snn.Leaky(beta=0.5), nn.Linear(3, 2), snn.Leaky(beta=0.5), **options)


def test_a_deep_spiking_network_needs_no_warning():
    """The first of six layers gets the gradient that it has with graded states."""
    modules = [m for _ in range(6) for m in (nn.Linear(20, 20), ep.ConvergentLeaky())]
    net = ep.initialize_(nn.Sequential(*modules, nn.Linear(20, 4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = ep.convert(net)
    x, y = torch.rand(64, 20), torch.randint(4, (64,))
    exact = model.variant(encoder="graded", estimator=ep.BackpropThroughTime(), relaxation=ep.Relaxation(20))
    a, b = (torch.autograd.grad(F.cross_entropy(m(x), y), net[0].weight)[0].flatten() for m in (model, exact))
    assert F.cosine_similarity(a, b, 0) > 0.95


def test_initialize_helper():
    net = nn.Sequential(nn.Linear(100, 50), snn.Leaky(beta=0.5))
    assert ep.initialize_(net, 2.0) is net
    assert 0.19 < net[0].weight.abs().max() <= 0.2
    assert not net[0].bias.any()
    with pytest.raises(ValueError, match="gain"):
        ep.initialize_(net, 0.0)
    with pytest.raises(ValueError, match="no convolution"):
        ep.initialize_(nn.ReLU())
