"""Graphs of NIR come back as networks: those that `to_nir` wrote as the same, others as their library means them."""

import warnings
from itertools import pairwise

import nir
import norse.torch as norse
import numpy as np
import pytest
import snntorch as snn
import torch
from snntorch.export_nir import export_to_nir
from test_nir import NETWORKS
from torch import nn

import ep_plugin as ep
from ep_plugin.nir import as_module

pytestmark = pytest.mark.filterwarnings(
    "ignore::ep_plugin.ConversionWarning", "ignore:nirtorch:DeprecationWarning", "ignore::FutureWarning"
)


def f32(*shape):
    return torch.randn(*shape).numpy()


def arrays(graph):
    """Of every node what is learned, as bytes, in an order that does not depend on names."""
    fields = ("weight", "bias", "v_threshold")
    found = (tuple(np.asarray(getattr(n, f, 0)).tobytes() for f in fields) for n in graph.nodes.values())
    return sorted(found)


def settled(model, x):
    model = model.variant(encoder="graded", relaxation=ep.Relaxation(300)).eval()
    with torch.no_grad():
        return model(x, return_equilibrium=True)


def random_network(seed):
    """One to four layers, skips, thresholds a layer or a neuron, weights of all sizes, feedback from level to level."""
    torch.manual_seed(seed)
    sizes = torch.randint(1, 9, (seed % 4 + 1,)).tolist()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(5, sizes[0])
            self.neurons = nn.ModuleList(
                snn.Leaky(0.5, torch.rand(n if n % 2 else 1) + 0.5, init_hidden=True) for n in sizes
            )
            self.up = nn.ModuleList(nn.Linear(a, b, bias=a % 2 == 0) for a, b in pairwise(sizes))
            self.skip = nn.Linear(sizes[0], sizes[-1]) if len(sizes) > 2 else None
            self.out = nn.Linear(sizes[-1], 3)

        def forward(self, x):
            first = signal = self.neurons[0](self.stem(x))
            for l, up in enumerate(self.up, 1):
                drive = up(signal)
                if self.skip is not None and l == len(self.up):
                    drive = drive + self.skip(first)
                signal = self.neurons[l](drive)
            return self.out(signal)

    net = Net()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(10 ** torch.empty_like(p).uniform_(-3, 0.3))
    strengths = [round(f, 3) for f in torch.rand(len(sizes) - 1).mul(0.6).add(0.01).tolist()]
    return ep.convert(net, feedback=strengths or None), (5,)


def networks():
    return [pytest.param(make, id=name) for name, make in NETWORKS.items()] + [
        pytest.param(lambda seed=seed: random_network(seed), id=f"random {seed}") for seed in range(12)
    ]


@pytest.mark.parametrize("make", networks())
def test_what_to_nir_has_written_is_the_same_network(make, tmp_path):
    """To the last bit, from the file too, and its rates with it."""
    model, shape = make()
    graph = ep.to_nir(model, shape)
    nir.write(tmp_path / "net.nir", graph)
    again = ep.from_nir(tmp_path / "net.nir")
    assert arrays(ep.to_nir(again)) == arrays(graph)
    x = torch.rand(4, *shape)
    (output, was), (found, now) = settled(model, x), settled(again, x.flatten(1))
    torch.testing.assert_close(found, output)
    sums = [sorted(s.sum(dtype=torch.float64).item() for s in e.states) for e in (was, now)]
    assert sums[0] == pytest.approx(sums[1], abs=1e-5)  # the layers may be numbered in another order


@pytest.mark.parametrize("strength", [1.0, 0.02, 0.3, 1e-4, 1 / 3])
def test_the_strength_of_the_feedback_comes_back(strength):
    net = nn.Sequential(nn.Linear(6, 5), snn.Leaky(0.5), nn.Linear(5, 4), snn.Leaky(0.5), nn.Linear(4, 3))
    graph = ep.to_nir(ep.convert(net, feedback=strength))
    (found,) = ep.from_nir(graph).feedback
    assert np.float32(found) == np.float32(strength)
    assert found == strength or strength == 1 / 3  # the shortest number of these bits
    assert ep.from_nir(graph, feedback=0.25).feedback == 0.25


def test_small_weights_beside_large_biases_keep_their_bits():
    net = nn.Sequential(nn.Linear(6, 5), snn.Leaky(0.5), nn.Linear(5, 4), snn.Leaky(0.5))
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.mul_(1e-12)
            layer.bias.add_(1)
    graph = ep.to_nir(ep.convert(net))
    for name, layer in (("input_stem", net[0]), ("layer_0_connection_0", net[2])):
        assert np.array_equal(graph.nodes[name].weight, layer.weight.detach().numpy())
        assert np.array_equal(graph.nodes[name].bias, layer.bias.detach().numpy())


def test_feedback_is_known_by_its_weights():
    """Whatever the nodes are called, and from whichever node a file tells first."""
    model, shape = NETWORKS["perceptron"]()
    graph = ep.to_nir(model, shape)
    names = {name: str(k) for k, name in enumerate(reversed(graph.nodes))}
    nodes = {names[n]: graph.nodes[n] for n in reversed(graph.nodes)}
    renamed = nir.NIRGraph(nodes, [(names[a], names[b]) for a, b in graph.edges])
    assert arrays(ep.to_nir(ep.from_nir(renamed))) == arrays(graph)


def leaky(n, kind=snn.Leaky, threshold=0.7, **constants):
    return kind(threshold=torch.full((n,), threshold), init_hidden=True, beta=torch.full((n,), 0.9), **constants)


SNNTORCH = {
    "Leaky": lambda: (nn.Linear(6, 5), leaky(5), nn.Linear(5, 4, bias=False), leaky(4, threshold=1.3)),
    "Synaptic": lambda: (nn.Linear(6, 5), leaky(5, snn.Synaptic, alpha=torch.full((5,), 0.8)), nn.Linear(5, 4)),
    "RLeaky": lambda: (nn.Linear(6, 5), leaky(5, snn.RLeaky, linear_features=5), nn.Linear(5, 4), leaky(4)),
    "one to one": lambda: (nn.Linear(6, 5), leaky(5, snn.RLeaky, all_to_all=False, V=torch.rand(5)), nn.Linear(5, 4)),
    "RSynaptic": lambda: (
        *(nn.Linear(6, 5), leaky(5, snn.RSynaptic, alpha=torch.full((5,), 0.8), linear_features=5)),
        *(nn.Linear(5, 4), leaky(4)),
    ),
    "convolutions": lambda: (
        *(nn.Conv2d(1, 2, 3, padding="same"), nn.AvgPool2d(2), leaky(1)),
        *(nn.Conv2d(2, 4, 2, stride=2, groups=2, bias=False), leaky(1)),
        *(nn.Flatten(), nn.Linear(16, 4), leaky(4)),
    ),
}


@pytest.mark.parametrize("name", SNNTORCH)
def test_snntorchs_graphs_are_what_convert_makes_of_the_net(name, tmp_path):
    net = nn.Sequential(*SNNTORCH[name]())
    x = torch.rand(4, *((1, 8, 8) if name == "convolutions" else (6,)))
    if name == "convolutions":  # NIR's shapes are those of the neurons
        net[2], net[4] = (
            snn.Leaky(torch.full(s, 0.9), torch.full(s, 0.7), init_hidden=True) for s in ((2, 4, 4), (4, 2, 2))
        )
    if isinstance(net[-1], snn.SpikingNeuron):
        net[-1].output = True
    graph = export_to_nir(net, x[:1], ignore_dims=[0])
    nir.write(tmp_path / "net.nir", graph)
    expected, _ = settled(ep.convert(net), x)
    assert expected.std() > 0.01
    for source in (graph, tmp_path / "net.nir", str(tmp_path / "net.nir")):
        model = ep.from_nir(source)
        torch.testing.assert_close(settled(model, x)[0], expected)
    weights = [p for p in net.parameters() if p.dim() > 1]
    assert {w.detach().numpy().tobytes() for w in weights} <= {
        p.detach().contiguous().numpy().tobytes() for p in model.parameters()
    }


def constants(kind, n, **more):
    ones = torch.ones(n)
    return kind(**{name: ones * value for name, value in more.items()})


NORSE = {
    "LIFBoxCell": lambda: (
        *(nn.Linear(6, 5), norse.LIFBoxCell(constants(norse.LIFBoxParameters, 5, tau_mem_inv=9, v_th=0.7, v_leak=0.1))),
        *(nn.Linear(5, 4), norse.LIBoxCell(constants(norse.LIBoxParameters, 4, tau_mem_inv=9, v_leak=0.2))),
    ),
    "IAFCell": lambda: (nn.Linear(6, 5), norse.IAFCell(constants(norse.IAFParameters, 5, v_th=0.6)), nn.Linear(5, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", NORSE)
def test_norses_graphs_are_what_convert_makes_of_the_net(name, tmp_path):
    """Norse writes a batch among the shapes of input and output."""
    net = norse.SequentialState(*NORSE[name]())
    x = torch.rand(4, 6)
    graph = norse.to_nir(net, x[:1])
    nir.write(tmp_path / "net.nir", graph)
    expected, _ = settled(ep.convert(net), x)
    for source in (graph, tmp_path / "net.nir"):
        torch.testing.assert_close(settled(ep.from_nir(source), x)[0], expected)


def chain(*nodes, shape=None):
    return nir.NIRGraph.from_list(*([] if shape is None else [nir.Input(np.array(shape))]), *nodes)


def test_graphs_as_sinabs_writes_them():
    """Tensors for arrays, sizes as tuples, no shapes of convolutions, thresholds one a neuron, sums in pooling."""
    weights = torch.randn(3, 2, 3), torch.randn(4, 1, 3, 3), torch.randn(4, 4, 3, 3), torch.randn(5, 16)
    graph = chain(
        nir.Conv2d(None, weights[1], (1, 1), (1, 1), (1, 1), 1, torch.zeros(4)),
        nir.IF(r=torch.ones(4, 8, 8), v_threshold=torch.full((4, 8, 8), 2.0)),
        nir.SumPool2d((2, 2), (2, 2), (0, 0)),
        nir.Conv2d(None, weights[2], (2, 2), (1, 1), (1, 1), 1, torch.zeros(4)),
        nir.IF(r=torch.ones(4, 2, 2), v_threshold=torch.full((4, 2, 2), 2.0)),
        nir.Flatten(None, 0, -1),
        nir.Affine(weights[3], torch.zeros(5)),
        nir.IF(r=torch.ones(5), v_threshold=torch.ones(5)),
        shape=(1, 8, 8),
    )
    first, second = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, 2, 1, bias=False)
    last, line = nn.Linear(16, 5, bias=False), nn.Conv1d(2, 3, 3, 2, 1, bias=False)
    for module, weight in zip((line, first, second, last), weights, strict=True):
        module.weight.data = weight
    net = nn.Sequential(
        *(first, snn.Leaky(1.0, 2.0), nn.AvgPool2d(2, divisor_override=1), second, snn.Leaky(1.0, 2.0)),
        *(nn.Flatten(), last, snn.Leaky(1.0)),
    )
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(settled(ep.from_nir(graph), x)[0], settled(ep.convert(net), x)[0])

    graph = chain(
        nir.Conv1d(None, weights[0], (2,), (1,), (1,), 1, torch.zeros(3)),
        nir.IF(r=torch.ones(3, 4), v_threshold=torch.ones(3, 4)),
        shape=(2, 8),
    )
    x = torch.rand(4, 2, 8)
    expected, _ = settled(ep.convert(nn.Sequential(line, snn.Leaky(1.0))), x)
    torch.testing.assert_close(settled(ep.from_nir(graph), x)[0], expected)


def test_graphs_as_lava_writes_them():
    """Nodes called by numbers, weights without bias, no input, a step of 1e-4 in all constants."""
    tau, dt, n = 1e-3, 1e-4, np.ones(4)
    cuba = nir.CubaLIF(
        *(tau * n, 2 * tau * n, 2 * tau / dt * n, 0 * n, 1.25 * n),  # tau_syn, tau_mem, r, v_leak, v_threshold
        w_in=tau / dt * n,
    )
    weight = f32(4, 6)
    model = ep.from_nir(nir.NIRGraph({0: nir.Linear(weight), 1: cuba}, [(0, 1)]))
    assert model.layers[0].theta == pytest.approx(np.full(4, 0.125))
    assert np.array_equal(model.stem[0].weight.detach(), weight)
    assert model.stem[0].bias is None


def test_gains_of_leaky_neurons():
    """r is the gain; where a step of 1e-4, or of `dt`, adds the input itself, it is 1."""
    n = np.ones(3, dtype=np.float32)
    weight = nir.Affine(f32(3, 4), f32(3))

    def theta(tau, r, **options):
        lif = nir.LIF(tau=tau * n, r=r * n, v_leak=0.5 * n, v_threshold=2 * n)
        return ep.from_nir(chain(weight, lif), **options).layers[0].theta.unique().item()

    assert theta(0.02, 1) == 1.5
    assert theta(0.02, 3) == 0.5
    assert theta(0.02, 200) == 1.5
    assert theta(0.02, 20) == pytest.approx(0.075)
    assert theta(0.02, 20, dt=1e-3) == 1.5
    assert theta(0.02, 20 * np.exp(-0.05), dt=1e-3) == pytest.approx(1.5 * np.exp(0.05))  # as Rockpool writes it
    strong = nir.IF(r=4 * n, v_threshold=2 * n, v_reset=-n)
    assert ep.from_nir(chain(weight, strong)).layers[0].theta.unique().item() == 0.75


def test_thresholds_keep_their_bits_one_a_neuron():
    threshold = np.random.default_rng(0).uniform(0.1, 2, 50).astype(np.float32)
    graph = chain(nir.Affine(f32(50, 4), f32(50)), nir.IF(np.ones_like(threshold), threshold), nir.Linear(f32(2, 50)))
    again = ep.to_nir(ep.from_nir(graph))
    assert np.array_equal(again.nodes["layer_0"].v_threshold, threshold)
    for name, node in (("input_stem", "affine"), ("readout", "linear")):
        assert np.array_equal(again.nodes[name].weight, graph.nodes[node].weight)


def neurons(n):
    return nir.IF(np.ones(n), np.ones(n))


@pytest.mark.parametrize(
    ("node", "function"),
    [
        (nir.LI(np.ones(3), 2 * np.ones(3), np.zeros(3)), lambda rate: 2 * rate),
        (nir.LI(np.ones(3), np.ones(3), np.array([0.1, 0, -2])), lambda rate: rate + torch.tensor([0.1, 0, -2])),
        (nir.LI(1e-3 * np.ones(3), 10 * np.ones(3), np.zeros(3)), lambda rate: rate),
        (nir.CubaLI(np.ones(3), np.ones(3), 2 * np.ones(3), np.ones(3), 3.0), lambda rate: 6 * rate + 1),
        (nir.I(np.array([1.0, 2, 3])), lambda rate: torch.tensor([1.0, 2, 3]) * rate),
        (nir.Scale(np.array([1.0, -2, 3])), lambda rate: torch.tensor([1.0, -2, 3]) * rate),
    ],
    ids=["LI", "rest", "step", "CubaLI", "I", "Scale"],
)
def test_what_reads_the_last_neurons(node, function):
    weight = nir.Affine(f32(3, 4), f32(3))
    x = torch.rand(5, 4)
    rate, _ = settled(ep.from_nir(chain(weight, neurons(3))), x)
    torch.testing.assert_close(settled(ep.from_nir(chain(weight, neurons(3), node)), x)[0], function(rate))


def test_membranes_and_scales_between_neurons_train():
    first, second = nir.Affine(f32(3, 4), f32(3) + 0.3), nir.Affine(f32(3, 3), f32(3) + 0.3)
    scale = nir.Scale(np.array([0.5, 1.5, 2], dtype=np.float32))
    membrane = nir.LI(np.ones(3), 2 * np.ones(3), 0.1 * np.ones(3))
    graph = chain(first, neurons(3), scale, second, membrane, neurons(3), nir.Linear(f32(2, 3)))
    x, gradients = torch.rand(6, 4), []
    for estimator in (ep.EquilibriumPropagation(), ep.ImplicitDifferentiation()):
        model = ep.from_nir(graph, estimator=estimator, encoder="graded", relaxation=ep.Relaxation(100))
        model(x).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999
    assert any(p.shape == (3,) and torch.equal(p, torch.tensor(scale.scale)) for p in model.parameters())


def test_subgraphs_are_unfolded_and_sums_are_sums():
    inner = nir.NIRGraph(
        {"input": nir.Input([3]), "a": nir.Linear(f32(3, 3)), "lif": neurons(3), "output": nir.Output([3])},
        [("input", "a"), ("a", "lif"), ("lif", "output")],
    )
    outer = nir.NIRGraph(
        {"input": nir.Input([3]), "block": inner, "output": nir.Output([3])},
        [("input", "block"), ("block", "output")],
    )
    head, skip, first = nir.Affine(f32(2, 3), f32(2)), nir.Linear(f32(3, 3)), nir.Affine(f32(3, 4), f32(3))
    nodes = {"input": nir.Input([4]), "fc": first, "lif": neurons(3), "deep": outer, "skip": skip, "last": neurons(3)}
    nodes |= {"head": head, "output": nir.Output([2])}
    edges = [("input", "fc"), ("fc", "lif"), ("lif", "deep"), ("deep", "last"), ("lif", "skip"), ("skip", "last")]
    graph = nir.NIRGraph(nodes, [*edges, ("last", "head"), ("head", "output")])

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.skip, self.a, self.head = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
            for own, node in ((self.fc, first), (self.skip, skip), (self.a, inner.nodes["a"]), (self.head, head)):
                own.weight.data = torch.tensor(node.weight)
                own.bias.data = torch.tensor(getattr(node, "bias", np.zeros(len(own.weight), dtype=np.float32)))
            self.one, self.two, self.three = (snn.Leaky(1.0, init_hidden=True) for _ in range(3))

        def forward(self, x):
            one = self.one(self.fc(x))
            return self.head(self.three(self.two(self.a(one)) + self.skip(one)))

    x = torch.rand(5, 4)
    torch.testing.assert_close(settled(ep.from_nir(graph), x)[0], settled(ep.convert(Net()), x)[0])
    assert {"fc", "deep_block_a", "deep_block_lif"} <= dict(as_module(graph).named_children()).keys()


def test_the_net_in_between_converts_to_the_same():
    model, shape = NETWORKS["perceptron"]()
    graph = ep.to_nir(model, shape)
    net = as_module(graph)
    assert "self.layer_0_connection_0" in net.code
    assert not any("feedback" in name for name, _ in net.named_modules())
    x = torch.rand(3, *shape)
    expected, _ = settled(ep.from_nir(graph, feedback=0.1), x)
    torch.testing.assert_close(settled(ep.convert(net, feedback=0.1), x)[0], expected)


def test_one_of_several_outputs():
    nodes = {"input": nir.Input([4]), "fc": nir.Affine(f32(3, 4), f32(3)), "lif": neurons(3)}
    nodes |= {
        "a": nir.Linear(f32(2, 3)),
        "b": nir.Linear(f32(5, 3)),
        "out_a": nir.Output([2]),
        "out_b": nir.Output([5]),
    }
    edges = [("input", "fc"), ("fc", "lif"), ("lif", "a"), ("lif", "b"), ("a", "out_a"), ("b", "out_b")]
    graph = nir.NIRGraph(nodes, edges)
    assert ep.from_nir(graph, output="out_b")(torch.rand(2, 4)).shape == (2, 5)
    for output in (None, "out_c"):
        with pytest.raises(ValueError, match=rf"output is {output!r} and .*'out_a', 'out_b'; expected one of them"):
            ep.from_nir(graph, output=output)


def test_what_is_not_kept_is_told_once_where_the_user_called():
    lif = nir.LIF(tau=np.ones(3), r=np.ones(3), v_leak=np.zeros(3), v_threshold=np.ones(3))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        ep.from_nir(chain(nir.Linear(f32(3, 4)), lif, nir.Linear(f32(2, 3))))
        ep.from_nir(chain(nir.Linear(f32(3, 4)), neurons(3), nir.Linear(f32(2, 3))))
    (one,) = told
    assert one.filename == __file__
    assert "converted: the neurons lif keep their weights and thresholds, and not their leaks" in str(one.message)


WEIGHT = nir.Affine(np.ones((3, 4)), np.ones(3))
SQUARE = nir.Linear(np.arange(9.0).reshape(3, 3))


def graph_of(edges, **nodes):
    nodes = {"input": nir.Input([4]), "fc": WEIGHT, "lif": neurons(3), "output": nir.Output([3]), **nodes}
    return nir.NIRGraph(nodes, [("input", "fc"), ("fc", "lif"), *edges], type_check=False)


class Strange(nir.NIRNode):
    def __init__(self):
        self.input_type, self.output_type = {"input": np.array([3])}, {"output": np.array([3])}


TWO = {"up": SQUARE, "two": neurons(3)}
THERE = [("lif", "up"), ("up", "two"), ("two", "output")]
HALF, ZERO = nir.Linear(SQUARE.weight.T / 2), np.zeros(3)
REFUSED = {
    "delay": (chain(WEIGHT, neurons(3), nir.Delay(np.ones(3))), r"node 'delay' \(Delay\).*Leave it out"),
    "threshold": (chain(WEIGHT, nir.Threshold(np.ones(3)), neurons(3)), r"'threshold' \(Threshold\).*no slope.*IF"),
    "integrator": (chain(WEIGHT, nir.I(np.ones(3)), neurons(3)), r"'i' \(I\).*never settles.*LI node"),
    "unknown": (chain(WEIGHT, neurons(3), Strange()), r"'strange' \(Strange\).*not known. Expected IF, LIF"),
    "no neuron": (chain(WEIGHT), "the model has no neuron"),
    "firing at rest": (chain(WEIGHT, nir.IF(np.ones(3), np.eye(3)[0])), r"'if' \(IF\).*v_threshold - v_reset is 0"),
    "no gain": (chain(WEIGHT, nir.IF(-2 * np.ones(3), np.ones(3))), r"'if' \(IF\).*gain .* is -2; expected finite"),
    "no leak": (
        chain(WEIGHT, nir.LIF(tau=np.full(3, np.inf), r=np.full(3, np.inf), v_leak=ZERO, v_threshold=np.ones(3))),
        r"'lif' \(LIF\).*gain .* is inf; expected finite",
    ),
    "strides": (
        chain(nir.Conv2d(None, np.ones((2, 1, 3, 3)), 2, "same", 1, 1, np.ones(2)), shape=(1, 8, 8)),
        r"'conv2d' \(Conv2d\).*padding='same' is not supported for strided",
    ),
    "bias": (
        chain(nir.Conv2d(None, np.ones((2, 1, 3, 3)), 1, 0, 1, 1, np.ones(3)), shape=(1, 8, 8)),
        r"'conv2d' \(Conv2d\).*its bias has the shape \[3\]; expected \[2\]",
    ),
    "axes": (chain(nir.Linear(np.ones((2, 3, 4)))), r"'linear' \(Linear\).*weight has the shape \[2, 3, 4\]"),
    "a loop": (
        graph_of([*THERE, ("two", "down"), ("down", "lif")], **TWO, down=nir.Linear(SQUARE.weight.T + np.eye(3))),
        r"leads back by lif -> up -> two -> down -> lif.*no feedback that an energy has.*Leave the way back out",
    ),
    "a strong way back": (
        graph_of([*THERE, ("two", "down"), ("down", "lif")], **TWO, down=nir.Linear(2 * SQUARE.weight.T)),
        r"leads back by lif -> up -> two -> down -> lif",
    ),
    "a way back with a bias": (
        graph_of([*THERE, ("two", "down"), ("down", "lif")], **TWO, down=nir.Affine(HALF.weight, np.ones(3))),
        r"leads back by lif -> up -> two -> down -> lif",
    ),
    "two ways to itself": (
        graph_of([("lif", "a"), ("a", "lif"), ("lif", "b"), ("b", "lif"), ("lif", "output")], a=SQUARE, b=SQUARE),
        r"node 'lif' \(IF\) has two ways back to itself, through 'a' and 'b'.*add them up",
    ),
    "itself without weights": (graph_of([("lif", "lif"), ("lif", "output")]), "leads back by lif -> lif"),
    "a delayed way back": (
        graph_of([("lif", "d"), ("d", "lif"), ("lif", "output")], d=nir.Delay(np.ones(3))),
        r"node 'd' \(Delay\) cannot be converted",
    ),
    "some have feedback": (
        graph_of(
            [*THERE[:2], ("two", "down"), ("down", "lif"), ("two", "on"), ("on", "three"), ("three", "output")],
            **TWO, down=HALF, on=nir.Linear(np.eye(3)), three=neurons(3),
        ),
        r"1 of 2 connections between neurons have a feedback.*from_nir\(graph, feedback=0.02\)",
    ),
    "feedback of several strengths": (
        graph_of(
            [*THERE, ("two", "down"), ("down", "lif"), ("lif", "b"), ("b", "two"), ("two", "c"), ("c", "lif")],
            **TWO, down=HALF, b=nir.Linear(np.eye(3)), c=nir.Linear(0.25 * np.eye(3)),
        ),
        r"the feedback of 'lif' -> 'two' is 0\.\d+ times.*one strength between two levels",
    ),
    "two inputs": (
        graph_of([("lif", "output"), ("other", "fc")], other=nir.Input([4])),
        r"2 Input nodes \(input, other\); expected one",
    ),
    "nothing received": (
        graph_of([("lif", "output"), ("alone", "lif")], alone=SQUARE), r"node 'alone' \(Linear\) receives nothing"
    ),
    "no way": (graph_of([]), "no way leads from 'input' to 'output'"),
    "no such node": (graph_of([("lif", "there")]), "the edge 'lif' -> 'there' names 'there', which is no node"),
    "no output": (nir.NIRGraph({"input": nir.Input([4])}, [], type_check=False), "has the Output nodes none"),
    "doors": (
        graph_of(
            [("lif", "sub"), ("sub", "output")],
            sub=nir.NIRGraph(
                {"a": nir.Input([3]), "b": nir.Input([3]), "lif": neurons(3), "out": nir.Output([3])},
                [("a", "lif"), ("b", "lif"), ("lif", "out")],
            ),
        ),
        "the subgraph 'sub' has 2 Input nodes; expected one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    graph, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        ep.from_nir(graph)
    assert "\n" not in str(caught.value)


def test_the_way_out_of_feedback_that_does_not_fit():
    for case in ("some have feedback", "feedback of several strengths"):
        assert ep.from_nir(REFUSED[case][0], feedback=0.02).feedback == 0.02


def test_files_that_are_none(tmp_path):
    (tmp_path / "text.nir").write_text("no graph")
    for path, message in (("none.nir", "there is no file .*none.nir"), ("text.nir", "cannot read .*text.nir: ")):
        with pytest.raises(ValueError, match=f"{message}.*expected .* that nir.write has written") as caught:
            ep.from_nir(tmp_path / path)
        assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match=r"from_nir was given a Linear; expected a nir.NIRGraph, or the path"):
        ep.from_nir(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="dt is -1"):
        ep.from_nir(chain(WEIGHT, neurons(3)), dt=-1)
    with pytest.raises(TypeError, match="feedbak"):
        ep.from_nir(chain(WEIGHT, neurons(3)), feedbak=1)
