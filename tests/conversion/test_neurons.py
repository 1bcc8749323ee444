"""What every neuron's conversion keeps: the original under a steady current, against the formula."""

import warnings

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from norse.torch.functional.reset import reset_subtract
from torch import nn

import ep_plugin as ep


def converted(neuron, size=1, **options):
    """The network of one neuron behind weights that change nothing."""
    linear = nn.Linear(size, size, bias=False)
    nn.init.eye_(linear.weight)
    settings = {"encoder": "graded", "relaxation": ep.Relaxation(300, step_size=1.0)}
    return ep.convert(nn.Sequential(linear, neuron), **settings | options)


def run(neuron, current, steps):
    """Spikes counted from rest, and the last state that the last call returned."""
    states = neuron.reset_mem() if isinstance(neuron, snn.SpikingNeuron) else None
    count, out = 0, (None, *(states if isinstance(states, tuple) else (states,)))
    for _ in range(steps):
        out = neuron(current, *out[1:])
        count = count + out[0].detach()
    return count, out[-1]


@pytest.mark.parametrize(
    ("neuron", "scale"),
    [
        (snn.Leaky(beta=1.0, threshold=0.7), 0.7),
        (snn.Leaky(beta=1.0, threshold=torch.linspace(0.5, 1.5, 40), reset_delay=False), 0.5),
        (snn.Synaptic(alpha=0.6, beta=1.0, threshold=0.8), 0.3),
    ],
)
def test_an_integrate_and_fire_neurons_rate_is_the_equilibrium(neuron, scale):
    current = scale * torch.rand(2, 40)
    steps = 1000
    count, _ = run(neuron, current, steps)
    equilibrium = converted(neuron, 40)(current)
    assert 0.2 < equilibrium.mean() < 0.8
    torch.testing.assert_close(count / steps, equilibrium.detach(), rtol=0, atol=0.01)


def test_a_recurrent_integrate_and_fire_neuron_with_symmetric_weights():
    """Its lateral spikes add up to the same rate."""
    torch.manual_seed(1)
    neuron = snn.RLeaky(beta=1.0, linear_features=20)
    with torch.no_grad():
        weight = neuron.recurrent.weight
        weight.copy_((weight + weight.T) / 2)
        neuron.recurrent.bias.copy_(0.1 * torch.rand(20))
    current, steps = 0.6 * torch.rand(1, 20), 4000
    spk, mem = torch.zeros(1, 20), torch.zeros(1, 20)
    count = 0
    with torch.no_grad():
        for _ in range(steps):
            spk, mem = neuron(current, spk, mem)
            count = count + spk
    equilibrium = converted(neuron, 20)(current).detach()
    assert 0.2 < equilibrium.mean() < 0.8
    torch.testing.assert_close(count / steps, equilibrium, rtol=0, atol=0.01)


def test_recurrent_weights_act_as_their_symmetric_part():
    """r = clip(gain * (W x + (V + V^T) r / 2) / threshold), of weights that are not symmetric."""
    cell = norse.LIFRecurrentCell(6, 5)
    with torch.no_grad():
        cell.recurrent_weights.mul_(0.1)
        cell.input_weights.abs_().mul_(0.2)
    net = nn.Sequential(cell)
    x = 0.3 * torch.rand(3, 6)
    settings = {"encoder": "graded", "relaxation": ep.Relaxation(300, step_size=1.0)}
    model = ep.convert(net, **settings)
    r = model(x)
    v = cell.recurrent_weights
    torch.testing.assert_close(r, (5 * (x @ cell.input_weights.T + r @ (v + v.T) / 2)).clamp(0, 1), rtol=0, atol=1e-5)
    assert 0.05 < r.mean() < 0.95
    r.sum().backward()
    assert v.grad.abs().sum() > 0
    assert not v.grad.diagonal().any()  # Norse allows no autapses, and its own hook sees to that

    neuron = snn.RSynaptic(0.5, 0.5, V=torch.linspace(-0.3, 0.3, 6), all_to_all=False)
    r = ep.convert(nn.Sequential(linear := nn.Linear(6, 6), neuron), **settings)(x)
    torch.testing.assert_close(r, (2 * (linear(x) + neuron.V * r)).clamp(0, 1), rtol=0, atol=1e-5)


STEADY = [
    (snn.Lapicque(beta=0.9, reset_mechanism="none"), 1.0),
    (snn.Lapicque(R=2.0, C=5.0, reset_mechanism="none"), 2.0),
    (snn.Alpha(alpha=0.9, beta=0.7, reset_mechanism="none"), None),
]


@pytest.mark.parametrize(("neuron", "gain"), STEADY)
def test_gain_of_neurons_whose_leak_is_normalized(neuron, gain):
    """r reaches 1 where the steady membrane reaches the threshold."""
    current = torch.tensor([[0.05]])
    _, out = run(neuron, current, 500)
    torch.testing.assert_close(converted(neuron)(current).detach(), out, rtol=1e-4, atol=1e-5)
    assert gain is None or converted(neuron)(current).item() == pytest.approx(0.05 * gain)


@pytest.mark.parametrize(
    "cell",
    [
        norse.LIFCell(),
        norse.LIFCell(norse.LIFParameters(tau_syn_inv=torch.tensor(400.0), v_th=torch.tensor(0.6)), dt=0.0005),
        norse.LIFBoxCell(),
        norse.LIFBoxCell(norse.LIFBoxParameters(v_leak=torch.tensor(-0.5), v_th=torch.tensor(0.3))),
    ],
)
def test_norse_cells_fire_where_the_equilibrium_is_1(cell):
    """Just below that current they never fire, just above they do."""
    critical = 1 / converted(cell)(torch.tensor([[1e-3]])).item() * 1e-3
    for share, fires in ((0.99, False), (1.01, True)):
        count, _ = run(cell, torch.full((1, 1), share * critical), 3000)
        assert bool(count > 0) == fires


def test_norse_integrate_and_fire():
    """A spike every ceil(threshold / input) steps: the equilibrium but for the rounding."""
    cell = norse.IAFCell(norse.IAFParameters(v_th=torch.tensor(0.8)))
    every = torch.tensor([[2.0, 3.0, 4.0, 7.0]])
    current = 0.8 / every * 1.001
    count, _ = run(cell, current, 420)
    torch.testing.assert_close(count / 420, 1 / every, rtol=0, atol=0.005)
    torch.testing.assert_close(converted(cell, 4)(current).detach(), 1.001 / every)


@pytest.mark.parametrize(
    "cell",
    [
        norse.LICell(),
        norse.LICell(norse.LIParameters(tau_syn_inv=torch.tensor(100.0), v_leak=torch.tensor(0.3))),
        norse.LIBoxCell(),
        norse.LILinearCell(3, 2),
    ],
)
def test_norse_integrators_become_their_steady_membrane(cell):
    net = norse.SequentialState(nn.Linear(4, 3), norse.LIFCell(), cell)
    x = torch.rand(2, 3)
    with torch.no_grad():
        state = None
        for _ in range(1000):
            v, state = cell(x, state)
        torch.testing.assert_close(ep.convert(net).readout(x), v, rtol=1e-4, atol=1e-5)


def test_default_gains():
    model = ep.convert(norse.SequentialState(nn.Linear(4, 3), norse.LIFCell(), nn.Linear(3, 2), norse.LICell()))
    assert model.layers[0].theta.item() == pytest.approx(0.2)
    assert model.readout[1].factor == pytest.approx(5)


def test_norse_modules_that_run_over_time():
    """`Lift`, `LIF` and their like: what they do in one step."""
    linear, last = nn.Linear(4, 3), nn.Linear(3, 2)
    cells = ep.convert(norse.SequentialState(linear, norse.LIFCell(), last, norse.LICell()))
    net = norse.SequentialState(norse.Lift(linear), norse.LIF(), norse.Lift(last), norse.LI())
    with pytest.warns(ep.ConversionWarning, match="no time axis"):
        over_time = ep.convert(net)
    x = torch.rand(5, 4)
    assert net(torch.rand(7, 5, 4))[0].shape == (7, 5, 2)
    torch.testing.assert_close(over_time(x), cells(x))


def test_a_norse_sequence_inside_of_a_class():
    class Looping(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = norse.SequentialState(nn.Linear(4, 3), norse.LIFCell(), nn.Linear(3, 3), norse.IAFCell())
            self.out = norse.LILinearCell(3, 2)

        def forward(self, x, state=None):
            so, voltages = None, []
            for ts in range(x.shape[0]):
                z, state = self.features(x[ts, :], state)
                v, so = self.out(z, so)
                voltages += [v]
            return torch.stack(voltages), state

    net, x = Looping(), torch.rand(5, 4)
    sequence = norse.SequentialState(*net.features, net.out)
    torch.testing.assert_close(ep.convert(net)(x), ep.convert(sequence)(x))


def test_gains_are_in_the_thresholds_of_a_nir_graph():
    graph = ep.to_nir(converted(norse.LIFCell(), 2))
    assert graph.nodes["layer_0"].v_threshold.tolist() == pytest.approx([0.2, 0.2])


class Integrating(nn.Module):
    def __init__(self, neuron):
        super().__init__()
        self.fc1, self.lif, self.fc2, self.out = nn.Linear(4, 3), snn.Leaky(beta=0.5), nn.Linear(3, 2), neuron

    def forward(self, x):
        mem, states = self.lif.reset_mem(), self.out.reset_mem()
        states = states if isinstance(states, tuple) else (states,)
        for _ in range(3):
            spk, mem = self.lif(self.fc1(x), mem)
            _, *states = self.out(self.fc2(spk), *states)
        return states[-1]


@pytest.mark.parametrize(
    "neuron",
    [
        snn.Leaky(beta=torch.tensor([0.5, 0.8]), reset_mechanism="none", learn_beta=True),
        snn.Leaky(beta=0.9, reset_mechanism="none"),
        snn.Lapicque(R=2.0, C=5.0, reset_mechanism="none"),
        snn.Synaptic(alpha=0.5, beta=0.8, reset_mechanism="none"),
        snn.Alpha(alpha=0.9, beta=0.7, reset_mechanism="none"),
    ],
)
def test_snntorch_integrators_become_their_steady_membrane(neuron):
    net = Integrating(neuron)
    readout = ep.convert(net).readout
    rate = torch.rand(2, 3)
    with torch.no_grad():
        current = net.fc2(rate)
        _, out = run(neuron, current, 500)
    torch.testing.assert_close(readout(rate).detach(), out, rtol=1e-4, atol=1e-4)
    if isinstance(neuron.beta, nn.Parameter):  # the leak of a readout is trained: its membrane depends on it
        readout(rate).sum().backward()
        assert neuron.beta.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("neuron", "message"),
    [
        (snn.Leaky(beta=0.5), "'out' \\(Leaky\\) is read by its membrane, which has no steady value.*reset"),
        (snn.Leaky(beta=1.0, reset_mechanism="none"), "never settles"),
        (snn.RLeaky(beta=0.5, linear_features=2, reset_mechanism="none"), "spikes come back"),
    ],
)
def test_membranes_without_a_steady_state_are_refused(neuron, message):
    with pytest.raises(ValueError, match=message):
        ep.convert(Integrating(neuron) if not isinstance(neuron, snn.RLeaky) else Recurring(neuron))


class Recurring(Integrating):
    def forward(self, x):
        spk, _ = self.lif(self.fc1(x))
        return self.out(self.fc2(spk))[1]


def test_per_neuron_constants_keep_their_meaning():
    """Thresholds and synapses a neuron; a learnable threshold is the same parameter."""
    threshold, alpha = torch.linspace(0.5, 1.5, 4), torch.linspace(0.1, 0.8, 4)
    neuron = snn.Synaptic(alpha=alpha, beta=0.5, threshold=threshold, learn_threshold=True)
    model = converted(neuron, 4)
    assert model.layers[0].threshold is neuron.threshold
    current = torch.full((1, 4), 0.05)
    model.estimator = ep.EquilibriumPropagation(beta=1e-3)
    out = model(current)
    torch.testing.assert_close(out, 0.05 / ((1 - alpha) * threshold).unsqueeze(0))
    out.sum().backward()
    torch.testing.assert_close(neuron.threshold.grad, -0.05 / ((1 - alpha) * threshold**2), rtol=1e-2, atol=0)


def test_norse_thresholds_are_trained_if_they_are_parameters():
    v_th = nn.Parameter(torch.tensor(0.5))
    model = converted(norse.LIFCell(norse.LIFParameters(v_th=v_th)), encoder="graded")
    assert any(p is v_th for p in model.parameters())
    model.estimator = ep.EquilibriumPropagation(beta=1e-3)
    model(torch.tensor([[0.05]])).sum().backward()
    assert v_th.grad.item() == pytest.approx(-5 * 0.05 / 0.5**2, rel=1e-3)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (norse.LIFRefracCell(), "LIFRefracCell.*refractory"),
        (norse.LSNNCell(), "LSNNCell.*threshold adapts"),
        (norse.LIFAdExCell(), "LIFAdExCell.*adaptation"),
        (norse.LIFCell(norse.LIFParameters(tau_mem_inv=nn.Parameter(torch.tensor(100.0)))), "learnable tau_mem_inv"),
        (norse.LIFCell(norse.LIFParameters(v_th=torch.tensor(-1.0))), r"v_th - v_leak -1.0"),
        (
            norse.LIFBoxCell(norse.LIFBoxParameters(v_leak=torch.tensor(0.1), v_th=nn.Parameter(torch.tensor(1.0)))),
            "expected v_leak=0",
        ),
    ],
)
def test_norse_refusals(cell, message):
    with pytest.raises(ValueError, match=message):
        converted(cell)


@pytest.mark.parametrize(
    "make",
    [
        lambda: snn.Leaky(0.5, learn_beta=True),
        lambda: snn.Synaptic(0.5, 0.5, learn_alpha=True),
        lambda: norse.LIFCell(norse.LIFParameters(tau_mem_inv=nn.Parameter(torch.tensor(100.0)))),
    ],
)
def test_a_learnable_leak_may_be_frozen(make):
    neuron = make()
    with pytest.raises(ValueError, match=r"learnable_leak='freeze'"):
        converted(neuron)
    with pytest.warns(ep.ConversionWarning, match="stays as it is"):
        model = converted(neuron, learnable_leak="freeze")
    leaks = {id(p) for p in neuron.parameters()}
    assert not leaks & {id(p) for p in model.parameters()}


def test_nothing_is_told_of_integrate_and_fire_neurons_but_the_output():
    net = nn.Sequential(nn.Linear(4, 3), snn.Leaky(beta=1.0), nn.Linear(3, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ep.convert(net)
    with pytest.warns(ep.ConversionWarning) as told:
        ep.convert(net[:2])
    assert str(told[0].message).startswith("converted: the output is the last neuron's equilibrium")


@pytest.mark.parametrize("encoder", ["graded", "predictive_sigma_delta"])
@pytest.mark.parametrize("leak", [0.0, -0.5])
def test_convergent_box_cell_in_a_loop(encoder, leak):
    """In Norse's own SequentialState it settles where the network does."""
    p = norse.LIFBoxParameters(v_leak=torch.tensor(leak), reset_method=reset_subtract)
    cell = ep.ConvergentLIFBoxCell(p, encoder=encoder)
    net, current = norse.SequentialState(nn.Linear(4, 3), cell), torch.randn(5, 4)
    state, count = None, 0
    with torch.no_grad():
        for _ in range(400):
            z, state = net(current, state)
            count = count + z
        model = ep.convert(net, encoder=encoder, observe="membrane", relaxation=ep.Relaxation(400))
        equilibrium = model(current)
    torch.testing.assert_close(count / 400, equilibrium, rtol=0, atol=0.02)
    torch.testing.assert_close(equilibrium, (net[0](current).detach() / (1 - leak)).clamp(0, 1), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="state=None"):
        cell(torch.rand(2, 3), state[1])
    with pytest.raises(ValueError, match="v_th - v_leak"):
        ep.ConvergentLIFBoxCell(norse.LIFBoxParameters(v_th=torch.tensor(0.0)))
