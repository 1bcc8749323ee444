"""Where the neurons' formulas are read, neurons of one's own, and neurons that are refused with a way out."""

import re
import subprocess
import sys
import warnings

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

import ep_plugin as ep
from ep_plugin.conversion.adapters import REGISTERED

SETTLED = {"encoder": "graded", "relaxation": ep.Relaxation(300)}


def advised(net):
    """The help(...) calls that a conversion's warning advises."""
    with pytest.warns(ep.ConversionWarning) as told:
        ep.convert(net)
    return re.findall(r"help\('[\w.]+'\)", str(told[0].message))


@pytest.mark.parametrize(
    ("neuron", "row"), [(snn.Leaky(beta=0.5), "`Synaptic` | 1 / (1 - alpha)"), (norse.LIFCell(), "`IAFCell`, `IAF`")]
)
def test_the_help_that_warnings_advise_works(neuron, row):
    """Exactly as they say it, in a fresh interpreter."""
    calls = advised(nn.Sequential(nn.Linear(4, 3), neuron, nn.Linear(3, 2)))
    assert len(calls) == 1
    code = f"import ep_plugin; {calls[0]}"
    read = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert row in read


def test_no_other_names_are_made_up():
    with pytest.raises(AttributeError, match="has no attribute 'brian'"):
        ep.conversion.brian  # noqa: B018


@pytest.fixture
def own_registry(monkeypatch):
    """What a test registers is forgotten after it."""
    before = dict(REGISTERED)
    yield
    REGISTERED.clear()
    REGISTERED.update(before)


class Integrator(nn.Module):
    """Integrate and fire, with half a threshold to start from: over many steps it fires at the rate of its input."""

    def __init__(self, theta=0.8, resistance=1.0):
        super().__init__()
        self.theta, self.resistance = nn.Parameter(torch.as_tensor(theta)), resistance

    def forward(self, current, membrane=None):
        membrane = self.theta / 2 if membrane is None else membrane
        membrane = membrane + self.resistance * current
        spikes = (membrane >= self.theta).to(current.dtype)
        return spikes, membrane - spikes * self.theta


class Plain(Integrator):
    """The spikes alone; its state in itself."""

    def forward(self, current):
        spikes, self.membrane = super().forward(current, getattr(self, "membrane", None))
        return spikes


def of(neuron):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), neuron, nn.Linear(8, 3))


def test_a_registered_neuron_settles_at_its_rate(own_registry):
    ep.register_neuron(Integrator, threshold="theta", gain="resistance", outputs=2)
    net, x = of(Integrator(0.8, 1.7)), torch.rand(4, 6)
    model = ep.convert(net, **SETTLED)
    current, state, count = net[0](x).detach(), None, 0
    for _ in range(1000):
        spikes, state = net[1](current, state)
        count = count + spikes
    found = model.free_phase(x).states[0]
    assert 0.1 < found.mean() < 0.9
    torch.testing.assert_close(found, count.detach() / 1000, rtol=0, atol=2e-3)
    assert model.layers[0].threshold is net[1].theta  # a parameter, and trained


def test_a_registered_neuron_trains_as_a_built_in_one(own_registry, float64):
    """The same gradient of every parameter, in a sequence and in a forward, with its state passed or kept inside."""
    ep.register_neuron(Integrator, threshold=lambda n: n.theta, gain=lambda n: torch.tensor(n.resistance), outputs=2)
    ep.register_neuron(Plain, threshold="theta", activation="sigmoid")

    class Looping(nn.Module):
        def __init__(self, neuron):
            super().__init__()
            self.parts = of(neuron)

        def forward(self, x):
            state = None
            for _ in range(3):
                spikes, state = self.parts[1](self.parts[0](x), state)
            return self.parts[2](spikes)

    built_in = of(snn.Leaky(beta=0.5, threshold=0.8, learn_threshold=True))
    x, y = torch.rand(4, 6), torch.rand(4, 3)
    expected = None
    for net in (built_in, of(Integrator()), Looping(Integrator()), of(Plain())):
        model = ep.convert(net, **SETTLED, activation="sigmoid")
        found = torch.autograd.grad((model(x) - y).pow(2).sum(), list(net.parameters()))
        found = {tuple(g.shape): g for g in found}
        expected = found if expected is None else expected
        torch.testing.assert_close(found, expected)


def test_what_is_told_of_a_registered_neuron(own_registry):
    ep.register_neuron(Plain, threshold="theta")
    with pytest.warns(ep.ConversionWarning, match=r"1 Plain neuron layers settle at rate = activation\(gain"):
        ep.convert(of(Plain()))


def test_a_subclass_is_registered_by_itself(own_registry):
    """A library's neuron that somebody has changed is refused, and the way out is to say what it does."""

    class Mine(snn.Leaky):
        pass

    with pytest.raises(ValueError, match=r"'1' \(Mine\).*not known to have an eq.*register_neuron\(Mine, \.\.\.\)"):
        ep.convert(of(Mine(beta=0.5)))
    ep.register_neuron(snn.Leaky, outputs=2)
    with pytest.raises(ValueError, match="register_neuron"):
        ep.convert(of(Mine(beta=0.5)))
    ep.register_neuron(Mine, outputs=2)
    x = torch.rand(2, 6)
    torch.testing.assert_close(
        ep.convert(of(Mine(beta=0.5)), **SETTLED)(x), ep.convert(of(ep.ConvergentLeaky()), **SETTLED)(x)
    )


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        (Integrator(), {}, TypeError, r"expected a subclass of nn\.Module"),
        ("Leaky", {}, TypeError, r"expected a subclass of nn\.Module"),
        (Integrator, {"threshold": None}, TypeError, "threshold is None; expected the name of an attribute"),
        (Integrator, {"gain": True}, TypeError, "gain is True"),
        (Integrator, {"threshold": 0.0}, ValueError, "threshold is 0.0; expected finite numbers above 0"),
        (Integrator, {"gain": torch.tensor([1.0, -2.0])}, ValueError, r"gain is \[1.0, -2.0\]"),
        (Integrator, {"outputs": 0}, ValueError, "outputs is 0"),
        (Integrator, {"outputs": 2.0}, TypeError, "outputs is 2.0"),
        (Integrator, {"activation": "step"}, ValueError, "'hard_sigmoid'"),
    ],
)
def test_nonsense_is_not_registered(own_registry, given, options, error, message):
    with pytest.raises(error, match=message):
        ep.register_neuron(given, **options)
    assert Integrator not in REGISTERED


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threshold": "vth"}, ValueError, r"'1' \(Plain\) has no attribute 'vth'.*register_neuron\(Plain, thr.*name"),
        ({"threshold": lambda n: n.theta * 2}, ValueError, r"threshold of module '1'.*would not be trained.*detached"),
        ({"threshold": lambda n: "high"}, TypeError, "the threshold of module '1' .* is 'high'"),
        ({"threshold": lambda n: n.theta, "gain": lambda n: -1}, ValueError, "the gain of module '1' .* is -1"),
    ],
)
def test_what_a_neuron_does_not_have_is_refused_where_it_stands(own_registry, options, error, message):
    """And what the refusals advise is taken."""
    ep.register_neuron(Plain, **options)
    with pytest.raises(error, match=message):
        ep.convert(of(Plain()))
    for works in ({"threshold": "theta"}, {"threshold": lambda n: (n.theta * 2).detach()}, {"threshold": 0.5}):
        ep.register_neuron(Plain, **works)
        ep.convert(of(Plain()))


def test_the_state_of_a_registered_neuron_is_not_read(own_registry):
    ep.register_neuron(Integrator, threshold="theta", outputs=2)

    class Reading(nn.Module):
        def __init__(self, which):
            super().__init__()
            self.a, self.n, self.which = nn.Linear(4, 3), Integrator(), which

        def forward(self, x):
            return self.n(self.a(x))[self.which]

    with pytest.raises(ValueError, match=r"'n' \(Integrator\) is read by its state.*expected its spikes to be read"):
        ep.convert(Reading(1))
    ep.convert(Reading(0))


SNNTORCH_REFUSED = {
    "LeakyParallel": lambda: snn.LeakyParallel(8, 8),
    "SLSTM": lambda: snn.SLSTM(8, 8),
    "DeltaLeaky": lambda: snn.DeltaLeaky(beta=0.5),
}


@pytest.mark.parametrize("name", SNNTORCH_REFUSED)
def test_snntorch_neurons_without_an_equilibrium_name_those_that_have_one(name):
    with pytest.raises(ValueError, match=rf"'1' \({name}\) cannot be converted: .*snn\.Leaky if in doubt") as refused:
        ep.convert(of(SNNTORCH_REFUSED[name]()))
    (known,) = re.findall(r"Use one of (.*) in its place", str(refused.value))
    made = {"RLeaky": {"linear_features": 8}, "Alpha": {"alpha": 0.9}, "Synaptic": {"alpha": 0.9}}
    made["RSynaptic"] = {**made["Synaptic"], **made["RLeaky"]}
    for kind in known.split(", "):
        neuron = getattr(ep if kind.startswith("Conv") else snn, kind)(beta=0.5, **made.get(kind, {}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ep.convert(of(neuron))


def test_snntorchs_layers_are_no_neurons():
    """They may stand before the first or after the last."""
    ep.convert(nn.Sequential(nn.Linear(6, 5), snn.Leaky(beta=0.5), nn.Linear(5, 4), snn.GradedSpikes(4, 1.0)))
