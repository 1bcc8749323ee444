"""What a network and its NIR graph refuse, and each way out that the refusal names, followed."""

import warnings

import pytest
import snntorch as snn
import torch
from torch import nn

import ep_plugin as ep

X = torch.rand(2, 4, generator=torch.Generator().manual_seed(0))


def edge(source, target, size=3):
    return ep.Connection(nn.Linear(3, size), source, target)


def network(layers=2, connections=((0, 1),), stem=None, **settings):
    layers = [ep.Layer() for _ in range(layers)] if isinstance(layers, int) else layers
    edges = [c if isinstance(c, nn.Module) else edge(*c) for c in connections]
    return ep.ConvergentNetwork(nn.Linear(4, 3) if stem is None else stem, layers, edges, **settings)


def works(model, x=X):
    output = model(x)
    outputs = output if isinstance(output, tuple) else (output,)
    assert all(o.isfinite().all() for o in outputs)
    sum(o.sum() for o in outputs).backward()
    assert all(p.grad is not None for p in model.parameters())


class Twice(nn.Module):
    """Drives of two layers."""

    def forward(self, x):
        return x, 2 * x


class Total(nn.Module):
    def forward(self, a, b):
        return a + b


GRAPHS = {
    "no layer": (lambda: network(0, ()), ValueError, "no layer of neurons; expected at least", lambda: network(1, ())),
    "driven twice": (lambda: network(driven=(0, 0)), ValueError, r"driven is \(0, 0\); expected one or more different",
                     lambda: network(stem=nn.Sequential(nn.Linear(4, 3), Twice()), driven=(0, 1))),
    "read outside": (lambda: network(read=(2,)), ValueError, r"read is \(2,\); expected .* of 0\.\.1",
                     lambda: network(read=(1,))),
    "no connection": (lambda: network(connections=(nn.Linear(3, 3),)), TypeError, r"expected Connection\(module, sou",
                      lambda: network(connections=(ep.Connection(nn.Linear(3, 3), 0, 1),))),
    "a layer that is not there": (lambda: network(connections=((0, 2),)), ValueError,
                                  r"0 -> 2 names a layer that is not there; expected 0\.\.1", network),
    "a layer that nothing reaches": (lambda: network(connections=()), ValueError,
                                     r"driven layers \(0\) to layer 1; expected one, or 1 among the driven layers",
                                     network),
    "one that nothing reaches, driven": (lambda: network(connections=()), ValueError, "or 1 among the driven layers",
                                         lambda: network(stem=nn.Sequential(nn.Linear(4, 3), Twice()), connections=(),
                                                         driven=(0, 1), readout=Total(), read=(0, 1))),
}  # fmt: skip


@pytest.mark.parametrize("case", GRAPHS)
def test_graphs(case):
    make, error, message, way = GRAPHS[case]
    with pytest.raises(error, match=message):
        make()
    works(way())


SHAPES = {
    "a connection that does not fit": (lambda: network(connections=(ep.Connection(nn.Linear(5, 3), 0, 1),)),
                                       r"connection 0 -> 1 does not fit layer 0, which has the shape \[3\]", network),
    "two shapes": (lambda: network(3, ((0, 1), (1, 2), edge(0, 2, 5))), r"gives the shape \[\d\]; expected \[\d\], w",
                   lambda: network(3, ((0, 1), (1, 2), (0, 2)))),
    "a threshold": (lambda: network([ep.Layer(torch.ones(5)), ep.Layer()]),
                    r"threshold of layer 0 has the shape \[5\].*neurons \[3\]",
                    lambda: network([ep.Layer(torch.ones(3)), ep.Layer()])),
}  # fmt: skip


@pytest.mark.parametrize("case", SHAPES)
def test_shapes(case):
    make, message, way = SHAPES[case]
    with pytest.raises(ValueError, match=message):
        make()(X)
    works(way())


INPUTS = {
    "a list": (X.tolist(), TypeError, r"is a list; expected a tensor \[batch, \.\.\.\]", X),
    "whole numbers": ((255 * X).byte(), TypeError, r"expected floating point \(images in \[0, 1\]: x\.float\(\) / 255",
                      (255 * X).byte().float() / 255),
    "one sample": (X[0], ValueError, r"shape \[4\]; expected \[batch, 4\]", X[:1]),
    "another size": (X[:, :3], ValueError, r"shape \[2, 3\]; expected \[batch, 4\]", X),
    "an empty batch": (X[:0], ValueError, "an empty batch; expected at least one sample", X[:1]),
    "no number": (X / 0 * 0, ValueError, "NaN or infinite values.*expected finite numbers", (X / 0 * 0).nan_to_num()),
}  # fmt: skip


@pytest.mark.parametrize("case", INPUTS)
def test_inputs(case):
    given, error, message, good = INPUTS[case]
    with pytest.raises(error, match=message):
        network()(given)
    works(network(), good)


def test_inputs_of_another_type():
    with pytest.raises(
        ValueError, match=r"expected one of both: x\.to\(torch\.float32\), or model\.to\(torch\.float64\)"
    ):
        network()(X.double())
    works(network(), X.double().to(torch.float32))
    works(network().to(torch.float64), X.double())


def test_what_is_converted_already_has_variants():
    model = net(nn.Linear(4, 3), leaky(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"ConvergentNetwork already; for other settings use model\.variant\(\.\.\.\)"):
        ep.convert(model, encoder="graded")
    works(model.variant(encoder="graded"))


def test_an_input_of_a_stem_that_tells_no_size():
    def model():
        return network(stem=nn.Sequential(nn.ReLU(), nn.Linear(4, 3)))

    with pytest.raises(ValueError, match=r"shape \[2\]; expected \[batch, \.\.\.\]"):
        model()(X[:, 0])
    works(model())


def test_frames():
    """As many steps as frames, no tolerance, and the axis that they lie along."""
    frames = X.expand(5, 2, 4)
    model = network(time_varying=True, relaxation=ep.Relaxation(7))
    with pytest.raises(ValueError, match=r"7 steps for 5 frames.*such as Relaxation\(5\)"):
        model(frames)
    works(model.variant(relaxation=ep.Relaxation(5)), frames)
    with pytest.raises(ValueError, match=r"the tolerance 0\.001, .*expected None"):
        model.variant(relaxation=ep.Relaxation(5, tolerance=1e-3))(frames)
    works(model.variant(relaxation=ep.Relaxation(5, tolerance=None)), frames)
    with pytest.raises(ValueError, match=r"shape \[5, 2, 4\], with no axis 3, which the frames lie along"):
        model.variant(relaxation=ep.Relaxation(5), time_axis=3)(frames)
    works(model.variant(relaxation=ep.Relaxation(5), time_axis=1), frames.transpose(0, 1))


def pooled(pool, **settings):
    layers = [ep.Layer(), ep.Layer(activation=settings.pop("activation", "hard_sigmoid"))]
    connection = ep.Connection(nn.Sequential(nn.Conv2d(2, 3, 3), pool), 0, 1)
    return network(layers, (connection,), nn.Conv2d(1, 2, 3), **settings)


def test_warnings_of_max_pooling():
    """Each is gone where its advice is followed."""
    images = torch.rand(2, 1, 8, 8)
    with pytest.warns(UserWarning, match="before layer 1, whose states may be negative.*0 or more, or average pooling"):
        pooled(nn.MaxPool2d(2), activation=torch.tanh)
    with pytest.warns(UserWarning, match=r"before layer 1 and full phases of spikes.*use EquilibriumPropagation\(\)"):
        pooled(nn.MaxPool2d(2), estimator=ep.FullPhaseEP())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        works(pooled(nn.MaxPool2d(2), activation=torch.sigmoid), images)
        works(pooled(nn.AvgPool2d(2), activation=torch.tanh), images)
        works(pooled(nn.MaxPool2d(2), estimator=ep.EquilibriumPropagation()), images)


def net(*modules, **options):
    return ep.convert(nn.Sequential(*modules), **options)


def leaky():
    return snn.Leaky(beta=0.5)


def convolutions(*between, **options):
    return net(nn.Conv2d(1, 2, 3), leaky(), nn.Conv2d(2, 2, 3), *between, leaky(), nn.Flatten(), **options)


NIR = {
    "another activation": (lambda: net(nn.Linear(4, 3), leaky(), activation="sigmoid"),
                           'layer 0 .*Convert with activation="hard_sigmoid"',
                           [lambda: net(nn.Linear(4, 3), leaky(), activation="hard_sigmoid")]),
    "a neuron's own activation": (
        lambda: net(nn.Linear(4, 3), ep.ConvergentLeaky(activation="sigmoid"), activation="hard_sigmoid"),
        "a convergent neuron keeps its own: give it that one",
        [lambda: net(nn.Linear(4, 3), ep.ConvergentLeaky(activation="hard_sigmoid"))],
    ),
    "two driven layers": (lambda: network(stem=nn.Sequential(nn.Linear(4, 3), Twice()), driven=(0, 1)),
                          "drives the layers 0, 1.*Use a net whose input reaches one layer", [network]),
    "two read layers": (lambda: network(readout=Total(), read=(0, 1)),
                        "reads the layers 0, 1.*Use a net whose output reads one layer", [network]),
    "a stem that is not linear": (lambda: net(nn.Linear(4, 3), nn.ReLU(), leaky()),
                                  "the stem .*Use linear modules there .*, or leave it out and compute it outside",
                                  [lambda: net(nn.Linear(4, 3), leaky())]),
    "a readout that is not linear": (lambda: net(nn.Linear(4, 3), leaky(), nn.Softmax(1)),
                                     "the readout .*leave it out and compute it outside",
                                     [lambda: net(nn.Linear(4, 3), leaky())]),
    "max pooling": (lambda: convolutions(nn.MaxPool2d(2)), r'0 -> 1 .*convert\(net, max_pooling="average"\)',
                    [lambda: convolutions(nn.MaxPool2d(2), max_pooling="average")]),
    "a ReLU": (lambda: convolutions(nn.ReLU()), r"0 -> 1 .*and no ReLU or the like between neurons", [convolutions]),
}  # fmt: skip


@pytest.mark.parametrize("case", NIR)
def test_graphs_of_nir(case):
    make, message, ways = NIR[case]

    def shape(model):
        return (
            (1, 8, 8) if isinstance(model.stem[0] if isinstance(model.stem, nn.Sequential) else 0, nn.Conv2d) else (4,)
        )

    model = make()
    with pytest.raises(ValueError, match=message):
        ep.to_nir(model, shape(model))
    for way in ways:
        model = way()
        assert "output" in ep.to_nir(model, shape(model)).nodes


def test_too_many_synapses_for_nir():
    def model(channels, pool, stride):
        return net(nn.Conv2d(1, channels, 1, stride), *pool, leaky(), nn.Conv2d(channels, channels, 1), leaky())

    with pytest.raises(ValueError, match=r"0 -> 1 .*synapses.*Pool or stride more, or use fewer channels"):
        ep.to_nir(model(64, (), 1), (1, 20, 20))
    for fewer in (model(2, (), 1), model(64, (nn.AvgPool2d(10),), 1), model(64, (), 10)):
        ep.to_nir(fewer, (1, 20, 20))


def test_the_shape_of_an_input_of_nir():
    model = convolutions()
    with pytest.raises(ValueError, match=r"cannot be told from Conv2d, the first module; give it.*\(1, 28, 28\)\)"):
        ep.to_nir(model)
    with pytest.raises(ValueError, match=r"expected \[batch, 1, size, size\]"):
        ep.to_nir(model, (3, 8, 8))
    with pytest.raises(
        ValueError, match=r"a size of the input's shape \(1, 0, 8\) is 0; expected a whole number, 1 or"
    ):
        ep.to_nir(model, (1, 0, 8))
    ep.to_nir(model, (1, 8, 8))
