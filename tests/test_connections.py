"""Adjoints: |<Ku, v> - <u, K'v>| <= 1e-12 (|Ku||v| + |u||K'v|), and folding that changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ep_plugin.connections import DIFFERENTIATED, REGISTRY, Connection, evaluate
from ep_plugin.modules import FixedNormalisation, Scale, SharedDropout

ints = st.integers


@st.composite
def convolution(draw, dim):
    groups = draw(ints(1, 2))
    padding = draw(st.sampled_from([0, 1, 2, "same", "valid"]))
    return getattr(nn, f"Conv{dim}d")(
        2 * groups,
        3 * groups,
        tuple(draw(ints(1, 4)) for _ in range(dim)),
        stride=1 if padding == "same" else tuple(draw(ints(1, 3)) for _ in range(dim)),
        padding=padding,
        dilation=draw(ints(1, 2)),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "zeros", "zeros", "circular"])),
    ), [2 * groups, *(draw(ints(7, 11)) for _ in range(dim))]


@st.composite
def average_pool(draw, dim):
    kernel = draw(ints(1, 3))
    options = {"ceil_mode": draw(st.booleans()), "count_include_pad": draw(st.booleans())}
    if dim == 2:
        options["divisor_override"] = draw(st.sampled_from([None, 3]))
    pool = getattr(nn, f"AvgPool{dim}d")(kernel, draw(ints(1, 3)), draw(ints(0, kernel // 2)), **options)
    return pool, [2, *(draw(ints(4, 9)) for _ in range(dim))]


@st.composite
def adaptive(draw, dim):
    size = tuple(draw(ints(1, 5)) for _ in range(dim))
    return getattr(nn, f"AdaptiveAvgPool{dim}d")(size), [2, *(draw(ints(4, 9)) for _ in range(dim))]


def trained_norm(dim, channels=3, affine=True):
    """A batch normalisation that has seen data."""
    norm = getattr(nn, f"BatchNorm{dim}d")(channels, affine=affine)
    nn.init.uniform_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    for p in norm.parameters():
        nn.init.uniform_(p, -1, 1)
    return norm


CASES = {
    nn.Linear: st.builds(lambda i, o, b: (nn.Linear(i, o, bias=b), [i]), ints(1, 6), ints(1, 6), st.booleans()),
    nn.Conv1d: convolution(1),
    nn.Conv2d: convolution(2),
    nn.Conv3d: convolution(3),
    nn.AvgPool1d: average_pool(1),
    nn.AvgPool2d: average_pool(2),
    nn.AdaptiveAvgPool1d: adaptive(1),
    nn.AdaptiveAvgPool2d: adaptive(2),
    nn.Flatten: st.just((nn.Flatten(), [2, 3, 4])),
    nn.Unflatten: st.just((nn.Unflatten(1, (2, 3)), [6, 4])),
    nn.Identity: st.just((nn.Identity(), [4])),
    Scale: st.just((Scale(2.5), [4])),
    FixedNormalisation: st.builds(
        lambda dim, affine, offset: (
            FixedNormalisation(trained_norm(dim, 3, affine), offset),
            [3, *[4] * (dim if dim > 1 else 0)],
        ),
        *(ints(1, 3), st.booleans(), st.booleans()),
    ),
    SharedDropout: st.just((SharedDropout(nn.Dropout()).eval(), [4])),
}


def linear_part(connection, x):
    tensors = connection.tensors()
    return connection.apply(tensors, x) - connection.apply(tensors, torch.zeros_like(x))


def assert_adjoint(connection, shape, batch=2):
    u = torch.randn(batch, *shape, dtype=torch.float64)
    ku = linear_part(connection, u)
    v = torch.randn_like(ku)
    kv = connection.adjoint(connection.tensors(), v, u)
    assert kv.shape == u.shape
    error = ((ku * v).sum() - (u * kv).sum()).abs()
    assert error <= 1e-12 * (ku.norm() * v.norm() + u.norm() * kv.norm())


def test_every_registered_module_has_a_case():
    assert CASES.keys() == REGISTRY.keys()


@pytest.mark.parametrize("kind", REGISTRY, ids=lambda k: k.__name__)
def test_adjoint(kind):
    @settings(max_examples=40, deadline=None)
    @given(CASES[kind], ints(1, 3))
    def check(case, batch):
        module, shape = case
        with torch.inference_mode():
            assert_adjoint(Connection(module.double(), 0, 1), shape, batch)
            assert_same_when_prepared(module, shape, batch)

    check()


def assert_same_when_prepared(module, shape, batch):
    """The fast paths: weights laid out once, and the stem's folding."""
    connection = Connection(module, 0, 1)
    x = torch.randn(batch, *shape, dtype=torch.float64)
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    expected = module(x)
    tensors = connection.prepared(connection.tensors(), shape, torch.float64)
    y = torch.randn_like(expected)
    plain = connection.adjoint(connection.tensors(), y, x)
    for found, wanted in (
        (connection.apply(tensors, x), expected),
        (connection.adjoint(tensors, y, x), plain),
        (evaluate(module, x), expected),
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    ints(1, 5), ints(1, 2), ints(0, 2), ints(1, 2), ints(1, 3), ints(1, 3), st.sampled_from([None, 3]),
    ints(9, 14), ints(9, 14), st.booleans(), st.sampled_from([1, 2]),
)  # fmt: skip
def test_folded_pool_is_exact(kernel, stride, padding, groups, pool, pool_stride, divisor, h, w, bias, dim):
    convolution = getattr(nn, f"Conv{dim}d")(
        2 * groups, 4, kernel, stride, padding, groups=groups, bias=bias, dtype=torch.float64
    )
    average = nn.AvgPool2d(pool, pool_stride, divisor_override=divisor) if dim == 2 else nn.AvgPool1d(pool, pool_stride)
    x = torch.randn(2, 2 * groups, *(h, w)[:dim], dtype=torch.float64)
    module = nn.Sequential(convolution, average)
    try:
        expected = module(x)
    except RuntimeError:
        return  # the pool is larger than what it pools
    connection = Connection(module, 0, 1)
    assert len(connection._maps) == 1
    torch.testing.assert_close(connection.apply(connection.tensors(), x), expected, rtol=1e-12, atol=1e-12)
    assert_adjoint(connection, x.shape[1:])
    # The parameters' gradients pass through the folding.
    g = torch.randn_like(expected)
    folded = torch.autograd.grad(connection.apply(connection.tensors(), x), [*module.parameters()], g)
    plain = torch.autograd.grad(module(x), [*module.parameters()], g)
    for a, b in zip(folded, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


DIFFERENTIATED_CASES = [
    (nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1), [2, 4, 5]),
    (nn.ZeroPad2d((1, 2, 0, 1)), [2, 4, 5]),
    (nn.ReflectionPad1d(2), [2, 6]),
    (nn.Upsample(scale_factor=2, mode="bilinear"), [2, 3, 4]),
    (nn.PixelShuffle(2), [4, 3, 3]),
    (nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), [4]),
    (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.Sequential(nn.AvgPool2d(2), nn.Flatten()), nn.Linear(12, 4)),
        [2, 6, 7],
    ),
]


@pytest.mark.parametrize(("module", "shape"), DIFFERENTIATED_CASES, ids=lambda c: type(c).__name__)
def test_adjoint_of_the_rest(module, shape):
    connection = Connection(module.double(), 0, 1)
    with torch.inference_mode():
        assert_adjoint(connection, shape)
        assert_same_when_prepared(module, shape, 3)


def test_nothing_is_both_registered_and_differentiated():
    assert not set(DIFFERENTIATED) & set(REGISTRY)


def test_hooks_of_a_stem_still_run():
    calls = []
    stem = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(2))
    for module in (stem, stem[0]):
        handle = module.register_forward_hook(lambda *_: calls.append(1))
        evaluate(stem, torch.rand(1, 1, 8, 8))
        handle.remove()
    assert len(calls) == 2


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("pool", [True, False])
def test_normalisation_folds_into_the_convolution(dim, bias, pool):
    """The affine map of the running statistics, also in training, and the same gradients."""
    if pool and dim == 3:
        pytest.skip("three-dimensional pooling is not folded")
    convolution = getattr(nn, f"Conv{dim}d")(2, 3, 3, bias=bias)
    after = [getattr(nn, f"AvgPool{dim}d")(2)] if pool else []
    norm = trained_norm(dim)
    original = nn.Sequential(convolution, norm, *after).double().eval()
    x = torch.randn(4, 2, *[8, 7, 6][:dim], dtype=torch.float64)
    g = torch.randn_like(expected := original(x))
    connection = Connection(nn.Sequential(convolution, FixedNormalisation(norm), *after).train(), 0, 1)
    assert len(connection._maps) == 1
    found = connection.apply(connection.tensors(), x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    parameters = list(original.parameters())
    for a, b in zip(*(torch.autograd.grad(y, parameters, g) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert_adjoint(connection, x.shape[1:])


@pytest.mark.parametrize(("dropout", "varies"), [(nn.Dropout(0.5), 400), (nn.Dropout2d(0.5), 16)])
def test_one_mask_for_all_samples(dropout, varies):
    """Drawn with the weights: zeros and 1 / (1 - p), the same for every call with these weights."""
    connection = Connection(nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), SharedDropout(dropout)).double(), 0, 1)
    x = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    tensors = connection.tensors(x.shape[1:])
    mask = tensors[-1]
    assert mask.numel() == varies
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    plain = connection.apply(connection.tensors(), x)
    torch.testing.assert_close(connection.apply(tensors, x), plain * mask)
    u, v = torch.randn_like(x), torch.randn_like(plain)
    ku = connection.apply(tensors, u) - connection.apply(tensors, torch.zeros_like(u))
    torch.testing.assert_close((ku * v).sum(), (u * connection.adjoint(tensors, v, u)).sum())
    assert not torch.equal(connection.tensors(x.shape[1:])[-1], mask)
    connection.eval()
    assert torch.equal(connection.tensors(x.shape[1:])[-1], torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("module", [nn.BatchNorm1d(4), nn.Dropout()])
def test_what_changes_from_step_to_step_is_refused(module):
    with pytest.raises(ValueError, match=r"ep_plugin\.modules\."):
        Connection(nn.Sequential(nn.Linear(4, 4), module), 0, 1)


def test_a_normalisation_without_statistics_is_refused():
    with pytest.raises(ValueError, match="track_running_stats=True"):
        FixedNormalisation(nn.BatchNorm2d(3, track_running_stats=False))


def test_the_adjoint_of_a_kept_maximum_is_taken_where_the_signal_is():
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)).double()
    connection = Connection(module, 0, 1)
    x = torch.randn(3, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    y = torch.randn(3, 4, dtype=torch.float64)
    (expected,) = torch.autograd.grad(module(x), x, y)
    found = connection.adjoint(connection.tensors(), y, x.detach())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_half_precision_around_a_module_that_is_differentiated():
    """What has no entry computes in float32 between products in bfloat16."""
    module = nn.Sequential(nn.ConvTranspose2d(2, 3, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 4))
    connection = Connection(module, 0, 1)
    x, y = torch.rand(3, 2, 4, 4), torch.rand(3, 4)
    tensors = connection.prepared(connection.tensors(), x.shape[1:], torch.bfloat16)
    up = connection.apply(tensors, x.bfloat16())
    down = connection.adjoint(tensors, y.bfloat16(), x.bfloat16())
    assert (up.dtype, down.dtype) == (torch.bfloat16, torch.bfloat16)
    torch.testing.assert_close(up.float(), module(x), rtol=0.05, atol=0.05)
    torch.testing.assert_close(down.float(), connection.adjoint(connection.tensors(), y, x), rtol=0.05, atol=0.05)
