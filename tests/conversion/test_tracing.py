"""Models with a forward of their own: what their trace becomes."""

import copy

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from problems import Residual
from torch import nn

import ep_plugin as ep

GRADED = {"encoder": "graded", "relaxation": ep.Relaxation(60, step_size=1.0)}


class Net(nn.Module):
    """Two layers; subclasses say what a forward does with them."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(8, 6), snn.Leaky(beta=0.5)
        self.fc2, self.lif2 = nn.Linear(6, 6), snn.Leaky(beta=0.5)
        self.out = nn.Linear(6, 3)


def same(net, x=None, **options):
    """The converted net settles where the sequence of the same modules does."""
    x = torch.rand(4, 8) if x is None else x
    expected = ep.convert(nn.Sequential(net.fc1, net.lif1, net.fc2, net.lif2, net.out), **GRADED)(x)
    torch.testing.assert_close(ep.convert(net, **GRADED | options)(x), expected)


class Stepwise(Net):
    def forward(self, x, mem1, mem2):
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return self.out(spk2), mem1, mem2


class Hidden(Net):
    def __init__(self):
        super().__init__()
        for neuron in (self.lif1, self.lif2):
            neuron.init_hidden = True

    def forward(self, x):
        self.lif1.reset_mem()
        for _ in range(5):
            out = self.out(self.lif2(self.fc2(self.lif1(self.fc1(x)))))
        return out


class Named(Net):
    def forward(self, x, state=None):
        if state is None:
            state = {"mem1": None, "mem2": None}
        spk1, state["mem1"] = self.lif1(input_=self.fc1(x), mem=state["mem1"])
        spk2, state["mem2"] = self.lif2(self.fc2(spk1), state["mem2"])
        return self.out(spk2)


class ForStep(Net):
    """The length of the loop is the input's."""

    def forward(self, x):
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        record = torch.zeros(x.shape[0], x.shape[1], 3, device=x.device, dtype=x.dtype)
        for step in range(x.shape[0]):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            record[step] = self.out(spk2)
        return record


class OverSteps(Net):
    def forward(self, x):
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        record = []
        for x_t in x:
            spk1, mem1 = self.lif1(self.fc1(x_t), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            record.append(self.out(spk2))
        return {"out": torch.stack(record)}["out"].mean(0)


class Summed(Net):
    def forward(self, x):
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        total = torch.zeros(x.size(0), 3)
        for _ in range(4):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            total = total + self.out(spk2) / 4
        return total


class Means(Net):
    def forward(self, x):
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        record = []
        for _ in range(4):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            record += [spk2]
        torch.stack([mem1, mem2])  # kept for a plot
        return self.out(torch.stack(record).sum(dim=0) / 4)


class Blocks(Net):
    """Neurons in a module of their own inside a sequence."""

    class Block(nn.Module):
        def __init__(self, fc, lif):
            super().__init__()
            self.fc, self.lif = fc, lif

        def forward(self, x):
            return self.lif(self.fc(x))[0]

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(self.Block(self.fc1, self.lif1), self.Block(self.fc2, self.lif2), self.out)

    def forward(self, x):
        return self.blocks(x)


class Unpacked(Net):
    def forward(self, x):
        steps, batch, _ = x.shape
        record = torch.zeros(steps, batch, 3)
        for step in range(steps):
            record[step] = self.out(self.lif2(self.fc2(self.lif1(self.fc1(x[step].view(batch, -1)))[0]))[0])
        return record


@pytest.mark.parametrize("kind", [Stepwise, Hidden, Named, ForStep, OverSteps, Summed, Means, Blocks, Unpacked])
def test_forwards_people_write(kind):
    net = kind()
    state = copy.deepcopy(net.state_dict())
    attributes = set(vars(net))
    same(net)
    assert set(vars(net)) == attributes
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def test_a_sequence_of_blocks_is_traced_too():
    net = Blocks()
    torch.testing.assert_close(ep.convert(net.blocks, **GRADED)(x := torch.rand(4, 8)), ep.convert(net, **GRADED)(x))


def test_the_time_axis_is_told():
    with pytest.warns(ep.ConversionWarning, match="no time axis"):
        ep.convert(ForStep())


def test_all_steps_may_be_given():
    """A constant input over time leads where the input of one step does."""
    net, x = ForStep(), torch.rand(4, 8)
    over_time = ep.convert(net, **GRADED, time_varying=True)
    torch.testing.assert_close(over_time(x.expand(20, 4, 8)), ep.convert(net, **GRADED)(x))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, 4, 3), snn.Leaky(beta=0.5)
        self.conv2, self.lif2 = nn.Conv2d(4, 5, 3), snn.Leaky(beta=0.5)
        self.fc, self.lif3 = nn.Linear(20, 6), snn.Leaky(beta=0.5)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        mem1, mem2, mem3 = self.lif1.reset_mem(), self.lif2.reset_mem(), self.lif3.reset_mem()
        x = torch.tanh(F.relu(x) * 2 - 1).reshape(x.size(0), 1, 10, 10)
        for _ in range(2):
            spk1, mem1 = self.lif1(F.avg_pool2d(self.conv1(x), 2), mem1)
            cur2 = F.adaptive_avg_pool2d(self.conv2(F.pad(spk1, (2, 1, 1, 2))), 2)
            spk2, mem2 = self.lif2(cur2.contiguous(), mem2)
            spk3, mem3 = self.lif3(self.fc(torch.flatten(spk2, 1)), mem3)
        return F.log_softmax(self.out(spk3.flatten(1)), dim=1)


def test_functions_become_modules():
    net = Functional()
    sequence = nn.Sequential(
        net.conv1, nn.AvgPool2d(2), net.lif1, nn.ZeroPad2d((2, 1, 1, 2)), net.conv2, nn.AdaptiveAvgPool2d(2), net.lif2,
        nn.Flatten(), net.fc, net.lif3, net.out, nn.LogSoftmax(1),
    )  # fmt: skip
    x = torch.randn(3, 1, 10, 10)
    model = ep.convert(net, **GRADED)
    torch.testing.assert_close(model(x), ep.convert(sequence, **GRADED)(torch.tanh(F.relu(x) * 2 - 1)))
    assert [type(m).__name__ for m in model.connections[0].module] == ["ConstantPad2d", "Conv2d", "AdaptiveAvgPool2d"]
    model.train()(x).sum().backward()


@pytest.mark.parametrize("flat", [lambda x: x.view(7, -1), lambda x: x.view(-1, 20), lambda x: x.flatten(1),
                                  lambda x: x.view(x.size(0), x.size(1) * x.size(2) * x.size(3)),
                                  lambda x: torch.reshape(x, (x.shape[0], -1))])  # fmt: skip
def test_ways_to_flatten(flat):
    class Flat(Functional):
        def forward(self, x):
            spk1, _ = self.lif1(F.avg_pool2d(self.conv1(x), 4))
            return self.lif3(self.fc(flat(self.conv2(F.pad(spk1, (1, 1, 1, 1))))))

    model = ep.convert(Flat(), **GRADED)
    assert model(torch.rand(3, 1, 10, 10)).shape == (3, 6)
    assert isinstance(model.connections[0].module[2], nn.Flatten)


def test_modules_without_neurons_are_looked_into():
    """Between neurons, where what they do must be known; elsewhere they are taken as they are."""

    class Normed(nn.Module):
        def __init__(self, size, into=True):
            super().__init__()
            self.fc, self.norm, self.into = nn.Linear(size, 6), nn.BatchNorm1d(6), into
            nn.init.uniform_(self.norm.running_mean)

        def forward(self, x):
            x = self.norm(self.fc(x))
            return x if self.into or x.sum() > 0 else -x

    class Composed(Net):
        def __init__(self, into):
            super().__init__()
            self.first, self.second = Normed(8, False), nn.Sequential(nn.Dropout(0.0), Normed(6, into))

        def forward(self, x):
            spk1, _ = self.lif1(self.first(x))
            return self.lif2(self.second(spk1))

    model = ep.convert(Composed(True), **GRADED)
    assert [type(m).__name__ for m in model.connections[0].module] == ["SharedDropout", "Linear", "FixedNormalization"]
    model(torch.rand(4, 8))
    with pytest.raises(ValueError, match=r"'second\.1' \(Normed\) cannot be converted.*not known to be linear"):
        ep.convert(Composed(False))


def test_piecewise_linear_functions_stand_between_neurons():
    """With hardly any feedback the equilibrium is what the forward says of rates in place of spikes."""
    functions = [F.relu, torch.relu, F.relu6, lambda h: F.leaky_relu(h, 0.2), lambda h: F.hardtanh(h, -0.1, 0.2)]
    functions += [lambda h: torch.clamp(h, -0.1, 0.2), lambda h: h.clamp(min=0), lambda h: F.relu(h, inplace=True)]

    class Rectified(Net):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def forward(self, x):
            spk1, _ = self.lif1(self.fc1(x))
            return self.lif2(self.function(self.fc2(spk1)))[0]

    for function in functions:
        net, x = Rectified(function), torch.rand(4, 8)
        model = ep.convert(net, **GRADED | {"feedback": 1e-7})
        rate = net.fc1(x).clamp(0, 1)
        expected = function(net.fc2(rate).clone()).clamp(0, 1)
        torch.testing.assert_close(model(x), expected.detach(), rtol=0, atol=1e-5)
        model(x).sum().backward()


def test_a_converted_model_pickles(tmp_path):
    """Unlike snnTorch's neurons: training in several processes needs it."""
    for make in (
        Functional,
        lambda: Integrated(snn.Leaky(beta=torch.tensor([0.5]), reset_mechanism="none", learn_beta=True)),
    ):
        model = ep.convert(make())
        torch.save(model, tmp_path / "model.pt")
        other = torch.load(tmp_path / "model.pt", weights_only=False)
        x = torch.rand(2, 1, 10, 10) if make is Functional else torch.rand(2, 8)
        assert torch.equal(model(x), other(x))


class Integrated(Net):
    def __init__(self, neuron):
        super().__init__()
        self.li = neuron

    def forward(self, x):
        spk, _ = self.lif1(self.fc1(x) + torch.tanh(self.fc1(x)))
        return self.li(self.out(spk))[1]


def test_a_shape_that_does_not_fit_shows_at_the_door():
    class Wrong(Functional):
        def forward(self, x):
            spk1, _ = self.lif1(self.conv1(x))
            return self.lif3(self.fc(spk1.view(-1, 20)))[0]

    with pytest.raises(ValueError, match="connection 0 -> 1 does not fit"):
        ep.convert(Wrong())(torch.rand(3, 1, 10, 10))


def test_sums_are_skips_with_every_offset_once():
    """With hardly any feedback the equilibrium is what the forward says of rates in place of spikes."""
    net = Residual()
    model = ep.convert(net, **GRADED | {"feedback": 1e-7})
    x = torch.rand(3, 1, 6, 6)
    net.norm.eval()

    def rate(neuron, drive):
        return (drive / neuron.threshold).clamp(0, 1)

    r0 = rate(net.lif0, net.conv0(x))
    r1 = rate(net.lif1, net.norm(net.conv1(r0)) - 0.5 * r0)
    r2 = rate(net.lif2, net.fc(F.avg_pool2d(net.norm(net.conv1(r1 + r0)), 2).flatten(1)))
    assert 0.05 < r2.mean() < 0.95
    for found, expected in zip(model.free_phase(x).states, (r0, r1, r2), strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-5)
    # A skip over one layer feeds back with the square of a step's strength.
    model.feedback = 0.3
    scales = model.system(x).scales
    assert [scales[c.target] / scales[c.source] for c in model.connections] == pytest.approx([0.3, 0.3, 0.3, 0.09])


def test_identity_skip_and_branches_outside_of_the_neurons():
    class Branches(Net):
        def forward(self, x):
            h = F.relu(self.fc1(x))
            spk1, _ = self.lif1(h + torch.sigmoid(h))
            spk2, _ = self.lif2(self.fc2(spk1) + spk1)
            return self.out(spk2) - spk2[:, :3]

    net = Branches()
    model = ep.convert(net, **GRADED | {"feedback": 1e-7})
    x = torch.rand(3, 8)
    h = F.relu(net.fc1(x))
    r1 = (h + torch.sigmoid(h)).clamp(0, 1)
    r2 = (net.fc2(r1) + r1).clamp(0, 1)
    torch.testing.assert_close(model(x), net.out(r2) - r2[:, :3], rtol=0, atol=1e-5)
    assert {id(p) for p in model.parameters()} == {id(p) for p in net.parameters()}


def test_dropout_draws_one_mask_a_pass():
    class Dropping(Net):
        def forward(self, x):
            spk1, _ = self.lif1(self.fc1(x))
            return self.out(self.lif2(F.dropout(self.fc2(spk1), 0.5, self.training))[0])

    with pytest.warns(ep.ConversionWarning, match="one mask a batch"):
        model = ep.convert(Dropping(), **GRADED)
    x = torch.rand(4, 8)
    torch.manual_seed(1)
    first = model(x)
    assert not torch.equal(model(x), first)
    torch.manual_seed(1)
    assert torch.equal(model(x), first)
    model.eval()
    assert torch.equal(model(x), model(x))


def test_dropouts_gradient_is_that_of_one_mask(float64):
    """The nudged phases see the free phase's mask: EP's gradient is BPTT's of the same pass."""
    net = nn.Sequential(
        *(nn.Linear(8, 9), snn.Leaky(beta=0.5), nn.Dropout(0.3), nn.Linear(9, 7), nn.Dropout(0.3), snn.Leaky(beta=0.5)),
        nn.Linear(7, 3),
    )
    model = ep.convert(net, activation="sigmoid", encoder="graded", feedback=0.3, relaxation=ep.Relaxation(100))
    x, y = torch.rand(5, 8), torch.randint(3, (5,))
    found = []
    for estimator in (ep.EquilibriumPropagation(1e-3, 100, "symmetric"), ep.BackpropThroughTime()):
        model.estimator = estimator
        torch.manual_seed(2)
        found.append(torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters())))
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_batch_normalization_is_trained_and_its_statistics_are_not():
    norm = nn.BatchNorm1d(6)
    nn.init.uniform_(norm.running_mean)
    net = nn.Sequential(
        nn.Linear(8, 6), norm, snn.Leaky(0.5), nn.Linear(6, 6), inner := nn.BatchNorm1d(6), snn.Leaky(0.5)
    )
    with pytest.warns(ep.ConversionWarning, match=r"'4' \(BatchNorm1d\) uses its running statistics"):
        model = ep.convert(net)
    model.train()
    before = inner.running_mean.clone(), norm.running_mean.clone()
    model(torch.rand(20, 8)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert torch.equal(inner.running_mean, before[0])
    assert not torch.equal(norm.running_mean, before[1])  # in the stem it is an ordinary one
