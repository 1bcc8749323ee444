"""What may not stand between neurons, or inside a recurrent one, and what it says."""

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from joined import SETTLED, Net, leaky
from torch import nn

import ep_plugin as ep


class Failing(Net):
    """What stands between two neurons is given; `works` takes the place of it where a refusal's way out is followed."""

    neurons = 2

    def __init__(self, between):
        super().__init__()
        self.a, self.fc, self.out, self.between = nn.Linear(8, 8), nn.Linear(8, 8), nn.LazyLinear(3), between

    def run(self, x, neuron):
        s = neuron(0, self.a(x))
        return self.out(neuron(1, self.between(self, s)))


def batch_norm_of_functions(net, s):
    return F.batch_norm(s, torch.zeros(8), torch.ones(8))


REFUSED = {
    "a product of states": (
        lambda net, s: net.fc(s) * s,
        lambda net, s: net.fc(s) + s,
        r"'lif.1' \(Leaky\) depends on mul\(\) of several tensors.*expected sums of signals",
    ),
    "a quotient of states": (
        lambda net, s: 1 / (s + 1),
        lambda net, s: s + 1,
        r"not known to be linear",
    ),
    "rounded": (
        lambda net, s: torch.div(s, 0.3, rounding_mode="floor"),
        lambda net, s: torch.div(s, 0.3),
        r"the function div\(\) between two neurons cannot be converted: it is not known to be linear",
    ),
    "along the batch": (
        lambda net, s: net.fc(torch.cat([s, net.fc(s)])),
        lambda net, s: net.fc(torch.cat([s, s], 1)[:, ::2]),
        r"the concatenation of 2 signals before module 'lif.1' \(Leaky\).*along the batch.*expected dim=1",
    ),
    "a sample alone": (
        lambda net, s: net.fc(s[0]),
        lambda net, s: s[:, 0:1],
        r"'lif.1' \(Leaky\) depends on an index, 0, which takes some of the samples of the batch",
    ),
    "a constant alone": (
        lambda net, s: net.fc(torch.ones(1, 8)),
        lambda net, s: net.fc(s),
        r"'lif.1' \(Leaky\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_between_neurons(case):
    """Place, reason, and a way out that works."""
    between, works, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        ep.convert(Failing(between))
    ep.convert(Failing(works))(torch.rand(4, 8))


SEEN_LATE = {
    "samples in another order": (lambda net, s: s.flip(0), r"flip\(\) between neurons.*other than the batch's"),
    "the mean over the batch": (lambda net, s: s - s.mean(0, True), r"mean\(\) between neurons.*each sample"),
    "a dimension from the end": (lambda net, s: s.sum(-2, keepdim=True), r"sum\(\) between neurons.*each sample"),
    "a dimension that is not there": (lambda net, s: s.transpose(1, 2), r"transpose\(\).* does not fit.*\[batch, 8\]"),
    "a concatenation that does not fit": (
        lambda net, s: net.fc(torch.cat([s, s.unsqueeze(2)], 1)),
        r"concatenation of 2 signals before module 'lif.1'.*shapes \(8,\), \(8, 1\)",
    ),
}


@pytest.mark.parametrize("case", SEEN_LATE)
def test_what_mixes_samples_is_refused_at_the_first_input(case):
    """Where sizes are needed to see it."""
    between, message = SEEN_LATE[case]
    model = ep.convert(Failing(between))
    with pytest.raises(ValueError, match=message):
        model(torch.rand(4, 8))


def test_too_many_entries_for_the_weights_are_told():
    model = ep.convert(Failing(lambda net, s: net.fc(torch.cat([s, s], 1))))
    with pytest.raises(ValueError, match=r"connection 0 -> 1 does not fit.*gives 16 entries; expected 8"):
        model(torch.rand(4, 8))


def with_recurrent(module, **options):
    neuron = snn.RLeaky(beta=0.5, linear_features=8, **options)
    neuron.recurrent = module
    return nn.Sequential(nn.Linear(6, 8), neuron, nn.Linear(8, 3))


def test_modules_inside_a_recurrent_neuron_are_those_that_stand_between_others(float64):
    """Batch normalization by its statistics, dropout by one mask, sequences unpacked; with exact gradients."""
    norm = nn.BatchNorm1d(8)
    nn.init.uniform_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    inside = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), norm)
    with torch.no_grad():
        inside[0].weight.mul_(0.2)
    net = with_recurrent(inside).eval()
    with pytest.warns(ep.ConversionWarning, match=r"'1.recurrent.2' \(BatchNorm1d\) uses its running statistics"):
        model = ep.convert(net, **SETTLED)
    x = torch.rand(5, 6)
    (r,) = model.free_phase(x).states
    v = torch.autograd.functional.jacobian(lambda r: inside(r[None])[0], torch.zeros(8))
    offset = inside(torch.zeros(1, 8))
    drive = net[0](x) + r @ (v + v.T) / 2 + offset
    torch.testing.assert_close(r, model.layers[0].activation.value(drive).detach(), rtol=0, atol=1e-10)
    parameters = list(model.parameters())
    found, expected = (
        torch.autograd.grad(model.variant(estimator=e)(x).pow(2).sum(), parameters)
        for e in (ep.EquilibriumPropagation(1e-6, 300), ep.BackpropThroughTime())
    )
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-3 * b.norm() + 1e-9


@pytest.mark.parametrize(
    ("module", "works", "message"),
    [
        (nn.LayerNorm(8), nn.BatchNorm1d(8), r"'1.recurrent' \(LayerNorm\) cannot be converted.*batch normalization"),
        (nn.Bilinear(1, 1, 1), nn.Linear(8, 8), r"'1.recurrent' \(Bilinear\).*not known to be linear"),
        (nn.ReLU(), nn.Identity(), r"'1' \(RLeaky\).*recurrent weights.*piece by piece.*no ReLU"),
        (nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 8), r"'1.recurrent.1' \(Tanh\).*smooth"),
    ],
)
def test_what_a_recurrent_neuron_may_not_hold(module, works, message):
    with pytest.raises(ValueError, match=message):
        ep.convert(with_recurrent(module))
    ep.convert(with_recurrent(works).eval())(torch.rand(2, 6))


def test_dropout_between_neurons_keeps_the_originals_mode():
    net = nn.Sequential(nn.Linear(6, 8), leaky(), nn.Dropout(), nn.Linear(8, 4), leaky())
    x = torch.rand(5, 6)
    evaluated = ep.convert(net.eval())
    assert torch.equal(evaluated(x), evaluated(x))
    trained = ep.convert(net.train())
    assert not torch.equal(trained(x), trained(x))


class ByMode(nn.Module):
    """A module of the user's that does something else in training."""

    def forward(self, x):
        return 2 * x if self.training else x


class Threefold(nn.Module):
    """One that does the same in both modes: it is read."""

    def forward(self, x):
        return 3 * x[:, :4]


def test_a_module_that_asks_for_the_mode_is_not_read_in_one_of_them():
    def of(module, size=8):
        return nn.Sequential(nn.Linear(6, 8), leaky(), module, nn.Linear(size, 4), leaky())

    with pytest.raises(ValueError, match=r"'2' \(ByMode\) cannot be converted: .*register_linear\(ByMode\)"):
        ep.convert(of(ByMode()))
    assert ep.convert(of(Threefold(), 4))(torch.rand(2, 6)).shape == (2, 4)


def test_a_lazy_module_between_neurons_is_called_first():
    net = nn.Sequential(nn.Linear(6, 8), snn.Leaky(beta=0.5, init_hidden=True), nn.LazyLinear(4), leaky())
    with pytest.raises(ValueError, match=r"'2' \(LazyLinear\).*no size before the first call: call the model once"):
        ep.convert(net)
    net(torch.rand(2, 6))
    assert ep.convert(net)(torch.rand(2, 6)).shape == (2, 4)
