"""The NIR graph without the feedback is the plain net that `to_snntorch` writes out."""

import nir
import numpy as np
import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from test_nir import order
from torch import nn
from torch.nn.utils import prune

import ep_plugin as ep
from ep_plugin.models import StandardizedWeight, convolutional_2c2fc, residual

STEPS = 12


def leaky():
    return snn.Leaky(beta=0.5)


def perceptron():
    net = nn.Sequential(nn.Linear(12, 9), snn.Leaky(beta=0.5, threshold=0.8), nn.Linear(9, 7), leaky(), nn.Linear(7, 5))
    return ep.initialize_(net, 2.0), (12,)


def images():
    """Normalized pixels, strides, groups, dilation, padding on both sides, a sum over a window, batch norm, no bias."""
    net = nn.Sequential(
        *(nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3, stride=2, padding=1), leaky()),
        *(nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2, bias=False), nn.BatchNorm2d(6)),
        *(nn.AvgPool2d(3, stride=2, padding=1), leaky()),
        *(nn.AvgPool2d(2, divisor_override=1), nn.Flatten(), nn.Linear(12, 5), leaky(), nn.Dropout(), nn.Linear(5, 3)),
    )
    for norm in (net[0], net[4]):
        nn.init.uniform_(norm.running_mean, -0.3, 0.3)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.uniform_(norm.bias, -0.3, 0.3)
    return ep.initialize_(net, 2.0), (2, 16, 12)


def standardized():
    net = nn.Sequential(nn.Conv1d(2, 3, 3), leaky(), nn.Flatten(), nn.Linear(18, 4), leaky())
    nn.utils.parametrize.register_parametrization(net[3], "weight", StandardizedWeight(4, 2.0))
    return net, (2, 8)


NETS = {
    "perceptron": perceptron,
    "images": images,
    "standardized": standardized,
    "2c2fc": lambda: (ep.initialize_(convolutional_2c2fc([3, 4], 6, normalize=[0.1, 0.3]), 4.0), (1, 28, 28)),
    "skips": lambda: (residual((1, 16, 16), [4, 4, 6], pooling="average"), (1, 16, 16)),
}


def uncharged(model, steps):
    """`to_snntorch`'s net, whose membranes start at 0 as those of a graph do."""
    net = ep.to_snntorch(model, steps)
    for node in list(net.graph.nodes):
        if node.target is torch.ones_like:
            node.target = torch.zeros_like
    net.recompile()
    return net


def apply(node, x):
    """What NIR says that a node does to an input `[1, ...]`."""
    t = {name: torch.from_numpy(v) for name, v in vars(node).items() if isinstance(v, np.ndarray)}
    if isinstance(node, nir.Affine):
        return F.linear(x, t["weight"], t["bias"])
    if isinstance(node, (nir.Conv1d, nir.Conv2d)):
        function = F.conv1d if isinstance(node, nir.Conv1d) else F.conv2d
        options = [np.asarray(o).tolist() for o in (node.stride, node.padding, node.dilation, node.groups)]
        return function(x, t["weight"], t["bias"], *options)
    if isinstance(node, (nir.AvgPool2d, nir.SumPool2d)):
        sizes = [tuple(t[name].tolist()) for name in ("kernel_size", "stride", "padding")]
        return F.avg_pool2d(x, *sizes, divisor_override=1 if isinstance(node, nir.SumPool2d) else None)
    assert isinstance(node, nir.Flatten)
    return x.flatten(node.start_dim + 1, node.end_dim)


def run(graph, x):
    """The mean of the output over the steps."""
    membranes, total = {}, 0.0
    for _ in range(STEPS):
        sent = {"input": x}
        for name in order(graph)[1:]:
            pending = [a for a, b in graph.edges if b == name]
            received = sum(sent[a] for a in pending)
            node = graph.nodes[name]
            if isinstance(node, nir.IF):
                threshold = torch.from_numpy(node.v_threshold)
                membrane = membranes.get(name, 0.0) + received
                sent[name] = (membrane > threshold).float()
                membranes[name] = membrane - sent[name] * threshold
            else:
                sent[name] = received if isinstance(node, nir.Output) else apply(node, received)
        total = total + sent["output"]
    return total / STEPS


def written(name, tmp_path):
    torch.manual_seed(0)
    net, shape = NETS[name]()
    model = ep.convert(net).eval()
    nir.write(tmp_path / "net.nir", ep.to_nir(model, shape, feedback=False))
    return model, nir.read(tmp_path / "net.nir"), torch.rand(1, *shape)


@pytest.mark.parametrize("name", [n for n in NETS if n != "skips"])
def test_the_graph_runs_as_the_plain_net(name, tmp_path):
    model, graph, x = written(name, tmp_path)
    expected = uncharged(model, STEPS)(x)
    torch.testing.assert_close(run(graph, x), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0


@pytest.mark.parametrize("name", NETS)
def test_read_back_it_is_the_same_network(name, tmp_path):
    model, graph, x = written(name, tmp_path)
    again = ep.from_nir(graph).eval()
    torch.testing.assert_close(again(x), model(x), rtol=1e-4, atol=1e-4)


def test_weights_and_thresholds_keep_their_bits(tmp_path):
    model, graph, _ = written("2c2fc", tmp_path)
    convolution = model.connections[0].module[0]
    assert np.array_equal(graph.nodes["layer_0_connection_0_0_conv2d"].weight, convolution.weight.detach().numpy())
    assert graph.nodes["layer_0"].v_threshold.shape == (3, 12, 12)


def test_snntorch_runs_it(tmp_path):
    """One image without a batch, since a graph's Flatten counts no batch."""
    from snntorch.import_nir import import_from_nir

    model, graph, x = written("2c2fc", tmp_path)
    net = import_from_nir(graph)
    for module in net.modules():
        if isinstance(module, snn.Leaky):
            module.init_hidden, module.beta, module.reset_delay = True, torch.tensor(1.0), True
            module.reset_mem()
    state, total = None, 0.0
    for _ in range(STEPS):
        output, state = net(x[0], state)
        total = total + output
    torch.testing.assert_close(total / STEPS, uncharged(model, STEPS)(x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("net", "shape", "said"),
    [
        (nn.Sequential(nn.Linear(4, 3), snn.RLeaky(0.9, linear_features=3)), (4,), "layers stand on one level"),
        (
            nn.Sequential(nn.Conv2d(1, 2, 3, padding_mode="reflect", padding=1), leaky()),
            (1, 5, 5),
            r"the stem cannot be written without the feedback: NIR has no node for Conv2d.*feedback=True",
        ),
        (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(2, padding=1, count_include_pad=False), leaky()),
            (1, 5, 5),
            "NIR has no node for AvgPool2d",
        ),
        *(
            (
                nn.Sequential(nn.Conv2d(1, 2, 3), kind, nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(18, 4), leaky()),
                (1, 5, 5),
                f"NIR has no node for {type(kind).__name__}",
            )
            for kind in (nn.ReLU(), nn.LeakyReLU(), nn.Hardtanh(-50, 50))
        ),
    ],
)
def test_refusals(net, shape, said):
    with pytest.raises(ValueError, match=said):
        ep.to_nir(ep.convert(net), shape, feedback=False)


def test_feedback_is_true_or_false():
    with pytest.raises(TypeError, match=r"feedback is 0\.5; expected True or False"):
        ep.to_nir(ep.convert(perceptron()[0]), feedback=0.5)


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("at", [0, 2, 4])
def test_pruned_weights_are_written_as_they_are(at, feedback):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), snn.Leaky(0.9), nn.Linear(6, 5), snn.Leaky(0.9), nn.Linear(5, 3))
    prune.l1_unstructured(net[at], "weight", 0.5)
    graph, x = ep.to_nir(ep.convert(net).eval(), (8,), feedback=feedback), torch.rand(4, 8)
    expected = ep.convert(net, encoder="graded").eval()(x)
    torch.testing.assert_close(ep.from_nir(graph, encoder="graded").eval()(x), expected)
