"""Forwards that do more than compute: they set, draw, keep, write in place. What is not followed is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from snntorch.functional import quant
from torch import nn
from torch.func import functional_call

import ep_plugin as ep

GRADED = {
    "encoder": "graded",
    "feedback": 1e-6,
    "relaxation": ep.Relaxation(60, step_size=1.0),
    "estimator": ep.ImplicitDifferentiation(),
}
X = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def leaky(**options):
    return snn.Leaky(beta=0.9, init_hidden=True, **options)


def rate(drive):
    return drive.clamp(0, 1)


class Net(nn.Module):
    """Two layers of neurons whose forward is a function of the net and the input."""

    def __init__(self, forward):
        super().__init__()
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(8, 8), leaky(), nn.Linear(8, 6), leaky()
        self.out, self.loop, self.calls = nn.Linear(6, 4), forward, 0
        self.scale, self.raw = nn.Parameter(torch.full((8,), 0.7)), nn.Parameter(torch.ones(8))
        self.register_buffer("g", torch.tensor(1.0))
        self.register_buffer("mean", torch.full((8,), 0.1))

    def layers(self, current, between=lambda h: h):
        return self.out(self.lif2(self.fc2(between(self.lif1(current)))))

    def rates(self, current, between=lambda h: h):
        """What `layers` settles at."""
        return self.out(rate(self.fc2(between(rate(current)))))

    def forward(self, x):
        return self.loop(self, x)


def fill(net, x):
    net.g.fill_(0.25)
    return net.layers(net.fc1(x) * net.g)


def replace(net, x):
    net.g = net.g * 0 + 0.25
    return net.layers(net.fc1(x) * net.g)


def write_through_data(net, x):
    net.g.data.clamp_(max=0.25)
    return net.layers(net.fc1(x) * net.g)


def frozen(net, x):
    with torch.no_grad():
        scaled = x * net.scale
    return net.layers(net.fc1(scaled))


def twice_in_place(net, x):
    h = net.fc1(x)
    h.add_(0.3)
    h.mul_(0.5)
    return net.layers(h)


FOLLOWED = {  # what forward does, and what it settles at
    "a buffer filled": (fill, lambda net: net.rates(net.fc1(X) * 0.25)),
    "a buffer replaced": (replace, lambda net: net.rates(net.fc1(X) * 0.25)),
    "a buffer written through data": (write_through_data, lambda net: net.rates(net.fc1(X) * 0.25)),
    "no gradient": (frozen, lambda net: net.rates(net.fc1(X * net.scale.detach()))),
    "changed twice": (twice_in_place, lambda net: net.rates((net.fc1(X) + 0.3) * 0.5)),
    "binary": (
        lambda net, x: net.layers(net.fc1((x > 0.5).float())),
        lambda net: net.rates(net.fc1((X > 0.5).float())),
    ),
    "binary, to": (
        lambda net, x: net.layers(net.fc1((x > 0.5).to(torch.float32))),
        lambda net: net.rates(net.fc1((X > 0.5).float())),
    ),
    "two thresholds": (
        lambda net, x: net.layers(net.fc1(((x > 0.3).float() + (x > 0.6).float()) * net.scale)),
        lambda net: net.rates(net.fc1(((X > 0.3).float() + (X > 0.6).float()) * net.scale)),
    ),
    "whole numbers": (
        lambda net, x: net.layers(net.fc1((3 * x).to(dtype=torch.int64).float())),
        lambda net: net.rates(net.fc1((3 * X).floor())),
    ),
    "spikes as floats": (
        lambda net, x: net.layers(net.fc1(x), lambda h: h.float()),
        lambda net: net.rates(net.fc1(X)),
    ),
    "normalized by mode": (
        lambda net, x: net.layers(F.batch_norm(net.fc1(x), net.mean, net.mean, training=net.training)),
        lambda net: net.rates((net.fc1(X) - 0.1) / (0.1 + 1e-5) ** 0.5),
    ),
}


@pytest.mark.parametrize("case", FOLLOWED)
def test_what_is_followed(case):
    forward, settles_at = FOLLOWED[case]
    torch.manual_seed(1)
    net = Net(forward).eval()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    model = ep.convert(net, **GRADED)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    found, expected = model(X), settles_at(net)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    parameters = list(net.parameters())
    own = torch.autograd.grad(found.square().sum(), parameters, allow_unused=True)
    others = torch.autograd.grad(expected.square().sum(), parameters, allow_unused=True)
    for a, b in zip(own, others, strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(zero if a is None else a, zero if b is None else b, atol=1e-3, rtol=1e-3)


def with_threshold(net, x):
    net.lif1.threshold = F.softplus(net.raw)
    return net.layers(net.fc1(x))


def with_threshold_written(net, x):
    net.lif1.threshold.data.fill_(0.3)
    return net.layers(net.fc1(x))


def skipping(draw):
    def forward(net, x):
        skip = draw()
        for _ in range(3):
            h = net.lif1(net.fc1(x))
            h = net.fc2(h) if skip else net.fc2(net.lif2(h[:, :6]) @ torch.ones(6, 8))
        return h

    return forward


def signed(net, x):
    net.fc1.weight.data = net.fc1.weight.data.abs()
    return net.layers(net.fc1(x))


def sets_data(net, x):
    net.g.data = torch.tensor(0.25)
    return net.layers(net.fc1(x) * net.g)


def decaying(net, x):
    net.g = net.g * 0.5
    for _ in range(3):
        made = net.layers(net.fc1(x) * net.g)
    return made


def counting(net, x):
    net.calls += 1
    for _ in range(3):
        made = net.layers(net.fc1(x * 0.5**net.calls))
    return made


def folded(net, x):
    return net.layers(net.fc1(x), lambda h: h.view(-1, 4).flip(1).view(-1, 8))


def folded_record(net, x):
    record = torch.stack([net.layers(net.fc1(x)) for _ in range(5)])
    return record.view(-1, 2, 2).softmax(2).view(5, -1, 4).mean(0)


def aliased(net, x):
    def between(h):
        d = net.fc1(h)
        r = d.add_(0.3)
        d.mul_(0.5)
        return d + r

    return net.layers(net.fc1(x), between)


def aliased_by_type(net, x):
    def between(h):
        d = net.fc1(h)
        r = d.float()
        r *= 0.5
        return d + r

    return net.layers(net.fc1(x), between)


def other_weights(net, x):
    weights = {"weight": net.fc1.weight * 0.1, "bias": net.fc1.bias}
    return net.layers(net.fc1(x), lambda h: functional_call(net.fc1, weights, (h,)))


REFUSED = {
    "a threshold of a parameter": (with_threshold, "calls module 'lif1' .* with another threshold than it had"),
    "a threshold written": (with_threshold_written, "calls module 'lif1' .* with another threshold than it had"),
    "a draw as a number": (skipping(lambda: torch.rand(1).item() < 0.5), "a random draw in forward"),
    "a draw that decides": (skipping(lambda: bool(torch.rand(1) < 0.5)), "a random draw in forward"),
    "a draw as a whole number": (skipping(lambda: int(torch.randint(2, (1,)))), "a random draw in forward"),
    "a draw of NumPy's": (skipping(lambda: np.random.rand() < 0.5), "a random draw in forward"),
    "data of a parameter": (signed, "changes the model's parameters in place"),
    "data of a buffer": (sets_data, "sets the .data of a tensor"),
    "a buffer that decays": (decaying, "differs between steps"),
    "a count of calls": (counting, "differs between steps"),
    "a value and its alias": (aliased, "a value that forward writes into"),
    "a value and its alias by type": (aliased_by_type, "a value that forward writes into"),
    "other weights": (other_weights, "calls module 'fc1' .* with another weight than it had"),
    "a size as a factor": (
        lambda net, x: net.layers(net.fc1(x)) * x.size(1),
        "the output depends on a size of the input",
    ),
    "a record folded": (folded_record, "view"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    forward, why = REFUSED[case]
    net = Net(forward)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    with pytest.raises(ValueError, match=why):
        ep.convert(net)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert net.calls == 0


def test_samples_made_of_samples():
    """Told by an example, and otherwise by the first input."""
    with pytest.raises(ValueError, match=r"view\(-1, 4\), which mixes samples"):
        ep.convert(Net(folded), example_input=X)
    model = ep.convert(Net(folded), **GRADED)
    with pytest.raises(ValueError, match=r"view\(-1, 4\) was given samples of 8 numbers"):
        model(X)
    with pytest.raises(ValueError, match="one axis of all samples"):
        ep.convert(Net(lambda net, x: net.layers(net.fc1(x), lambda h: h.view(-1))))


class Scaled(nn.BatchNorm1d):
    def forward(self, x):
        return 0.5 * super().forward(x)


class Filter(nn.Module):
    """A synapse by hand: 2 at a steady input."""

    kept = None

    def forward(self, x):
        self.kept = x if self.kept is None else 0.5 * self.kept + x
        return self.kept


class PerStep(nn.Module):
    def __init__(self):
        super().__init__()
        self.step, self.norms = 0, nn.ModuleList(nn.BatchNorm1d(6) for _ in range(4))

    def forward(self, x):
        self.step += 1
        return self.norms[(self.step - 1) % 4](x)


class Counting(nn.Module):
    """It keeps what has no part in what it returns."""

    def __init__(self):
        super().__init__()
        self.calls, self.last = 0, None

    def forward(self, x):
        self.calls, self.last = self.calls + 1, x
        return 2 * x


def sequence(module, place):
    parts = [nn.Linear(8, 6), leaky(), nn.Linear(6, 6), leaky(), nn.Linear(6, 6)]
    return nn.Sequential(*parts[:place], module, *parts[place:])


@pytest.mark.parametrize("place", [1, 3, 5])
@pytest.mark.parametrize("module", [Filter, PerStep])
def test_modules_that_keep_a_state(module, place):
    with pytest.raises(
        ValueError, match=rf"\({module.__name__}\) cannot be converted: it keeps something from one call"
    ):
        ep.convert(sequence(module(), place))


@pytest.mark.parametrize("place", [1, 3, 5])
def test_modules_that_keep_what_does_not_count(place):
    net = sequence(Counting(), place)
    model = ep.convert(net, **GRADED)
    doubled = [module if not isinstance(module, snn.Leaky) else nn.Hardtanh(0, 1) for module in net]
    torch.testing.assert_close(model(X), nn.Sequential(*doubled)(X), atol=1e-4, rtol=1e-4)


def test_a_batch_normalization_with_a_forward_of_its_own():
    with pytest.raises(ValueError, match=r"'3' \(Scaled\) cannot be converted: it is a batch normalization with a for"):
        ep.convert(sequence(Scaled(6), 3))


def test_a_quantized_membrane():
    net = Net(None)
    net.lif2 = snn.Leaky(beta=0.5, reset_mechanism="none", state_quant=quant.state_quant(2, threshold=1))
    net.loop = lambda net, x: net.lif2(net.fc2(net.lif1(net.fc1(x))), net.lif2.init_leaky())[1]
    with pytest.raises(ValueError, match="read by its membrane and uses state_quant"):
        ep.convert(net)


@pytest.mark.parametrize(
    ("driven", "what"),
    [
        (lambda net, mem: mem + net.raw, "the parameter 'raw'"),
        (lambda net, mem: mem + 0.3, "a constant that is added in every step"),
        (lambda net, mem: mem - torch.ones(8), "a constant that is added in every step"),
        (lambda net, mem: mem + 0.1 * torch.randn_like(mem), "a random draw"),
    ],
)
def test_what_drives_a_state(driven, what):
    def forward(net, x):
        mem = torch.zeros(4, 8)
        for _ in range(3):
            spikes, mem = net.lif1(net.fc1(x), driven(net, mem))
        return net.out(net.lif2(net.fc2(spikes)))

    net = Net(forward)
    net.lif1 = snn.Leaky(beta=0.9)
    with pytest.raises(ValueError, match=f"'lif1' .* is handed a state that depends on {what}"):
        ep.convert(net)
    net.loop = lambda net, x: forward_of_reset(net, x)
    ep.convert(net)


def forward_of_reset(net, x):
    """A reset and a leak by hand have no part in the equilibrium."""
    mem = torch.zeros(4, 8)
    for _ in range(3):
        spikes, mem = net.lif1(net.fc1(x), 0.9 * mem.detach())
        mem = mem - 1.0 * spikes
    return net.out(net.lif2(net.fc2(spikes)))


def test_a_state_in_an_object_is_given_back():
    def forward(net, x):
        if net.state.mem is None:
            net.state.mem = net.lif1.init_leaky()
        spikes, net.state.mem = net.lif1(net.fc1(x), net.state.mem)
        return net.out(net.lif2(net.fc2(spikes)))

    net = Net(forward)
    net.lif1, net.state = snn.Leaky(beta=0.9), SimpleNamespace(mem=None)
    ep.convert(net)
    assert net.state.mem is None
    assert net(X).shape == (4, 4)


def test_a_buffer_replaced_later():
    net = Net(lambda net, x: net.layers(net.fc1(x) * net.g))
    model = ep.convert(net, **GRADED)
    before = model(X)
    net.g = net.g.clone()  # moved, say: of the same value
    torch.testing.assert_close(model(X), before)
    net.g = torch.tensor(0.2)
    with pytest.raises(ValueError, match="the tensor 'g' of the original was replaced after the conversion"):
        model(X)


def test_lazy_weights_before_the_first_neuron():
    model = ep.convert(nn.Sequential(nn.LazyLinear(6), leaky(), nn.Linear(6, 3)))
    assert model(X).shape == (4, 3)
    with pytest.raises(ValueError, match=r"expected \[batch, 8\]"):
        model(torch.rand(4, 7))
