"""Norse's own models, what its `Lift` lifts, and what it has beside neurons."""

import norse.torch as norse
import pytest
import torch
from norse.torch.models.conv import ConvNet, ConvNet4
from norse.torch.models.mobilenet import InvertedResidual, MobileNetV2
from norse.torch.models.vgg import make_layers, vgg11
from norse.torch.module.encode import PoissonEncoderStep
from norse.torch.module.exp_filter import ExpFilter
from torch import nn

import ep_plugin as ep

SETTLED = {"encoder": "graded", "relaxation": ep.Relaxation(300, tolerance=1e-12)}


class AStep(nn.Module):
    """A model over time as one step of it: cells in the place of neurons over time, and nothing lifted."""

    def __init__(self, forward, *parts):
        super().__init__()
        self.run, self.parts = forward, nn.ModuleList(self.of(part) for part in parts)

    @classmethod
    def of(cls, module):
        if isinstance(module, norse.Lift):
            return module.lifted_module
        if isinstance(module, norse.LIF):
            return norse.LIFCell(module.p, dt=module.dt)
        if isinstance(module, nn.Sequential):
            return norse.SequentialState(*(cls.of(child) for child in module))
        if not isinstance(module, InvertedResidual):
            return module
        if not module.use_res_connect:
            return cls.of(module.conv)
        return cls(lambda self, x: x + self.parts[0](x)[0], module.conv)

    def forward(self, x):
        return self.run(self, x)


def small_mobilenet():
    torch.manual_seed(0)
    net = MobileNetV2(num_classes=5, width_mult=0.5, inverted_residual_setting=[[1, 12, 1, 1], [2, 12, 2, 1]]).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0)
            nn.init.uniform_(module.running_var, 1, 2)
    return net


class SmallVGG(nn.Module):
    """The forward of Norse's VGG, behind layers that its own function makes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = make_layers([6, "M", 8], batch_norm=True)
        self.avgpool = norse.Lift(nn.AdaptiveAvgPool2d((2, 2)))
        self.classifier = nn.Sequential(
            *(norse.Lift(nn.Linear(32, 10)), norse.LIF(), norse.Lift(nn.Dropout())),
            *(norse.Lift(nn.Linear(10, 6)), norse.LIF(), norse.Lift(nn.Linear(6, 5))),
        )

    def forward(self, x):
        x = self.features(x)
        x = self.avgpool(x)
        x = torch.flatten(x, 2)
        return self.classifier(x)


def one_step(net):
    if isinstance(net, SmallVGG):

        def run(self, x):
            z, _ = self.parts[0](x)
            return self.parts[2](self.parts[1](z).flatten(1))[0]

        return AStep(run, net.features, net.avgpool, net.classifier)

    def run(self, x):
        z, _ = self.parts[0](x)
        return self.parts[2](self.parts[1](z).flatten(1))[0]

    return AStep(run, net.features, net.pool, net.classifier)


@pytest.mark.parametrize("make", [small_mobilenet, SmallVGG])
def test_a_model_over_time_is_the_one_of_a_step(make, float64):
    net = make().eval()
    x = torch.rand(2, 3, 8, 8)
    with pytest.warns(ep.ConversionWarning, match=r"the input is that of one step, \[batch, \.\.\.\]"):
        model = ep.convert(net, max_pooling="average", **SETTLED)
    step = ep.convert(one_step(net).eval(), max_pooling="average", **SETTLED)
    found, expected = model.free_phase(x), step.free_phase(x)
    assert len(found.states) >= 4
    for a, b in zip(found.states, expected.states, strict=True):
        assert b.max() > 0
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(model(x), step(x))
    assert net(x.expand(3, *x.shape)).shape == (3, *model(x).shape)
    over_time = model.variant(time_varying=True, relaxation=ep.Relaxation(300))
    torch.testing.assert_close(over_time(x.expand(100, *x.shape)), model(x), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("make", [small_mobilenet, SmallVGG])
def test_its_gradients_are_those_of_backpropagation(make, float64):
    net = make().eval()
    x, target = torch.rand(2, 3, 8, 8), torch.rand(2, 5)
    model = ep.convert(net, max_pooling="average", activation="sigmoid", **SETTLED)
    parameters = dict(net.named_parameters())
    found, expected = (
        torch.autograd.grad((model.variant(estimator=e)(x) - target).pow(2).sum(), list(parameters.values()))
        for e in (ep.EquilibriumPropagation(1e-6, 200), ep.BackpropThroughTime())
    )
    largest = max(g.norm() for g in expected)
    for name, a, b in zip(parameters, found, expected, strict=True):
        assert (a - b).norm() <= 1e-3 * b.norm() + 1e-9 * largest, name


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (vgg11, (3, 32, 32)),
        (lambda: norse.MobileNetV2(num_classes=7), (3, 32, 32)),
        (ConvNet, (1, 28, 28)),
        (ConvNet4, (1, 28, 28)),
    ],
    ids=["VGG", "MobileNet", "ConvNet", "ConvNet4"],
)
def test_norses_own_models(make, shape):
    """Each converts, and every parameter of it gets a gradient."""
    net = make()
    model = ep.convert(net, max_pooling="average", relaxation=ep.Relaxation(2))
    model(torch.rand(1, *shape)).pow(2).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_modules_beside_lifted_ones_see_all_steps(float64):
    """What is not lifted acts on [time, batch, ...]: its dimensions are counted from there."""
    conv, fc = nn.Conv2d(1, 2, 3), nn.Linear(32, 4)
    over_time = norse.SequentialState(norse.Lift(conv), norse.LIF(), nn.Flatten(2), fc, norse.LI())
    step = norse.SequentialState(conv, norse.LIFCell(), nn.Flatten(1), fc, norse.LICell())
    x = torch.rand(3, 1, 6, 6)
    assert over_time(torch.rand(7, *x.shape))[0].shape == (7, 3, 4)
    torch.testing.assert_close(ep.convert(over_time, **SETTLED)(x), ep.convert(step, **SETTLED)(x))


@pytest.mark.parametrize(
    ("module", "works", "message"),
    [
        (nn.Conv2d(2, 2, 1), norse.Lift(nn.Conv2d(2, 2, 1)), "depends on what '2' makes of all time steps.*norse.Lift"),
        (nn.Flatten(), nn.Flatten(2), r"'2' \(Flatten\) flattens the batch too; expected start_dim=1.*2 for all steps"),
    ],
)
def test_what_would_mix_steps_is_refused(module, works, message):
    def of(middle):
        last = [] if isinstance(middle, nn.Flatten) else [norse.Lift(nn.Flatten())]
        return norse.SequentialState(
            norse.Lift(nn.Conv2d(1, 2, 3)), norse.LIF(), middle, *last, nn.Linear(32, 4), norse.LIF()
        )

    with pytest.raises(ValueError, match=message):
        ep.convert(of(module))
    assert ep.convert(of(works))(torch.rand(3, 1, 6, 6)).shape == (3, 4)


class Lifted(nn.Module):
    def __init__(self, neuron):
        super().__init__()
        self.f, self.n, self.o = nn.Linear(6, 5), neuron, nn.Linear(5, 2)

    def forward(self, x):
        z, _ = self.n(self.f(x))
        return self.o(z)


@pytest.mark.parametrize("cell", [norse.LIFBoxCell, norse.LIFCell, norse.IAFCell])
def test_lifted_cells_are_the_cells(cell, float64):
    """In a forward, in a sequence, and lifted with what stands before them."""
    torch.manual_seed(0)
    net, x = Lifted(norse.Lift(cell())), torch.rand(4, 6)
    expected = ep.convert(norse.SequentialState(net.f, cell(), net.o), **SETTLED)(x)
    assert net(x.expand(3, 4, 6)).shape == (3, 4, 2)
    inside = norse.Lift(norse.SequentialState(net.f, cell()))
    for other in (
        net,
        norse.SequentialState(norse.Lift(net.f), norse.Lift(cell()), norse.Lift(net.o)),
        norse.SequentialState(inside, norse.Lift(net.o)),
    ):
        torch.testing.assert_close(ep.convert(other, **SETTLED)(x), expected)


def test_a_step_of_the_input_beside_neurons_over_time():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.cell, self.b, self.lif = nn.Linear(6, 5), norse.LIFCell(), nn.Linear(6, 5), norse.LIF()

        def forward(self, x):
            z, _ = self.cell(self.a(x[0]))
            return self.lif(self.b(x))[0][-1] + z

    with pytest.raises(ValueError, match=r"'cell' \(LIFCell\) depends on one of the input's steps, taken out"):
        ep.convert(Mixed())


def sequence(*modules):
    return norse.SequentialState(nn.Linear(6, 5), norse.LIFCell(), *modules, nn.Linear(5, 4), norse.LICell())


ENCODERS = {
    "PoissonEncoder": lambda: norse.PoissonEncoder(20),
    "PoissonEncoderStep": PoissonEncoderStep,
    "SignedPoissonEncoder": lambda: norse.SignedPoissonEncoder(20),
    "ConstantCurrentLIFEncoder": lambda: norse.ConstantCurrentLIFEncoder(20),
    "SpikeLatencyLIFEncoder": lambda: norse.SpikeLatencyLIFEncoder(20),
    "SpikeLatencyEncoder": lambda: norse.SpikeLatencyEncoder(),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_refused_with_a_way_out_for_encoders(name):
    encoder, x = ENCODERS[name](), torch.rand(3, 6)
    parts = (norse.Lift(nn.Linear(6, 5)), norse.LIF(), norse.Lift(nn.Linear(5, 4)), norse.LI())
    with pytest.raises(ValueError, match=rf"'0' \({name}\).*spikes over time.*rates.*encode outside.*time_var") as told:
        ep.convert(norse.SequentialState(encoder, *parts))
    assert "LIFCell" not in str(told.value)
    assert ep.convert(norse.SequentialState(*parts))(x).shape == (3, 4)  # the values themselves
    if name == "PoissonEncoderStep":
        encoded = torch.stack([encoder(x) for _ in range(20)])
    else:
        encoded = encoder((torch.rand(20, 3, 6) < 0.2).float() if name == "SpikeLatencyEncoder" else x)
    model = ep.convert(norse.SequentialState(*parts), time_varying=True)
    assert model(encoded).shape == (3, 4)


def test_encoders_without_time_stand_before_the_first_neuron(float64):
    net = norse.SequentialState(
        norse.PopulationEncoder(4, scale=1.0), nn.Flatten(), nn.Linear(24, 5), norse.LIFCell(), nn.Linear(5, 2)
    )
    x = torch.rand(3, 6)
    drive = net[2](net[0](x).flatten(1))
    torch.testing.assert_close(ep.convert(net, **SETTLED).system(x).values.drives[0], drive)


OTHERS = {
    "RegularizationCell": (
        norse.RegularizationCell,
        r"'2' \(RegularizationCell\).*adds up.*over the steps.*Take it out.*changes no spike.*penalty",
    ),
    "SpikesToTimesDecoder": (
        norse.SpikesToTimesDecoder,
        r"'2' \(SpikesToTimesDecoder\).*times of single spikes.*Take it out",
    ),
    "ExpFilter": (lambda: ExpFilter(5, 5), r"'2' \(ExpFilter\).*filters its input over time.*Take it out"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_acts_over_time_is_refused_with_a_way_out_that_fits(name):
    make, message = OTHERS[name]
    with pytest.raises(ValueError, match=message):
        ep.convert(sequence(make()))
    ep.convert(sequence())(torch.rand(2, 6))  # without it


def test_an_output_that_comes_back_one_step_later_is_refused():
    net = norse.RecurrentSequential(nn.Linear(6, 6), norse.LIFCell())
    with pytest.raises(ValueError, match=r"\(RecurrentSequential\).*comes back.*SequentialState.*LIFRecurrentCell"):
        ep.convert(net)
    ep.convert(norse.SequentialState(nn.Linear(6, 6), norse.LIFCell()))(torch.rand(2, 6))
    cell = norse.LIFRecurrentCell(6, 6)
    ep.convert(norse.SequentialState(nn.Linear(6, 6), cell))(torch.rand(2, 6))


def test_a_changed_cell_is_refused_and_may_be_registered():
    class Mine(norse.LIFCell):
        pass

    with pytest.raises(
        ValueError, match=r"'1' \(Mine\).*LIFCell if in doubt.*ep_plugin\.register_neuron\(Mine, \.\.\.\)"
    ):
        ep.convert(norse.SequentialState(nn.Linear(6, 5), Mine()))
    ep.register_neuron(Mine, threshold=lambda cell: cell.p.v_th, gain=5.0, outputs=2)
    net, x = norse.SequentialState(nn.Linear(6, 5), Mine()), torch.rand(2, 6)
    expected = ep.convert(norse.SequentialState(net[0], norse.LIFCell()), **SETTLED)
    torch.testing.assert_close(ep.convert(net, **SETTLED)(x), expected(x))


class LastOfGRU(nn.GRU):
    """Begins anew in every call, and returns its output alone."""

    def forward(self, x):
        return super().forward(x.unflatten(1, (2, 3)))[0][:, -1]


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (lambda: norse.SequentialState(nn.GRU(6, 5), norse.LIFCell(), nn.Linear(5, 2)), "'0' (GRU)"),
        (lambda: norse.SequentialState(nn.Linear(6, 5), norse.LIFCell(), nn.RNN(5, 4), nn.Linear(4, 2)), "'2' (RNN)"),
        (lambda: norse.SequentialState(nn.Linear(6, 5), norse.LIFCell(), nn.LSTM(5, 4)), "'2' (LSTM)"),
        (lambda: nn.Sequential(nn.LSTMCell(6, 5), norse.LIFCell()), "'0' (LSTMCell)"),
    ],
)
def test_recurrent_modules_in_a_sequence_are_refused(make, place):
    with pytest.raises(ValueError, match=r"state that it keeps over the steps.*a module of your own") as error:
        ep.convert(make())
    assert str(error.value).startswith(f"module {place} cannot be converted")


def test_a_recurrent_module_that_begins_anew_stands_in_a_sequence():
    net = norse.SequentialState(nn.Sequential(LastOfGRU(3, 5, batch_first=True)), norse.LIFCell(), nn.Linear(5, 2))
    x = torch.randn(4, 6)
    torch.testing.assert_close(ep.convert(net).stem(x), net[0](x))


def test_a_sequence_that_returns_all_values_is_refused_unless_one_is_chosen():
    parts = (nn.Linear(6, 5), norse.LIFCell(), nn.Linear(5, 2))
    net, x = norse.SequentialState(*parts, return_hidden=True), torch.rand(4, 6)
    with pytest.raises(ValueError, match=r"all its modules; expected return_hidden=False, or .*output=\(0, -1\)"):
        ep.convert(net)
    expected = ep.convert(norse.SequentialState(*parts))(x)
    torch.testing.assert_close(ep.convert(net, output=(0, -1))(x), expected)
    inner = norse.SequentialState(norse.SequentialState(*parts[:2], return_hidden=True), parts[2])
    with pytest.raises(ValueError, match=r"module '0' \(SequentialState\) .* expected return_hidden=False$"):
        ep.convert(inner)
