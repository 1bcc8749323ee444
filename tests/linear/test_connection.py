"""Every map: affine as the module, linear without its offset, the exact adjoint, and autograd's own gradients.

Adjoints: |<Ku, v> - <u, K'v>| <= 1e-12 (|Ku||v| + |u||K'v|).
"""

import pytest
import torch
from cases import CASES, ints, of_dimension, placed, trained_norm
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ep_plugin import ConvergentNetwork, Layer, Relaxation
from ep_plugin.chips import ReadNoise, SeparateFeedback
from ep_plugin.linear.base import REGISTRY
from ep_plugin.linear.connection import Connection, evaluate
from ep_plugin.linear.modules import FixedNormalization, SharedDropout, SteadyMembrane

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def bound_to(connection, x, dtype=None):
    return connection.bound(connection.tensors(), x.shape[1:], dtype)


def near(connection, x):
    """The connection with its weights; where it is affine only near a state, near `x`."""
    bound = bound_to(connection, x)
    return bound if bound.is_linear else bound.at(x)[0]


def assert_adjoint(bound, x):
    u = torch.randn_like(x)
    ku = bound.linear(u)
    v = torch.randn_like(ku)
    kv = bound.adjoint(v)
    assert kv.shape == u.shape
    error = ((ku * v).sum() - (u * kv).sum()).abs()
    assert error <= 1e-12 * (ku.norm() * v.norm() + u.norm() * kv.norm())


def assert_affine(module, x):
    """Plain, prepared and folded it is what the module does; `linear` is that without the offset."""
    kept = x.clone()
    expected = module(x.clone())  # some modules write into their input
    connection = Connection(module, 0, 1)
    assert tuple(connection.shapes(x.shape[1:])[-1]) == expected.shape[1:]
    for bound in (bound_to(connection, x), bound_to(connection, x, torch.float64)):
        assert bound.shape == expected.shape[1:]
        torch.testing.assert_close(bound.affine(x), expected, **CLOSE)
        if not bound.is_linear:
            bound, value = bound.at(x)
            torch.testing.assert_close(value, expected, **CLOSE)
            torch.testing.assert_close(bound.affine(x), expected, **CLOSE)
        u = torch.randn_like(x)
        torch.testing.assert_close(bound.linear(u), bound.affine(u) - bound.affine(torch.zeros_like(u)), **CLOSE)
        assert_adjoint(bound, x)
    torch.testing.assert_close(evaluate(module, x), expected, **CLOSE)
    assert torch.equal(x, kept)


def assert_adjoint_is_autograd(module, x):
    """At the point itself: what autograd sends back through the module there."""
    point = x.detach().clone().requires_grad_()
    expected = module(point * 1)  # not a leaf, as some modules write into their input
    y = torch.randn_like(expected)
    (back,) = torch.autograd.grad(expected, point, y)
    with torch.no_grad():
        torch.testing.assert_close(near(Connection(module, 0, 1), x).adjoint(y), back, **CLOSE)


def assert_pullback(module, x):
    """<y, A(x)> and <y, K u>: the gradient of every parameter, through folding, tying and normalizing."""
    connection = Connection(module, 0, 1)
    tensors = connection.tensors()
    with torch.no_grad():
        bound = near(connection, x)
    u = torch.randn_like(x)
    y = torch.randn_like(module(x.clone()))
    parameters = [p for p in module.parameters() if p.requires_grad]
    learned = [k for k, t in enumerate(tensors) if t.requires_grad]
    if not parameters:
        assert not learned
    wanted = {True: (y * module(x.clone())).sum()}
    if bound.is_linear:
        wanted[False] = (y * (module(u.clone()) - module(torch.zeros_like(u)))).sum()
    else:  # by the definition: the difference of two affine values, under these winners
        pinned = connection.bound(tensors, x.shape[1:]).pinned(bound)
        wanted[False] = (y * (pinned.affine(u) - pinned.affine(torch.zeros_like(u)))).sum()
    for offset, product in wanted.items():
        with torch.no_grad():
            found = bound.pullback(x if offset else u, y, offset)
        assert len(found) in (0, len(tensors))
        if not parameters:
            continue
        expected = torch.autograd.grad(product, parameters, retain_graph=True, allow_unused=True)
        pairs = [(tensors[k], found[k]) for k in learned if found[k] is not None]
        through = torch.autograd.grad(
            [t for t, _ in pairs], parameters, [g for _, g in pairs], retain_graph=True, allow_unused=True
        )
        for a, b, p in zip(through, expected, parameters, strict=True):
            torch.testing.assert_close(torch.zeros_like(p) if a is None else a, torch.zeros_like(p) if b is None else b)


def assert_all(module, shape, batch=2):
    module, x = module.double(), torch.randn(batch, *shape, dtype=torch.float64)
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert_affine(module, x)
    assert_adjoint_is_autograd(module, x)
    assert_pullback(module, x)


NO_ADJOINT = {SeparateFeedback, ReadNoise}  # by intention; tests/chips has what they are
KINDS = [
    kind
    for kind in REGISTRY
    if kind.__module__.startswith(("torch.", "snntorch.", "ep_plugin.")) and kind not in NO_ADJOINT
]


def test_every_registered_module_has_a_case():
    assert CASES.keys() == set(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"{k.__module__.split('.')[-1]}.{k.__name__}")
def test_every_map_is_what_its_module_is(kind):
    @settings(max_examples=20, deadline=None)
    @given(CASES[kind], ints(1, 3))
    def check(case, batch):
        assert_all(*case, batch)

    check()


@settings(max_examples=40, deadline=None)
@given(
    ints(1, 5), ints(1, 2), ints(0, 2), ints(1, 2), ints(1, 3), ints(1, 3), st.sampled_from([None, 3]),
    ints(9, 14), ints(9, 14), st.booleans(), st.sampled_from([1, 2]),
)  # fmt: skip
def test_folded_pool_is_exact(kernel, stride, padding, groups, pool, pool_stride, divisor, h, w, bias, dim):
    convolution = of_dimension("Conv", dim)(2 * groups, 4, kernel, stride, padding, groups=groups, bias=bias)
    average = nn.AvgPool2d(pool, pool_stride, divisor_override=divisor) if dim == 2 else nn.AvgPool1d(pool, pool_stride)
    module = nn.Sequential(convolution, average)
    x = torch.randn(2, 2 * groups, *(h, w)[:dim])
    try:
        module(x)
    except RuntimeError:
        return  # the pool is larger than what it pools
    assert len(bound_to(Connection(module, 0, 1), x).parts) == 1
    assert_all(module, x.shape[1:])


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("pool", [True, False])
def test_normalization_folds_into_the_convolution(dim, bias, pool):
    """The affine map of the running statistics, also in training, and the same gradients."""
    if pool and dim == 3:
        pytest.skip("three-dimensional pooling is not folded")
    convolution = of_dimension("Conv", dim)(2, 3, 3, bias=bias)
    after = [of_dimension("AvgPool", dim)(2)] if pool else []
    norm = trained_norm(dim)
    original = nn.Sequential(convolution, norm, *after).double().eval()
    x = torch.randn(4, 2, *[8, 7, 6][:dim], dtype=torch.float64)
    g = torch.randn_like(expected := original(x))
    module = nn.Sequential(convolution, FixedNormalization(norm), *after).train()
    connection = Connection(module, 0, 1)
    bound = bound_to(connection, x)
    assert len(bound.parts) == 1
    found = bound.affine(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    parameters = list(original.parameters())
    for a, b in zip(*(torch.autograd.grad(y, parameters, g) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert_all(module, x.shape[1:])


COMPOSITIONS = {
    "weight norm": lambda: (nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), [4]),
    "orthogonal convolution": lambda: (nn.utils.parametrizations.orthogonal(nn.Conv2d(2, 3, 3)), [2, 5, 6]),
    "weight norm by hooks": lambda: (_hooked(nn.Linear(4, 3)), [4]),
    "nested": lambda: (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.Sequential(nn.AvgPool2d(2), nn.Flatten()), nn.Linear(12, 4)),
        [2, 6, 7],
    ),
    "max pool": lambda: (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)),
        [2, 6, 7],
    ),
    "pieces": lambda: (
        nn.Sequential(
            *(nn.Conv2d(2, 3, 3), nn.LeakyReLU(0.3, inplace=True), nn.MaxPool2d(3, 2, padding=1), nn.Conv2d(3, 4, 2)),
            *(nn.ReLU6(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 3), nn.Hardtanh(-0.5, 0.5)),
        ),
        [2, 8, 7],
    ),
    "what is differentiated between what is not": lambda: (
        nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReflectionPad1d(2), FixedNormalization(trained_norm(1)), nn.Flatten(),
                      nn.Linear(24, 4)),
        [2, 6],
    ),
    "a part before a convolution": lambda: (
        nn.Sequential(placed(1, 1, (2, 6, 7), (3, 6, 7), (1, 6, 7)), nn.Conv2d(6, 4, 3),
                      FixedNormalization(trained_norm(2, 4)), nn.AvgPool2d(2)),
        [3, 6, 7],
    ),
    "a part before a strided convolution": lambda: (
        nn.Sequential(placed(0, -2, (2, 6), (3, 6)), nn.Conv1d(5, 4, 3, stride=2, bias=False)), [2, 6]
    ),
    "a part before a grouped convolution": lambda: (
        nn.Sequential(placed(0, 1, (2, 6), (2, 6)), nn.Conv1d(4, 4, 3, groups=2)), [2, 6]
    ),
    "a part before a linear module": lambda: (nn.Sequential(placed(1, 1, (2,), (3,)), nn.Linear(5, 4)), [3]),
    "a part before a linear module on another axis": lambda: (
        nn.Sequential(placed(1, 1, (2, 5), (3, 5)), nn.Linear(5, 4)), [3, 5]
    ),
    "the whole before a linear module": lambda: (nn.Sequential(placed(0, 1, (3,)), nn.Linear(3, 4)), [3]),
    "a dilated convolution before a pool": lambda: (
        nn.Sequential(nn.Conv2d(2, 3, 2, dilation=(1, 2)), nn.AvgPool2d(2)), [2, 6, 7]
    ),
    "a convolution before a pool that hangs over the border": lambda: (
        nn.Sequential(nn.Conv2d(2, 3, 2), nn.AvgPool2d(2, ceil_mode=True)), [2, 6, 7]
    ),
    "a part along a place before a convolution": lambda: (
        nn.Sequential(placed(1, -1, (2, 3), (2, 4)), nn.Conv1d(2, 4, 3)), [2, 4]
    ),
    "no tensor before the pool": lambda: (nn.Sequential(nn.MaxPool1d(2), nn.Conv1d(2, 3, 2)), [2, 8]),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("make", COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_compositions(make):
    assert_all(*make(), 3)


def _hooked(module):
    return nn.utils.weight_norm(module)


@pytest.mark.parametrize("case", ["a part before a convolution", "a part before a linear module"])
def test_a_part_meets_its_slice_of_the_weight_alone(case):
    """Not the whole weight and zeros."""
    module, shape = COMPOSITIONS[case]()
    bound = bound_to(Connection(module, 0, 1), torch.rand(1, *shape), torch.float32)
    assert len(bound.parts) == 1
    assert bound.parts[0].tensors[0].shape[1] == 3


def test_winners_stay_those_of_their_point():
    """A pinned pool is one linear map: it does not look at what it is given."""
    connection = Connection(nn.MaxPool1d(2), 0, 1)
    x = torch.tensor([[[0.2, 0.7, 0.9, 0.1]]])
    bound, value = bound_to(connection, x).at(x)
    assert torch.equal(value, torch.tensor([[[0.7, 0.9]]]))
    other = torch.tensor([[[5.0, 1.0, 2.0, 3.0]]])
    assert torch.equal(bound.affine(other), torch.tensor([[[1.0, 2.0]]]))
    assert torch.equal(bound.adjoint(torch.tensor([[[1.0, 2.0]]])), torch.tensor([[[0.0, 1.0, 2.0, 0.0]]]))
    twice = bound.repeated(2)
    assert torch.equal(twice.affine(torch.cat([other, x])), torch.tensor([[[1.0, 2.0]], [[0.7, 0.9]]]))


def test_hooks_of_a_stem_still_run():
    calls = []
    stem = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(2))
    for module in (stem, stem[0]):
        handle = module.register_forward_hook(lambda *_: calls.append(1))
        evaluate(stem, torch.rand(1, 1, 8, 8))
        handle.remove()
    assert len(calls) == 2


@pytest.mark.parametrize(("dropout", "varies"), [(nn.Dropout(0.2), 400), (nn.Dropout2d(0.5), 16)])
def test_one_mask_for_all_samples(dropout, varies):
    """Drawn with the weights: zeros and 1 / (1 - p), the same for every call with these weights."""
    connection = Connection(nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), SharedDropout(dropout)).double(), 0, 1)
    x = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    tensors = connection.tensors(x.shape[1:])
    mask = tensors[-1]
    assert mask.numel() == varies
    assert set(mask.unique().tolist()) == {0.0, 1 / (1 - dropout.p)}
    bound = connection.bound(tensors, x.shape[1:])
    torch.testing.assert_close(bound.affine(x), bound_to(connection, x).affine(x) * mask)
    assert_adjoint(bound, x)
    y = torch.randn_like(bound.affine(x))
    weight, bias, nothing = bound.pullback(x, y)
    assert nothing is None
    expected = torch.autograd.grad((y * bound.affine(x)).sum(), tensors[:2])
    torch.testing.assert_close((weight, bias), expected)
    assert not torch.equal(connection.tensors(x.shape[1:])[-1], mask)
    connection.eval()
    assert torch.equal(connection.tensors(x.shape[1:])[-1], torch.ones((), dtype=torch.float64))


def test_half_precision_around_a_module_that_is_differentiated():
    """What has no entry computes in float32 between products in bfloat16."""
    module = nn.Sequential(nn.ConvTranspose2d(2, 3, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 4))
    connection = Connection(module, 0, 1)
    x, y = torch.rand(3, 2, 4, 4), torch.rand(3, 4)
    half, plain = bound_to(connection, x, torch.bfloat16), bound_to(connection, x)
    up, down = half.affine(x), half.adjoint(y)
    assert (up.dtype, down.dtype) == (torch.bfloat16, torch.bfloat16)
    torch.testing.assert_close(up.float(), module(x), rtol=0.05, atol=0.05)
    torch.testing.assert_close(down.float(), plain.adjoint(y), rtol=0.05, atol=0.05)


def test_a_steady_membrane_is_a_gain_times_its_input_and_an_offset():
    membrane = SteadyMembrane(lambda a, b: a / b, {"a": torch.tensor(3.0), "b": torch.tensor(2.0)}, torch.tensor(0.25))
    assert torch.equal(membrane(torch.tensor([2.0, -1.0])), torch.tensor([3.25, -1.25]))


def test_max_pooling_of_windows_without_an_entry_is_told():
    pool = nn.MaxPool2d(2, padding=1, dilation=2)
    with pytest.raises(RuntimeError, match=r"MaxPool2d.* has windows without an entry; give less padding or dilation"):
        Connection(pool, 0, 1).shapes((3, 1, 2))
    assert Connection(nn.MaxPool2d(2, padding=1), 0, 1).shapes((3, 1, 2))[-1] == (3, 1, 2)


def test_winners_before_negative_weights_take_turns():
    """A winner pushes itself below its neighbour, for ever (`Relaxation` says so)."""
    pooled = nn.Sequential(nn.MaxPool1d(2), nn.Conv1d(1, 1, 1))
    stem = nn.Conv1d(1, 1, 1)
    for parameter, value in zip((*stem.parameters(), *pooled.parameters()), (1.0, 0.0, -1.0, 1.0), strict=True):
        nn.init.constant_(parameter, value)
    for sign, settles in ((1.0, True), (-1.0, False)):
        nn.init.constant_(pooled[1].weight, sign)
        nn.init.constant_(pooled[1].bias, 0.5 if sign > 0 else 1.0)
        model = ConvergentNetwork(stem, [Layer(), Layer()], [Connection(pooled, 0, 1)], encoder="graded")
        residual = model.variant(relaxation=Relaxation(200)).free_phase(torch.tensor([[[0.300, 0.301]]])).residual
        assert (residual.item() < 1e-5) == settles


POOLS_WITHOUT_CHANNELS = {
    "max": (nn.MaxPool1d(2), 1),
    "padded max": (nn.MaxPool1d(3, 2, 1), 1),
    "adaptive max": (nn.AdaptiveMaxPool1d(3), 1),
    "average": (nn.AvgPool1d(2), 1),
    "adaptive average": (nn.AdaptiveAvgPool1d(3), 1),
    "max of an image": (nn.MaxPool2d(2), 2),
    "padded max of an image": (nn.MaxPool2d(3, 2, 1), 2),
    "adaptive max of an image": (nn.AdaptiveMaxPool2d(3), 2),
    "average of an image": (nn.AvgPool2d(2), 2),
    "adaptive average of an image": (nn.AdaptiveAvgPool2d(3), 2),
    "max of a volume": (nn.MaxPool3d(2), 3),
}


@pytest.mark.parametrize(("pool", "axes"), POOLS_WITHOUT_CHANNELS.values(), ids=POOLS_WITHOUT_CHANNELS)
def test_a_pool_without_channels_keeps_the_samples_apart(pool, axes, float64):
    """PyTorch takes a batch of vectors for one sample with channels."""
    x = torch.randn(3, *[6] * axes)
    connection = Connection(pool, 0, 1)
    bound = near(connection, x)
    torch.testing.assert_close(bound.affine(x), pool(x))
    assert_adjoint(bound, x)
    for i in range(3):
        one = near(connection, x[i : i + 1])
        torch.testing.assert_close(one.affine(x[i : i + 1]), pool(x)[i : i + 1])
        y = torch.randn_like(pool(x))
        torch.testing.assert_close(one.adjoint(y[i : i + 1]), bound.adjoint(y)[i : i + 1])
