"""Neurons that are refused, and each way out that the refusal names, followed."""

import warnings

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from norse.torch.functional.izhikevich import tonic_spiking
from norse.torch.module.izhikevich import IzhikevichCell
from norse.torch.module.lif_ex import LIFExCell
from torch import nn
from torch.nn.utils import parametrize
from ways_out import Net, X, works

import ep_plugin as ep
from ep_plugin.conversion.adapters import REGISTERED
from ep_plugin.conversion.adapters.norse import NEURONS

BIG = {"LIFRecurrentCell": (6, 6), "LIFRecurrent": (6, 6), "LILinearCell": (6, 6)}


@pytest.fixture
def own_registry():
    """What a test registers is forgotten after it."""
    before = dict(REGISTERED)
    yield
    REGISTERED.clear()
    REGISTERED.update(before)


def of(neuron):
    """A net of one neuron, over all steps where the neuron takes them."""
    return norse.SequentialState(nn.Linear(8, 6), neuron, nn.Linear(6, 3))


def last(cell):
    """A net with the cell in it, and a spiking neuron before it for those that are none."""
    if type(cell).__name__ in ("LICell", "LI", "LIBoxCell", "LILinearCell"):
        spiking = norse.LIF() if type(cell) is norse.LI else norse.LIFCell()
        return norse.SequentialState(nn.Linear(8, 6), spiking, nn.Linear(6, 6), cell)
    return of(cell)


NORSE = {
    "LSNNCell": (norse.LSNNCell, "its threshold adapts"),
    "LSNNRecurrentCell": (lambda: norse.LSNNRecurrentCell(6, 6), "its threshold adapts"),
    "LIFRefracCell": (norse.LIFRefracCell, "its refractory period"),
    "LIFAdExCell": (norse.LIFAdExCell, "its adaptation"),
    "LIFExCell": (LIFExCell, "an exponential of itself"),
    "CobaLIFCell": (lambda: norse.CobaLIFCell(6, 6), "conductances"),
    "IzhikevichCell": (lambda: IzhikevichCell(tonic_spiking), "recovery variable"),
    "LIFMCRecurrentCell": (lambda: norse.LIFMCRecurrentCell(6, 6), "several compartments"),
    "LIFCorrelation": (lambda: norse.LIFCorrelation(6, 6), "its weights change with its spikes"),
}


@pytest.mark.parametrize("kind", NEURONS, ids=lambda kind: kind.__name__)
def test_neurons_that_refusals_name(kind):
    works(last(kind(*BIG.get(kind.__name__, ()))))


@pytest.mark.parametrize("name", NORSE)
def test_norse_neurons_without_an_equilibrium_name_those_that_have_one(name):
    make, reason = NORSE[name]
    with pytest.raises(
        ValueError, match=rf"'1' \({name}\) cannot be converted: .*{reason}.*Use one of (.*)LIFCell if"
    ) as told:
        ep.convert(of(make()))
    named = str(told.value).split("Use one of ")[1].split(" in its place")[0].split(", ")
    assert named == [kind.__name__ for kind in NEURONS]  # see the test before


def test_a_convolution_of_all_steps_becomes_one_of_each():
    x = torch.rand(2, 1, 5, 5)
    with pytest.raises(ValueError, match=r"'0' \(LConv2d\).*Use an nn\.Conv2d.*or norse\.Lift\(nn\.Conv2d"):
        ep.convert(norse.SequentialState(norse.LConv2d(1, 2, 3), norse.LIFCell()))
    works(norse.SequentialState(nn.Conv2d(1, 2, 3), norse.LIFCell()), x)
    works(norse.SequentialState(norse.Lift(nn.Conv2d(1, 2, 3)), norse.LIF()), x)


def test_scales_of_time_are_the_same_at_an_equilibrium():
    x = torch.rand(2, 1, 5, 5)
    field = norse.TemporalReceptiveField((1, 5, 5), 2)
    with pytest.raises(ValueError, match=r"'0' \(TemporalReceptiveField\).*Take it out of the model"):
        ep.convert(norse.SequentialState(field, nn.Flatten(), nn.Linear(50, 6), norse.LIFCell()))
    works(norse.SequentialState(nn.Flatten(), nn.Linear(25, 6), norse.LIFCell()), x)


class Read(Net):
    """The value number `which` that a neuron behind another returns."""

    def __init__(self, last, which):
        super().__init__(None)
        self.last, self.which = last, which

    def forward(self, x):
        return self.last(self.b(self.first(x)))[self.which]


MEMBRANES = {
    "reset": (
        snn.Leaky(beta=0.5),
        r"resets it \('subtract'\).*its spikes to be read, or reset_mechanism='none'",
        [(snn.Leaky(beta=0.5), 0), (snn.Leaky(beta=0.5, reset_mechanism="none"), 1)],
    ),
    "recurrent": (
        snn.RLeaky(beta=0.5, linear_features=6, reset_mechanism="none"),
        r"while its spikes come back to it.*spikes to be read, or snn\.Leaky with reset_mechanism='none'",
        [
            (snn.RLeaky(beta=0.5, linear_features=6, reset_mechanism="none"), 0),
            (snn.Leaky(beta=0.5, reset_mechanism="none"), 1),
        ],
    ),
    "no leak": (
        snn.Leaky(beta=1.0, reset_mechanism="none"),
        "nothing leaks from it; expected a leak below 1",
        [(snn.Leaky(beta=0.99, reset_mechanism="none"), 1)],
    ),
    "norse": (
        norse.LIFCell(),
        r"is read by its state.*expected its spikes to be read, or an LICell",
        [(norse.LIFCell(), 0), (norse.LICell(), 0)],
    ),
}


@pytest.mark.parametrize("case", MEMBRANES)
def test_membranes_that_are_read(case):
    neuron, message, ways = MEMBRANES[case]
    with pytest.raises(ValueError, match=rf"'last' \({type(neuron).__name__}\).*{message}"):
        ep.convert(Read(neuron, 1))
    for way, which in ways:
        works(Read(way, which))


def lif(**options):
    return norse.LIFCell(norse.LIFParameters(**options))


def box(**options):
    return norse.LIFBoxCell(norse.LIFBoxParameters(**options))


def learned(value):
    return nn.Parameter(torch.tensor(value))


FREEZE = {"learnable_leak": "freeze"}
# A neuron's setting -> what the refusal says, and neurons (with options) for each way out.
SETTINGS = {
    "learnable leak": (
        lambda: snn.Leaky(beta=0.5, learn_beta=True),
        r"\(beta\).*Use learn_beta=False, or .*='freeze'\)",
        [(lambda: snn.Leaky(beta=0.5, learn_beta=False), {}), (lambda: snn.Leaky(beta=0.5, learn_beta=True), FREEZE)],
    ),
    "learnable synapse": (
        lambda: snn.Synaptic(alpha=0.5, beta=0.5, learn_alpha=True),
        r"\(alpha\).*learn_alpha=False, or",
        [
            (lambda: snn.Synaptic(alpha=0.5, beta=0.5, learn_alpha=False), {}),
            (lambda: snn.Synaptic(alpha=0.5, beta=0.5, learn_alpha=True), FREEZE),
        ],
    ),
    "graded spikes": (
        lambda: snn.Leaky(beta=0.5, graded_spikes_factor=2.0),
        "graded_spikes_factor; expected 1",
        [(lambda: snn.Leaky(beta=0.5, graded_spikes_factor=1.0), {})],
    ),
    "inhibition": (
        lambda: snn.Leaky(beta=0.5, inhibition=True),
        "inhibition, .*expected inhibition=False",
        [(lambda: snn.Leaky(beta=0.5, inhibition=False), {})],
    ),
    "quantized state": (
        lambda: snn.Leaky(beta=0.5, state_quant=lambda m: m),
        "state_quant, .*expected state_quant=False",
        [(lambda: snn.Leaky(beta=0.5, state_quant=False), {})],
    ),
    "no threshold": (
        lambda: snn.Leaky(beta=0.5, threshold=0.0),
        "threshold 0.0; expected numbers above 0",
        [(lambda: snn.Leaky(beta=0.5, threshold=0.1), {})],
    ),
    "a synapse for ever": (
        lambda: snn.Synaptic(alpha=1.0, beta=0.5),
        "expected alpha between 0 and 1",
        [(lambda: snn.Synaptic(alpha=0.9, beta=0.5), {})],
    ),
    "an alpha neuron for ever": (
        lambda: snn.Alpha(alpha=1.0, beta=0.5),
        "expected alpha and beta between 0 and 1",
        [(lambda: snn.Alpha(alpha=0.9, beta=0.5), {})],
    ),
    "norse's learnable leak": (
        lambda: lif(tau_mem_inv=learned(100.0)),
        "learnable tau_mem_inv.*Use a plain tensor, or",
        [(lambda: lif(tau_mem_inv=torch.tensor(100.0)), {}), (lambda: lif(tau_mem_inv=learned(100.0)), FREEZE)],
    ),
    "norse's threshold": (
        lambda: lif(v_th=torch.tensor(-1.0)),
        "v_th - v_leak -1.0; expected numbers above 0",
        [
            (lambda: lif(v_th=torch.tensor(1.0)), {}),
            (lambda: lif(v_th=torch.tensor(-1.0), v_leak=torch.tensor(-2.0)), {}),
        ],
    ),
    "norse's learnable threshold": (
        lambda: box(v_leak=torch.tensor(0.1), v_th=learned(1.0)),
        r"learnable v_th and v_leak 0\.1\d*; expected v_leak=0, from which the learnable threshold counts",
        [(lambda: box(v_leak=torch.tensor(0.0), v_th=learned(1.0)), {})],
    ),
}


@pytest.mark.filterwarnings("ignore:Inhibition")
@pytest.mark.parametrize("case", SETTINGS)
def test_settings_of_neurons(case):
    make, message, ways = SETTINGS[case]
    with pytest.raises(ValueError, match=rf"'1' \({type(make()).__name__}\).*{message}"):
        ep.convert(of(make()))
    for way, options in ways:
        works(of(way()), **options)


def test_a_factor_of_spikes_is_one_of_the_weights_after_them():
    """As the refusal says."""
    net = of(snn.Leaky(beta=0.5, graded_spikes_factor=2.0))
    with pytest.raises(ValueError, match="Put the factor into the weights after it"):
        ep.convert(net)
    plain = of(snn.Leaky(beta=0.5))
    plain.load_state_dict(net.state_dict() | {"1.graded_spikes_factor": torch.tensor(1.0)})
    with torch.no_grad():
        plain[2].weight.mul_(2)
    works(plain)


def test_what_is_registered_is_of_its_kind(own_registry):
    class Own(nn.Module):
        theta = 0.5

        def forward(self, x):
            return (x > self.theta).float()

    for given, options, error, message in (
        (Own(), {}, TypeError, r"expected a subclass of nn\.Module"),
        (Own, {"threshold": None}, TypeError, "name of an attribute, a number, a tensor or a function"),
        (Own, {"threshold": 0.0}, ValueError, "expected finite numbers above 0"),
        (Own, {"outputs": 0}, ValueError, "expected a whole number, 1 or more"),
    ):
        with pytest.raises(error, match=message):
            ep.register_neuron(given, **options)
    for threshold in ("theta", 0.5, torch.tensor(0.5), lambda neuron: neuron.theta):
        ep.register_neuron(Own, threshold=threshold, outputs=1)
        works(nn.Sequential(nn.Linear(8, 6), Own(), nn.Linear(6, 3)))
    ep.register_neuron(Own, threshold=lambda neuron: "high")
    with pytest.raises(
        TypeError, match=r"the threshold of module '1' \(Own\) is 'high'; expected a number or a tensor"
    ):
        ep.convert(nn.Sequential(nn.Linear(8, 6), Own()))


@pytest.mark.parametrize(
    ("cell", "state", "good"),
    [(ep.ConvergentLeaky, "mem", 1.0), (ep.ConvergentLIFBoxCell, "state", norse.LIFBoxParameters())],
)
def test_states_of_convergent_neurons(cell, state, good):
    """What the last call returned, or None to start a batch."""
    neuron = cell()
    _, known = neuron(torch.rand(3, 4))
    with pytest.raises(TypeError, match=f"{state} is a Tensor; expected what the last call returned, or None"):
        neuron(torch.rand(3, 4), torch.zeros(3, 4))
    with pytest.raises(
        ValueError, match=rf"shape \[2, 4\] and the state \[3, 4\]; start every batch with {state}=None"
    ):
        neuron(torch.rand(2, 4), known)
    assert neuron(torch.rand(3, 4), known)[0].shape == (3, 4)
    assert neuron(torch.rand(2, 4), None)[0].shape == (2, 4)


def test_the_threshold_of_a_box_cell():
    p = norse.LIFBoxParameters(v_th=torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"v_th - v_leak is 0\.0; expected numbers above 0"):
        ep.ConvergentLIFBoxCell(p)
    works(of(ep.ConvergentLIFBoxCell(p._replace(v_leak=torch.tensor(-1.0)))))


def test_the_original_loads_what_was_trained_and_no_state_of_the_converted():
    """As the docstring of `convert` says: parameters are shared, names are not."""
    make = lambda: nn.Sequential(  # noqa: E731
        *(nn.Linear(8, 6), snn.Leaky(beta=0.5, learn_threshold=True), nn.BatchNorm1d(6), nn.Linear(6, 6)),
        *(snn.RLeaky(beta=0.5, linear_features=6), nn.Linear(6, 3)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ep.ConversionWarning)
        net, other = make(), make()
        model = ep.convert(net).eval()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model(X).pow(2).sum().backward()
        optimizer.step()
        trained = net.state_dict()
        assert {name for name, _ in net.named_parameters() if torch.equal(trained[name], before[name])} == set()
        other.load_state_dict(trained)  # under the original's names, and before it is converted
        assert torch.equal(ep.convert(other).eval()(X), model(X))
        net.load_state_dict(before)  # what the original loads later counts too
        third = make()
        third.load_state_dict(before)
        assert torch.equal(ep.convert(third).eval()(X), model(X))
    assert not model.state_dict().keys() & net.state_dict().keys()
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict(model.state_dict())


class Positive(nn.Module):
    def forward(self, t):
        return nn.functional.softplus(t)

    def right_inverse(self, t):
        return t.expm1().log()


def test_a_parametrized_threshold():
    neuron = snn.Leaky(0.9, threshold=0.5, learn_threshold=True, init_hidden=True)
    parametrize.register_parametrization(neuron, "threshold", Positive())
    net = nn.Sequential(nn.Linear(8, 6), neuron, nn.Linear(6, 3))
    with pytest.raises(ValueError, match=r"'1' .* has a parametrization \(threshold\).*remove_parametrizations"):
        ep.convert(net)
    parametrize.remove_parametrizations(neuron, "threshold")
    model = ep.convert(net)
    parametrize.register_parametrization(model.layers[0], "threshold", Positive())
    assert model.layers[0].threshold.item() == pytest.approx(0.5)
    model(X).pow(2).sum().backward()
    assert model.layers[0].parametrizations.threshold.original.grad.norm() > 0


def test_one_neuron_at_two_places_of_a_sequence():
    """Its membrane is shared where it keeps it itself, and not where the sequence does."""
    lif = snn.Leaky(beta=0.9, init_hidden=True)
    with pytest.raises(ValueError, match=r"'3' .*share one membrane.*expected a neuron for each place"):
        ep.convert(nn.Sequential(nn.Linear(8, 6), lif, nn.Linear(6, 6), lif, nn.Linear(6, 3)))
    works(nn.Sequential(nn.Linear(8, 6), lif, nn.Linear(6, 6), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(6, 3)))
    cell = norse.LIFBoxCell()
    works(norse.SequentialState(nn.Linear(8, 6), cell, nn.Linear(6, 6), cell, nn.Linear(6, 3)))
