"""Models and modules that are refused, and each way out that the refusal names, followed."""

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import nn
from ways_out import Net, X, with_part, works

import ep_plugin as ep
from ep_plugin.conversion.adapters import REGISTERED
from ep_plugin.linear.base import REGISTRY

IMAGES = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def own_registries():
    """What a test registers is forgotten after it."""
    before = dict(REGISTRY), dict(REGISTERED)
    yield
    for registry, kept in zip((REGISTRY, REGISTERED), before, strict=True):
        registry.clear()
        registry.update(kept)


def leaky(**options):
    return snn.Leaky(beta=0.5, **options)


def between(*modules):
    return nn.Sequential(nn.Linear(8, 6), leaky(), *modules, nn.Linear(6, 6), leaky(), nn.Linear(6, 3))


def before(*modules):
    return nn.Sequential(nn.Linear(8, 6), *modules, leaky(), nn.Linear(6, 6), leaky(), nn.Linear(6, 3))


def after(*modules):
    return nn.Sequential(nn.Linear(8, 6), leaky(), nn.Linear(6, 6), leaky(), *modules, nn.Linear(6, 3))


def pictures(*modules):
    return nn.Sequential(nn.Conv2d(1, 2, 1), leaky(), nn.Conv2d(2, 2, 1), *modules, leaky(), nn.Flatten())


class Trapezoids(nn.Module):
    """Linear, in a way that only its author knows."""

    def forward(self, h):
        return torch.trapezoid(h.unflatten(1, (6, 2)), dim=-1)


def padded(mode):
    conv = nn.Conv2d(2, 2, 3, padding=1)
    conv.padding_mode = mode
    return conv


PIECEWISE = (nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(), nn.Hardtanh())
MOVED = "move it before the first neuron or after the last"

# What stands between two neurons -> what the refusal says, and a net (or a net and options) for each way out.
MODULES = {
    "layer norm": (
        lambda: between(nn.LayerNorm(6)),
        rf"'2' \(LayerNorm\).*use a batch normalization, or {MOVED}",
        [lambda m=m: m for m in (between(nn.BatchNorm1d(6)), before(nn.LayerNorm(6)), after(nn.LayerNorm(6)))],
    ),
    "group norm": (
        lambda: between(nn.GroupNorm(2, 6)),
        rf"'2' \(GroupNorm\).*batch normalization, or {MOVED}",
        [lambda: before(nn.GroupNorm(2, 6)), lambda: after(nn.GroupNorm(2, 6))],
    ),
    "RMS norm": (
        lambda: between(nn.RMSNorm(6)),
        rf"'2' \(RMSNorm\).*batch normalization, or {MOVED}",
        [lambda: before(nn.RMSNorm(6)), lambda: after(nn.RMSNorm(6))],
    ),
    "statistics of the batch": (
        lambda: between(nn.BatchNorm1d(6, track_running_stats=False)),
        r"'2' \(BatchNorm1d\).*expected track_running_stats=True",
        [lambda: between(nn.BatchNorm1d(6, track_running_stats=True))],
    ),
    "alpha dropout": (
        lambda: between(nn.AlphaDropout()),
        r"'2' \(AlphaDropout\).*use nn\.Dropout",
        [lambda: between(nn.Dropout())],
    ),
    "smooth": (
        lambda: between(nn.Tanh()),
        r"'2' \(Tanh\).*remove it, use .*\(ReLU, ReLU6, LeakyReLU, Hardtanh\), or choose .*convert\(\.\.\., act",
        [between, *(lambda m=m: between(m) for m in PIECEWISE), lambda: (between(), {"activation": "sigmoid"})],
    ),
    "not known": (
        lambda: between(nn.PReLU()),
        rf"'2' \(PReLU\).*otherwise use a linear or piecewise linear module \(ReLU, max pooling\), or {MOVED}",
        [
            lambda: between(nn.Linear(6, 6)),
            *(lambda m=m: between(m) for m in (nn.ReLU(), nn.MaxPool1d(1))),
            lambda: before(nn.PReLU()),
            lambda: after(nn.PReLU()),
        ],
    ),
    "flattened batch": (
        lambda: between(nn.Flatten(0)),
        r"'2' \(Flatten\) flattens the batch too; expected start_dim=1",
        [lambda: between(nn.Flatten(1))],
    ),
    "no size yet": (
        lambda: between(nn.LazyLinear(6)),
        r"'2' \(LazyLinear\).*or give the sizes",
        [lambda: between(nn.Linear(6, 6))],
    ),
    "padding of another kind": (
        lambda: pictures(padded("mean")),
        r"'3' \(Conv2d\) pads by 'mean'.*expected one of 'zeros'",
        [lambda m=m: pictures(padded(m)) for m in ("zeros", "circular", "reflect", "replicate")],
    ),
    "dilated pooling": (
        lambda: (pictures(nn.MaxPool2d(2, dilation=2)), {"max_pooling": "average"}),
        r"'3' \(MaxPool2d\) cannot become average.*expected dilation=1, or max_pooling=\"keep\"",
        [
            lambda: (pictures(nn.MaxPool2d(2)), {"max_pooling": "average"}),
            lambda: (pictures(nn.MaxPool2d(2, dilation=2)), {"max_pooling": "keep"}),
        ],
    ),
}


@pytest.mark.parametrize("case", MODULES)
def test_modules_between_neurons(case):
    make, message, ways = MODULES[case]
    net, options = made(make())
    with pytest.raises(ValueError, match=message):
        ep.convert(net, **options)
    for way in ways:
        net, options = made(way())
        works(net, IMAGES if isinstance(net[0], nn.Conv2d) else X, **options)


def made(net):
    return net if isinstance(net, tuple) else (net, {})


def test_what_is_affine_may_be_registered(own_registries):
    """A module of one's own, and a function in one."""
    net = nn.Sequential(nn.Linear(8, 12), leaky(), Trapezoids(), nn.Linear(6, 6), leaky())
    with pytest.raises(ValueError, match=r"function 2.trapezoid\(\) between two neurons.*module of your own call it"):
        ep.convert(net)

    def by_function(net, x):
        return net.behind(torch.trapezoid(net.part(net.first(x)).unflatten(1, (6, 2)), dim=-1))

    with pytest.raises(ValueError, match=r"the function trapezoid\(\) between two neurons.*a module of your own"):
        ep.convert(with_part(nn.Linear(6, 12), by_function)())
    ep.register_linear(Trapezoids)
    works(net)
    both = nn.Sequential(nn.Linear(6, 12), Trapezoids())
    works(with_part(both, lambda net, x: net.behind(net.part(net.first(x))))())


def test_a_function_of_one_signal_and_of_the_models_tensors(own_registries):
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.full((6,), 0.1))
            self.register_buffer("variance", torch.full((6,), 0.5))

        def forward(self, h):
            return F.batch_norm(h, self.mean, self.variance)

    def run(net, x):
        return net.behind(net.b(F.batch_norm(net.first(x), net.part.mean, net.part.variance)))

    with pytest.raises(ValueError, match=r"batch_norm\(\) before module 'm' \(Leaky\).*a module of your own.*register"):
        ep.convert(with_part(Normed, run)())
    ep.register_linear(Normed)
    works(with_part(Normed, lambda net, x: net.behind(net.b(net.part(net.first(x)))))())


def added(act):
    """The spikes, and the drive that caused them, added and acted on; and acted on before the sum."""
    return (
        lambda net, x: net.behind(act(net, net.b(net.first(x)) + net.a(x))),
        lambda net, x: net.behind(act(net, net.b(net.first(x))) + act(net, net.a(x))),
    )


SUMS = {
    "ReLU": (nn.ReLU, "piece by piece; put it before the sum"),
    "Dropout": (nn.Dropout, "a mask of its own; put it before the sum"),
    "MaxPool1d": (lambda: nn.MaxPool1d(1), 'piece by piece; put it before the sum, or use max_pooling="average"'),
}


@pytest.mark.parametrize("name", SUMS)
def test_what_follows_a_sum(name):
    make, message = SUMS[name]
    behind, in_front = added(lambda net, h: net.part(h))
    net = with_part(make(), behind)()
    with pytest.raises(ValueError, match=rf"'part' \({name}\).*follows a sum.*{message}"):
        ep.convert(net)
    works(with_part(make(), in_front)())
    if name == "MaxPool1d":
        works(net, max_pooling="average")


def test_products_have_no_energy_and_sums_of_linear_modules_do():
    with pytest.raises(
        ValueError, match=r"'m' \(Leaky\) depends on part\(\).*write it as a sum of a linear module of each"
    ):
        ep.convert(with_part(nn.Bilinear(6, 6, 6), lambda net, x: net.behind(net.part(s := net.first(x), net.b(s))))())
    works(with_part(nn.Linear(6, 6), lambda net, x: net.behind(net.part(s := net.first(x)) + net.b(net.b(s))))())


def test_what_several_values_come_out_of_is_no_index_of_samples():
    """Attention returns a tuple: the reason is its product, and not the index."""

    def run(net, x):
        s = net.first(x)
        return net.behind(net.part(s, s, s)[0])

    with pytest.raises(ValueError, match=r"'m' \(Leaky\) depends on part\(\) of several tensors"):
        ep.convert(with_part(nn.MultiheadAttention(6, 2), run)())


DEPENDENCES = {
    "no neuron is read": (lambda net, x: net.out(net.a(x)), "the output depends on no neuron", Net.step),
    "the input is not read": (
        lambda net, x: net.out(net.n(net.a(torch.ones(1, 8)))[0]),
        r"does not depend on the input, but on module 'n' \(Leaky\) alone; expected neurons that receive",
        Net.step,
    ),
    "a neuron of a constant": (
        lambda net, x: net.behind(net.b(net.first(x))) + net.out(net.part(net.a(torch.ones(1, 8)))[0]),
        r"'part' \(Leaky\) receives the same whatever the input is; expected .*a constant may be added",
        lambda net, x: (
            net.behind(net.b(net.first(x))) + net.out(net.part(net.a(torch.ones(1, 8)) + net.b(net.a(x)))[0])
        ),
    ),
    "nothing returned": (lambda net, x: None, "returns no tensor; expected one that depends on a neuron", Net.step),
    "other weights at another step": (
        lambda net, x: net.out(net.n(net.a(x))[0]) + net.out(net.n(2 * net.a(x))[0]),
        r"'n' \(Leaky\) receives something that differs between steps.*expected the same in every step",
        lambda net, x: net.out(net.n(net.a(x))[0]) + net.out(net.n(net.a(x))[0]),
    ),
}


@pytest.mark.parametrize("case", DEPENDENCES)
def test_what_a_model_depends_on(case):
    refused, message, way = DEPENDENCES[case]
    with pytest.raises(ValueError, match=message):
        ep.convert(with_part(leaky(), refused)())
    works(with_part(leaky(), way)())


def test_what_reads_the_input_beside_neurons_is_added_outside():
    net = Net(lambda net, x: net.step(x) + net.out(net.a(x)))
    with pytest.raises(ValueError, match=r"reads the input beside module 'm' \(Leaky\).*without that part, and add"):
        ep.convert(net)
    net.run = Net.step
    works(net)
    (ep.convert(net)(X) + net.out(net.a(X))).sum().backward()
    assert net.a.weight.grad is not None


def test_a_neuron_in_two_places_and_loops():
    """A neuron for each place; a recurrent neuron; a network put together by hand."""
    message = r"'n' \(Leaky\) receives something else the second.*neuron for each.*RLeaky, .*ConvergentNetwork"
    with pytest.raises(ValueError, match=message):
        ep.convert(Net(lambda net, x: net.out(net.n(net.b(net.first(x)))[0])))
    works(Net(Net.step))

    def by_hand(net, x):
        spikes = torch.zeros(1, 6)
        for _ in range(3):
            spikes, _ = net.n(net.a(x) + net.b(spikes))
        return net.out(spikes)

    with pytest.raises(ValueError, match=message):
        ep.convert(Net(by_hand))
    works(nn.Sequential(nn.Linear(8, 6), snn.RLeaky(beta=0.5, linear_features=6), nn.Linear(6, 3)))

    def from_behind(net, x):
        back = torch.zeros(1, 6)
        for _ in range(3):
            s, _ = net.n(net.a(x) + net.part(back))
            back, _ = net.m(net.b(s))
        return net.out(back)

    net = with_part(nn.Linear(6, 6), from_behind)()
    with pytest.raises(ValueError, match=message):
        ep.convert(net)
    connections = [ep.Connection(net.b, 0, 1), ep.Connection(net.part, 1, 0)]
    model = ep.ConvergentNetwork(net.a, [ep.Layer(), ep.Layer()], connections, net.out)
    model(X).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_sums_are_kept_outside():
    def run(net, x):
        net.total = getattr(net, "total", 0) + net.step(x)
        return net.total

    with pytest.raises(
        ValueError, match=r"what Net returns differs from one call to the next.*one step gives, and sum it"
    ):
        ep.convert(Net(run))
    works(Net(Net.step))


def test_parameters_are_changed_after_a_step_of_the_optimizer():
    def run(net, x):
        net.a.weight.data.clamp_(min=0)
        return net.step(x)

    for change in (run, lambda net, x: (net.a.weight.data.mul_(x.mean()), net.step(x))[1]):
        with pytest.raises(ValueError, match=r"parameters in place.*change them after each step of the optimizer"):
            ep.convert(Net(change))
    net = Net(Net.step)
    model = ep.convert(net)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(X).sum().backward()
    optimizer.step()
    net.a.weight.data.clamp_(min=0)
    assert all((p >= 0).all() for p in model.stem.parameters() if p.dim() == 2)


def test_dropout_between_neurons_follows_the_mode():
    with pytest.raises(
        ValueError, match=r"does not follow the model's mode.*nn\.Dropout, or F\.dropout\(x, p, training"
    ):
        ep.convert(Net(lambda net, x: net.behind(F.dropout(net.b(net.first(x)), 0.5))))
    works(Net(lambda net, x: net.behind(F.dropout(net.b(net.first(x)), 0.5, training=net.training))))
    works(between(nn.Dropout()))


def test_a_model_with_a_neuron(own_registries):
    """A library's, or one's own that is registered."""

    class Own(nn.Module):
        threshold = 1.0

        def forward(self, x):
            return (x > self.threshold).float()

    net = nn.Sequential(nn.Linear(8, 6), Own(), nn.Linear(6, 3))
    with pytest.raises(ValueError, match=r"no neuron that is known; expected .*snn\.Leaky, or .*register_neuron"):
        ep.convert(net)
    ep.register_neuron(Own)
    works(net)
    works(nn.Sequential(nn.Linear(8, 6), leaky(), nn.Linear(6, 3)))


def test_what_convert_is_given():
    net = Net(Net.step)
    with pytest.raises(TypeError, match=r"given a list; expected an nn\.Module, such as an nn\.Sequential"):
        ep.convert(modules := [nn.Linear(8, 6), leaky()])
    works(nn.Sequential(*modules))
    with pytest.raises(ValueError, match=r"the model is a ScriptModule.*convert the module that it was made of"):
        ep.convert(torch.jit.script(plain := nn.Linear(8, 6)))
    works(nn.Sequential(plain, leaky()))
    for bad, error, good in (
        (X.tolist(), TypeError, X),
        (X.round().int(), TypeError, X.round().int().float()),
        (X[0], ValueError, X[:1]),
        (X[:0], ValueError, X[:1]),
    ):
        with pytest.raises(error, match=r"example_input .*expected"):
            ep.convert(net, example_input=bad)
        works(net, example_input=good)
    for name, options in (("max_pooling", ("keep", "average")), ("learnable_leak", ("refuse", "freeze"))):
        with pytest.raises(ValueError, match=f"{name} is 'x'; expected one of {options[0]!r}, {options[1]!r}"):
            ep.convert(net, **{name: "x"})
        for option in options:
            works(net, **{name: option})
    with pytest.raises(TypeError, match=r"output is 1\.5; expected an index, a key, or a tuple"):
        ep.convert(net, output=1.5)
    with pytest.raises(ValueError, match="output=3 is not among what forward returns; expected one of 0, 1"):
        ep.convert(two := Net(lambda net, x: (net.step(x), net.first(x))), output=3)
    for place in (0, 1, (0,)):
        works(two, output=place)
