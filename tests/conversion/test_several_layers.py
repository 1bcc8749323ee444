"""Models whose input drives several layers, and whose output reads several."""

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from norse import torch as norse
from torch import nn

import ep_plugin as ep

FEEDBACK = 0.3
SETTLED = {"encoder": "graded", "feedback": FEEDBACK, "relaxation": ep.Relaxation(400, tolerance=1e-13)}


class Net(nn.Module):
    """Subclasses say what a forward does with the layers.

    `drives(x, *r)` is what each layer receives at the states r of all layers, and `output(*r)` what is made of them,
    both written out by hand.
    """

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.skip1, self.skip2 = nn.Linear(8, 6), nn.Linear(8, 6)
        self.l1, self.l2, self.l3 = (snn.Leaky(beta=0.9, threshold=t, learn_threshold=True) for t in (0.8, 0.6, 0.7))
        self.norm = nn.BatchNorm1d(6)
        nn.init.uniform_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        self.out1, self.out2 = nn.Linear(6, 3), nn.Linear(6, 3)


def back(linear, r):
    """What a layer at r feeds back through a linear module to the level below."""
    return FEEDBACK * r @ linear.weight


class Sew(Net):
    """Spikes are added behind the neurons, as in SEW ResNet."""

    def forward(self, x):
        s1, _ = self.l1(self.a(x))
        s2, _ = self.l2(self.b(s1))
        s3, _ = self.l3(self.c(s2 + s1))
        return self.out1(s3 + s2 + s1)

    def drives(self, x, r1, r2, r3):
        down = back(self.c, r3)
        return self.a(x) + back(self.b, r2) + FEEDBACK * down, self.b(r1) + down, self.c(r2 + r1)

    def output(self, r1, r2, r3):
        return self.out1(r1 + r2 + r3)


class PreActivation(Net):
    """A neuron before every module, and what it leaves out is added behind the module."""

    def forward(self, x):
        h = self.a(x)
        h = self.b(self.l1(h)[0]) + h
        h = self.c(self.l2(h)[0]) + h
        return self.out1(self.l3(h)[0])

    def drives(self, x, r1, r2, r3):
        h = self.a(x)
        down = FEEDBACK * back(self.b, r3)
        return h + back(self.b, r2) + down, self.b(r1) + h + back(self.c, r3), self.c(r2) + self.b(r1) + h

    def output(self, r1, r2, r3):
        return self.out1(r3)


class Everywhere(Net):
    """Features of the input to every layer, and at last the input as it is; a normalization behind one of the sums."""

    def forward(self, x):
        for _ in range(3):
            s1, _ = self.l1(self.a(x))
            s2, _ = self.l2(self.norm(self.b(s1) - 0.5 * torch.tanh(self.skip1(x))))
            s3, _ = self.l3(self.c(s2) + x[:, :6])
        return self.out1(s3)

    def drives(self, x, r1, r2, r3):
        self.norm.eval()
        factor = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        return (
            self.a(x) + back(self.b, r2 * factor),
            self.norm(self.b(r1) - 0.5 * torch.tanh(self.skip1(x))) + back(self.c, r3),
            self.c(r2) + x[:, :6],
        )

    def output(self, r1, r2, r3):
        return self.out1(r3)


class Heads(Net):
    """A head on every layer; their sum."""

    def forward(self, x):
        s1, _ = self.l1(self.a(x))
        s2, _ = self.l2(self.b(s1))
        s3, _ = self.l3(self.c(s2))
        return self.out1(s1) + self.out2(s2) - self.out2(s3) / 2

    def drives(self, x, r1, r2, r3):
        return self.a(x) + back(self.b, r2), self.b(r1) + back(self.c, r3), self.c(r2)

    def output(self, r1, r2, r3):
        return self.out1(r1) + self.out2(r2) - self.out2(r3) / 2


class Joined(Heads):
    """Heads whose outputs are joined."""

    def forward(self, x):
        s1, _ = self.l1(self.a(x))
        s3, _ = self.l3(self.c(self.l2(self.b(s1))[0]))
        return F.log_softmax(torch.cat([self.out1(s1), F.relu(self.out2(s3))], dim=1), 1)

    def output(self, r1, r2, r3):
        return F.log_softmax(torch.cat([self.out1(r1), F.relu(self.out2(r3))], dim=1), 1)


class Branches(Net):
    """Two layers side by side on what the stem makes of the input, in its own way for each."""

    def forward(self, x):
        h = torch.relu(self.a(x))
        s1, _ = self.l1(h * torch.sigmoid(self.skip1(x)))
        s2, _ = self.l2(self.norm(h))
        s3, _ = self.l3(self.b(s1) + self.c(s2))
        return self.out1(s3) * self.out2(s1)

    def drives(self, x, r1, r2, r3):
        h = torch.relu(self.a(x))
        return (
            h * torch.sigmoid(self.skip1(x)) + back(self.b, r3),
            self.norm(h) + back(self.c, r3),
            self.b(r1) + self.c(r2),
        )

    def output(self, r1, r2, r3):
        return self.out1(r3) * self.out2(r1)


MODELS = [Sew, PreActivation, Everywhere, Heads, Joined, Branches]


def settled(net, x):
    """Where the equations lead that are written by hand."""
    r = [torch.zeros(len(x), 6) for _ in range(3)]
    for _ in range(1000):
        drives = net.drives(x, *r)
        asked = [(d / l.threshold).clamp(0, 1) for d, l in zip(drives, (net.l1, net.l2, net.l3), strict=True)]
        r = [0.5 * (old + new) for old, new in zip(r, asked, strict=True)]
    return r


@pytest.mark.parametrize("kind", MODELS)
def test_it_settles_where_the_forward_and_its_feedback_say(kind, float64):
    net = kind().eval()
    model = ep.convert(net, **SETTLED)
    x = torch.rand(16, 8)
    with torch.no_grad():
        expected = settled(net, x)
        assert all(((r > 0) & (r < 1)).double().mean() > 0.1 for r in expected)
        equilibrium = model.free_phase(x)
        assert equilibrium.converged.all()
        for found, wanted in zip(equilibrium.states, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)
        torch.testing.assert_close(model(x), net.output(*expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", MODELS)
def test_every_gradient_is_that_of_backpropagation(kind, float64):
    """Through settled graded states."""
    net = kind()
    model = ep.convert(net, **SETTLED, estimator=ep.EquilibriumPropagation(1e-6, 200))
    x, y = torch.rand(16, 8), torch.randint(3, (16,))
    used = dict(model.named_parameters())
    found, expected = (
        torch.autograd.grad(F.cross_entropy(m(x), y), list(used.values()))
        for m in (model, model.variant(estimator=ep.BackpropThroughTime()))
    )
    least = 1.0
    for name, a, b in zip(used, found, expected, strict=True):
        assert b.norm() > 1e-6, name
        least = min(least, (cosine := F.cosine_similarity(a.flatten(), b.flatten(), 0)).item())
        assert cosine >= 0.99, name
        assert (a - b).norm() <= 1e-3 * b.norm(), name
    print(f"\n{kind.__name__}: least cosine {least:.6f}", end="")


@pytest.mark.parametrize("estimator", [ep.FullPhaseEP(1e-3, 300), ep.ImplicitDifferentiation()])
def test_other_estimators_know_several_layers_too(estimator, float64):
    model = ep.convert(Sew(), **SETTLED)
    x, y = torch.rand(16, 8), torch.randint(3, (16,))
    found, expected = (
        torch.autograd.grad(F.cross_entropy(model.variant(estimator=e)(x), y), list(model.parameters()))
        for e in (estimator, ep.BackpropThroughTime())
    )
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-3 * b.norm()


@pytest.mark.parametrize("kind", MODELS)
def test_it_learns_with_spikes(kind):
    """The defaults, on labels that a net of the same kind has given."""
    x = torch.rand(256, 8)
    with torch.no_grad():
        y = ep.convert(kind(), encoder="graded")(x)
        y = (y - y.mean(0)).argmax(1)
    model = ep.convert(kind())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.dim() > 0], 2e-2)  # thresholds stay
    losses = []
    for _ in range(100):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]


def test_shared_parts_of_the_stem_are_computed_once():
    net = PreActivation()
    calls = []
    net.a.register_forward_hook(lambda *_: calls.append(1))
    model = ep.convert(net)
    model(torch.rand(4, 8))
    assert len(calls) == 1
    assert model.driven == (0, 1, 2)


def test_parallel_layers_stand_on_one_level():
    """However late in the forward: a layer is as high as its longest way from the input."""
    model = ep.convert(Branches())
    assert model.levels == (0, 0, 1)
    assert (model.driven, model.read) == ((0, 1), (0, 2))
    assert ep.convert(Sew()).levels == (0, 1, 2)


@pytest.mark.parametrize("kind", [Joined, Branches])
def test_it_pickles(kind, tmp_path):
    model, x = ep.convert(kind()).eval(), torch.rand(4, 8)
    torch.save(model, tmp_path / "model.pt")
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=False)(x), model(x))


def test_a_wrong_input_is_told_where_layers_share_the_stem():
    with pytest.raises(ValueError, match=r"\[5, 7\]; expected \[batch, 8\]"):
        ep.convert(PreActivation())(torch.rand(5, 7))


def test_all_steps_may_be_given(float64):
    """A constant input over time leads where the input of one step does."""

    class Looping(Everywhere):
        def forward(self, x):
            for step in range(x.size(0)):
                s1, _ = self.l1(self.a(x[step]))
                s2, _ = self.l2(self.b(s1) + self.skip1(x[step]))
            return self.out1(s2 + s1)

    net, x = Looping(), torch.rand(4, 8)
    one, all_steps = ep.convert(net, **SETTLED), ep.convert(net, encoder="graded", feedback=0.3, time_varying=True)
    torch.testing.assert_close(all_steps(x.expand(100, 4, 8)), one(x))


def test_norse_cells_weights_meet_the_input_and_spikes_alike():
    """A cell that holds its own input weights receives both."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.lif, self.cell = nn.Linear(8, 6), norse.LIFBoxCell(), norse.LIFRecurrentCell(6, 5)
            self.out = nn.Linear(5, 3)

        def forward(self, x):
            h = self.a(x)
            z1, _ = self.lif(h)
            z2, _ = self.cell(z1 + 0.5 * h)
            return self.out(z2)

    net, x = Recurrent(), torch.rand(5, 8)
    with torch.no_grad():
        net.cell.input_weights.mul_(0.1)
        net.cell.recurrent_weights.mul_(0.05)
    model = ep.convert(net, encoder="graded", feedback=1e-7, relaxation=ep.Relaxation(300))
    r1, r2 = (r.detach() for r in model.free_phase(x).states)
    v = net.cell.recurrent_weights.detach()
    h = net.a(x).detach()
    drive = (h.clamp(0, 1) + 0.5 * h) @ net.cell.input_weights.detach().T + r2 @ (v + v.T) / 2
    torch.testing.assert_close(r1, h.clamp(0, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(r2, (5 * drive).clamp(0, 1), rtol=0, atol=1e-5)


def test_the_input_and_spikes_may_arrive_as_they_are():
    """No weights are needed on any of the ways: a neuron adds up what it receives."""

    class Raw(Net):
        def __init__(self, weights):
            super().__init__()
            self.weights = weights

        def forward(self, x):
            s1, _ = self.l1(self.a(x))
            s2, _ = self.l2((self.b(s1) if self.weights else s1) + x[:, :6])
            return self.out1(s2)

    assert ep.convert(Raw(True)).driven == (0, 1)
    net, x = Raw(False), torch.rand(3, 8)
    model = ep.convert(net, **SETTLED | {"feedback": 1e-9})
    r1, r2 = model.free_phase(x).states
    torch.testing.assert_close(r2, ((r1 + x[:, :6]) / net.l2.threshold.detach()).clamp(0, 1), rtol=0, atol=1e-6)


def test_an_offset_without_a_name_counts_once(float64):
    """Of a registered module whose offset is not called bias, behind a sum."""

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.shift = nn.Parameter(torch.rand(6, 6)), nn.Parameter(torch.rand(6))

        def forward(self, x):
            return x @ self.weight + self.shift

    ep.register_linear(Shifted)

    class Behind(Net):
        def __init__(self):
            super().__init__()
            self.shifted = Shifted()

        def forward(self, x):
            h = self.a(x)
            s1, _ = self.l1(h)
            s2, _ = self.l2(self.b(s1))
            return self.out1(self.l3(0.2 * self.shifted(s1 + s2 + h))[0])

    net, x = Behind(), torch.rand(3, 8)
    model = ep.convert(net, **SETTLED | {"feedback": 1e-9})
    r1, r2, r3 = model.free_phase(x).states
    with torch.no_grad():
        expected = (0.2 * net.shifted(r1 + r2 + net.a(x)) / net.l3.threshold).clamp(0, 1)
    torch.testing.assert_close(r3, expected, rtol=0, atol=1e-7)
