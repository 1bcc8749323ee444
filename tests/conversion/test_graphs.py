"""Graphs of layers: concatenations, pieces, functions and constants between neurons, and what has no weights."""

import copy

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import nn

import ep_plugin as ep

FEEDBACK = 0.1
WEAK = 0.005  # under a strong feedback the winners of a pool may take turns for ever
SETTLED = {"encoder": "graded", "activation": "sigmoid", "relaxation": ep.Relaxation(600, tolerance=1e-13)}


def leaky():
    return snn.Leaky(beta=0.9, threshold=0.7, learn_threshold=True)


class Net(nn.Module):
    """Subclasses say by `run` what the model computes, where `neuron(k, drive)` gives the spikes of the k-th neuron."""

    shape: tuple[int, ...] = (8,)
    neurons = 3
    feedback = FEEDBACK

    def __init__(self):
        super().__init__()
        self.lif = nn.ModuleList(leaky() for _ in range(self.neurons))

    def forward(self, x):
        return self.run(x, lambda k, drive: self.lif[k](drive)[0])

    def drives(self, x, states):
        """What each neuron receives, and the output, where the neurons are at these states."""
        received = {}

        def neuron(k, drive):
            received[k] = drive
            return states[k]

        output = self.run(x, neuron)
        return [received[k] for k in range(self.neurons)], output


class Joined(Net):
    """Spikes of two layers, joined before a linear module."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.out = nn.Linear(8, 6), nn.Linear(6, 5), nn.Linear(11, 4), nn.Linear(4, 3)

    def run(self, x, neuron):
        s1 = neuron(0, self.a(x))
        s2 = neuron(1, self.b(s1))
        return self.out(neuron(2, self.c(torch.cat([s1, s2], 1))))


class WithTheInput(Net):
    """The input in the middle, by another name of the function, along the last dimension; a sum inside."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(4, 3)
        self.c = nn.Linear(6 + 8 + 6, 4)

    def run(self, x, neuron):
        s1 = neuron(0, self.a(x))
        s2 = neuron(1, self.b(s1))
        return self.out(neuron(2, self.c(torch.concat((s1 - 0.5 * s2, x, s2), dim=-1))))


class Twice(Net):
    """The same signal twice, a concatenation of a concatenation, and one that no weights follow."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 4), nn.Linear(4, 2), nn.Linear(10, 3)

    def run(self, x, neuron):
        s1 = neuron(0, self.a(x))
        s2 = neuron(1, self.b(s1) - 0.1)
        inner = torch.cat([s1, s2], -1)
        return self.out(neuron(2, torch.cat([inner, s1], 1) - 0.2))


class UNet(Net):
    """Pooled, raised again, and joined with what was there before; the input's features too."""

    shape = (1, 8, 8)

    def __init__(self):
        super().__init__()
        self.down, self.below = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(4, 2, 2, stride=2), nn.Conv2d(3 + 2 + 1, 2, 3, padding=1)
        self.out = nn.Conv2d(2, 1, 1)

    def run(self, x, neuron):
        s1 = neuron(0, self.down(x))
        s2 = neuron(1, self.below(F.avg_pool2d(s1, 2)))
        return self.out(neuron(2, self.last(torch.cat([s1, self.up(s2), x], dim=1))))


class Dense(Net):
    """Each block joins its features to all before it; a normalization and a pool behind the concatenations."""

    shape = (2, 8, 8)
    neurons = 4

    def __init__(self):
        super().__init__()
        self.first, self.one, self.two = (
            nn.Conv2d(2, 4, 3, padding=1),
            nn.Conv2d(4, 3, 1),
            nn.Conv2d(7, 3, 3, padding=1),
        )
        self.norm, self.between = nn.BatchNorm2d(10), nn.Conv2d(10, 4, 1, bias=False)
        nn.init.uniform_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        self.out = nn.Linear(16, 3)

    def run(self, x, neuron):
        h = self.first(x)
        s = neuron(0, h)
        h = torch.cat([h, self.one(s)], 1)
        s = neuron(1, h)
        h = torch.cat([h, self.two(s)], 1)
        s = neuron(2, self.norm(h))
        s = neuron(3, F.avg_pool2d(self.between(s), 4))
        return self.out(s.flatten(1))


class Inception(Net):
    """Branches through pools of their own, joined, flattened and read by one linear module."""

    feedback = WEAK
    shape = (1, 8, 8)

    def __init__(self):
        super().__init__()
        self.first, self.narrow, self.wide = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 1), nn.Conv2d(3, 3, 3, 1, 1)
        self.fc, self.out = nn.Linear((2 + 3 + 3) * 16, 5), nn.Linear(5, 3)

    def run(self, x, neuron):
        s = neuron(0, self.first(x))
        joined = torch.cat([self.narrow(F.avg_pool2d(s, 2)), F.avg_pool2d(self.wide(s), 2), F.max_pool2d(s, 2)], 1)
        s = neuron(1, self.fc(joined.flatten(1)))
        return self.out(neuron(2, s))


class PooledTogether(Net):
    """Max pooling and a ReLU behind a concatenation do to each part what they do to the whole."""

    feedback = WEAK
    shape = (1, 8, 8)

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(5, 2, 3)
        self.out = nn.Linear(8, 3)

    def run(self, x, neuron):
        s1 = neuron(0, self.a(x))
        s2 = neuron(1, self.b(s1))
        s3 = neuron(2, self.c(F.max_pool2d(F.relu(torch.cat([s2, s1], -3)), 2)))
        return self.out(s3.flatten(1))


class Stacked(Net):
    """Stacks that are summed or averaged, one that is flattened, and one of which a member is taken."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(12, 6)
        self.out = nn.Linear(6, 3)

    def run(self, x, neuron):
        s1 = neuron(0, self.a(x))
        s2 = neuron(1, self.b(s1))
        mean = torch.stack([s1, s2]).mean(0) + torch.stack([s2, s1], dim=-1).sum(dim=-1)
        flat = torch.stack((s1, s2), 2).flatten(1)
        return self.out(neuron(2, self.c(mean) + self.d(flat) + torch.stack([s1, s2], 0)[1]))


class Pieces(Net):
    """Chunks, splits and slices of spikes; channels in another order, and every second one."""

    shape = (1, 6, 6)

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(2, 4, 1)
        self.c, self.out = nn.Linear(6, 4), nn.Linear(4, 3)

    def run(self, x, neuron):
        s = neuron(0, self.first(x))
        one, two = s.chunk(2, 1)
        three = torch.split(s, [4, 2], dim=1)[1]
        drive = self.a(one - two.flip(1) + s[:, ::2]) + self.b(three) + s[:, [5, 1, 2, 0]] - s.narrow(1, 2, 4)
        s = neuron(1, drive).mean((2, 3)).roll(1, 1)
        return self.out(neuron(2, self.c(torch.cat([s, s[:, -2:]], 1)) + s[..., :4]))


class Rearranged(Net):
    """A sample's own axes in another order."""

    shape = (2, 4, 6)

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b = nn.Conv2d(2, 3, 1), nn.Linear(4, 5), nn.Linear(3 + 3, 2)
        self.out = nn.Linear(2 * 6 * 5, 3)

    def run(self, x, neuron):
        s = neuron(0, self.first(x))
        s = neuron(1, self.a(s.transpose(2, 3)))
        joined = torch.cat([s.permute(0, 2, 3, 1), s.permute(0, 2, 3, 1).flip(1)], -1)
        return self.out(neuron(2, self.b(joined)).flatten(1))


class AlongAnotherAxis(Net):
    """Joined along an axis that the linear module behind it does not see."""

    shape = (3, 6)

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.out = nn.Conv1d(3, 3, 2), nn.Linear(5, 5), nn.Linear(5, 4), nn.Linear(24, 3)

    def run(self, x, neuron):
        s1 = neuron(0, self.a(x))
        s2 = neuron(1, self.b(s1))
        return self.out(neuron(2, self.c(torch.cat([s1, s2], 1))).flatten(1))


class NoWeights(Net):
    """Neurons on the raw input, behind a pool alone, and on other spikes as they are."""

    shape = (2, 4, 4)
    neurons = 4

    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(8, 5), nn.Linear(5, 3)

    def run(self, x, neuron):
        s = neuron(0, x)
        s = neuron(1, F.avg_pool2d(s, 2))
        s = neuron(2, self.fc(s.flatten(1)))
        return self.out(neuron(3, s))


class OwnWeights(Net):
    """Parameters that forward uses itself, between neurons, before the first and after the last."""

    def __init__(self):
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(6, 8) / 3), nn.Parameter(torch.randn(6) / 3)
        self.w2, self.w3 = nn.Parameter(torch.randn(6, 5) / 3), nn.Parameter(torch.randn(5, 6) / 3)
        self.b2, self.scale = nn.Parameter(torch.randn(5)), nn.Parameter(torch.rand(5) + 0.5)
        self.alpha, self.out = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.randn(5, 3))
        self.offsets = nn.ParameterList([torch.randn(3)])
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]))
        self.fixed = torch.linspace(0.5, 1, 6)

    def run(self, x, neuron):
        s1 = neuron(0, F.linear(x * torch.exp(self.alpha), self.w1, self.b1) * self.fixed)
        s2 = neuron(1, s1 @ self.w2 * self.scale + self.b2)
        drive = torch.sigmoid(self.alpha) * s2 + (1 - self.alpha.sigmoid()) * F.linear(s1, self.w3 * self.mask[:, None])
        s3 = neuron(2, drive - self.b2[None] * torch.tensor(0.1))
        return torch.tanh(s3 @ self.out) + self.offsets[0]


class TiedWeights(Net):
    """A module's weight used again, transposed; one of two concatenations in one weight; convolutions of functions."""

    shape = (2, 6, 6)
    neurons = 4

    def __init__(self):
        super().__init__()
        self.kernel, self.fc = nn.Parameter(torch.randn(3, 2, 3, 3) / 3), nn.Linear(12, 5)
        self.shift, self.gain = nn.Parameter(torch.rand(3, 1, 1)), nn.Parameter(torch.ones(3))
        self.out = nn.Linear(12, 3)

    def run(self, x, neuron):
        s = neuron(0, F.conv2d(x, self.kernel, padding=1))
        s = neuron(1, F.conv_transpose2d(s, self.kernel, stride=1) + F.pad(s[:, :2], (1, 1, 1, 1)) * self.gain[0])
        s = F.avg_pool2d(F.conv2d(s, self.kernel) * self.gain.view(-1, 1, 1) + self.shift, 3).flatten(1)
        s = neuron(2, self.fc(s))
        return self.out(neuron(3, s @ self.fc.weight))


LINEAR = [
    *(Joined, WithTheInput, Twice, UNet, Dense, Inception, PooledTogether, Stacked, Pieces, Rearranged),
    *(AlongAnotherAxis, NoWeights, OwnWeights, TiedWeights),
]


def example(kind, batch=5):
    torch.manual_seed(2)
    return kind().eval(), torch.rand(batch, *kind.shape)


def settled(net, model, x):
    """Where the states lead that the energy asks for.

    Its gradient with respect to a layer is what the layer receives, and what it feeds: that of sum_j c_j <r_j, d_j>.
    """
    shapes = [s.shape for s in model.free_phase(x).states]
    states = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    scale = [net.feedback**-level for level in model.levels]
    value = model.layers[0].activation.value
    for _ in range(1000):
        drives, _ = net.drives(x, states)
        energy = sum((d * r.detach()).sum() / c for d, r, c in zip(drives, states, scale, strict=True))
        back = torch.autograd.grad(energy, states, allow_unused=True)
        asked = [
            value((d.detach() + (0 if b is None else c * b)) / lif.threshold).detach()
            for d, b, c, lif in zip(drives, back, scale, net.lif, strict=True)
        ]
        states = [(0.5 * (r.detach() + a)).requires_grad_() for r, a in zip(states, asked, strict=True)]
    return [r.detach() for r in states]


@pytest.mark.parametrize("kind", LINEAR, ids=lambda k: k.__name__)
def test_it_settles_where_the_forward_and_its_feedback_say(kind, float64):
    net, x = example(kind)
    model = ep.convert(net, **SETTLED, feedback=net.feedback)
    equilibrium = model.free_phase(x)
    assert equilibrium.converged.all()
    expected = settled(net, model, x)
    for found, wanted in zip(equilibrium.states, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(model(x), net.drives(x, expected)[1], rtol=0, atol=1e-9)


def gradients(net, model, x):
    """Of every parameter of the original, by equilibrium propagation and by backpropagation."""
    parameters = dict(net.named_parameters())
    assert {id(p) for p in parameters.values()} == {id(p) for p in model.parameters()}
    nudged = model.variant(estimator=ep.EquilibriumPropagation(1e-6, 300))
    target = torch.rand_like(model(x).detach())
    found, expected = (
        torch.autograd.grad((m(x) - target).pow(2).mean(), list(parameters.values()))
        for m in (nudged, model.variant(estimator=ep.BackpropThroughTime()))
    )
    return zip(parameters, found, expected, strict=True)


@pytest.mark.parametrize("kind", LINEAR, ids=lambda k: k.__name__)
def test_every_gradient_is_that_of_backpropagation(kind, float64):
    """Through settled graded states, for every parameter of the original."""
    net, x = example(kind)
    for name, a, b in gradients(net, ep.convert(net, **SETTLED, feedback=net.feedback), x):
        assert b.norm() > 1e-7, name
        assert (a - b).norm() <= 1e-3 * b.norm(), name


@pytest.mark.parametrize("kind", [Joined, UNet, Dense, Stacked, Pieces, NoWeights], ids=lambda k: k.__name__)
def test_it_learns_with_spikes(kind):
    """The defaults, on what a net of the same kind has said."""
    torch.manual_seed(0)
    x = torch.rand(64, *kind.shape)
    with torch.no_grad():
        target = ep.convert(kind().eval(), encoder="graded")(x)
    model = ep.convert(kind())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.dim() > 0], 2e-2)  # thresholds stay
    losses = []
    for _ in range(60):
        loss = F.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.5 * losses[0]


def test_measuring_changes_nothing(float64):
    """Statistics and modes are those of the original, and samples of other sizes may follow."""
    net = UNet()
    net.norm = nn.BatchNorm2d(3)
    first = net.down
    net.down = nn.Sequential(first, net.norm)
    net.train()
    model = ep.convert(net, **SETTLED)
    x = torch.rand(4, 1, 8, 8)
    model(x)
    mean = first(x).detach().mean((0, 2, 3))
    torch.testing.assert_close(net.norm.running_mean, 0.1 * mean)  # of the batch, once
    assert net.norm.training
    assert int(net.norm.num_batches_tracked) == 1
    for shape in ((2, 1, 4, 6), (4, 1, 8, 8), (1, 1, 10, 8)):
        model.eval()
        assert model(torch.rand(shape)).shape == shape
    one, two = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 4, 4)
    before, between = model(one), model(two).detach()
    parameters = list(net.parameters())
    kept = torch.autograd.grad(before.sum(), parameters)  # after another shape has come by
    torch.testing.assert_close(kept, torch.autograd.grad(model(one).sum(), parameters))
    assert between.shape == two.shape


def test_concatenations_are_copied_and_saved(tmp_path):
    net, x = example(UNet)
    model = ep.convert(net, encoder="graded")
    fresh = copy.deepcopy(model)
    expected = model(x)
    torch.save(model, tmp_path / "model.pt")
    for other in (fresh, copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert torch.equal(other(x), expected)
        assert other.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(fresh.double()(x.double()).float(), fresh(x.double()).float())
    assert {id(p) for p in model.parameters()} == {id(p) for p in net.parameters()}
    assert not any("measurement" in name for name in model.state_dict())


def test_frames_may_be_given_to_a_concatenation(float64):
    net, x = example(WithTheInput)
    one = ep.convert(net, **SETTLED)
    frames = ep.convert(net, encoder="graded", activation="sigmoid", time_varying=True)
    torch.testing.assert_close(frames(x.expand(100, *x.shape)), one(x), rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::ep_plugin.ConversionWarning")
def test_concatenations_in_a_nir_graph():
    """Its matrices are the slices."""
    net = Joined()
    graph = ep.to_nir(ep.convert(net))
    weight = net.c.weight.detach()
    torch.testing.assert_close(torch.tensor(graph.nodes["layer_0_connection_1"].weight), weight[:, :6])
    torch.testing.assert_close(torch.tensor(graph.nodes["layer_1_connection_2"].weight), weight[:, 6:])


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
