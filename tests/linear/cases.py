"""A module of every kind that may stand between neurons, with random settings, and the shape of its input."""

import snntorch as snn
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import ep_plugin.conversion.adapters.snntorch  # noqa: F401  (it registers what recurrent neurons keep)
from ep_plugin.conversion.between import LinearPart
from ep_plugin.conversion.functions import Function, Slot
from ep_plugin.conversion.linear_functions import Held, LinearFunction, as_linear, constant
from ep_plugin.conversion.plan import Input, Joined
from ep_plugin.linear.concatenation import Concatenation, Placement
from ep_plugin.linear.dense import FlattenedTo
from ep_plugin.linear.modules import FixedNormalization, Scale, SharedDropout

ints = st.integers


def sizes(draw, dim, low, high):
    return tuple(draw(ints(low, high)) for _ in range(dim))


def of_dimension(kind, dim):
    return getattr(nn, f"{kind}{dim}d")


@st.composite
def convolution(draw, dim):
    groups = draw(ints(1, 2))
    padding = draw(st.sampled_from([0, 1, 2, "same", "valid"]))
    module = of_dimension("Conv", dim)(
        2 * groups,
        3 * groups,
        sizes(draw, dim, 1, 4),
        stride=1 if padding == "same" else sizes(draw, dim, 1, 3),
        padding=padding,
        dilation=draw(ints(1, 2)),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "zeros", "zeros", "circular"])),
    )
    return module, [2 * groups, *sizes(draw, dim, 7, 11 if dim < 3 else 8)]


@st.composite
def transposed(draw, dim):
    groups, stride = draw(ints(1, 2)), draw(ints(1, 3))
    module = of_dimension("ConvTranspose", dim)(
        2 * groups,
        3 * groups,
        draw(ints(1, 3)),
        stride=stride,
        padding=draw(ints(0, 1)),
        output_padding=draw(ints(0, stride - 1)),
        groups=groups,
        bias=draw(st.booleans()),
    )
    return module, [2 * groups, *sizes(draw, dim, 3, 5)]


@st.composite
def average_pool(draw, dim):
    kernel = draw(ints(1, 3))
    options = {"ceil_mode": draw(st.booleans()), "count_include_pad": draw(st.booleans())}
    if dim > 1:
        options["divisor_override"] = draw(st.sampled_from([None, 3]))
    pool = of_dimension("AvgPool", dim)(kernel, draw(ints(1, 3)), draw(ints(0, kernel // 2)), **options)
    return pool, [2, *sizes(draw, dim, 4, 9 if dim < 3 else 6)]


@st.composite
def max_pool(draw, dim):
    """Windows that overlap, leave gaps, or hang over the border."""
    kernel = draw(ints(1, 3))
    pool = of_dimension("MaxPool", dim)(
        kernel, draw(ints(1, 3)), draw(ints(0, kernel // 2)), draw(ints(1, 2)), ceil_mode=draw(st.booleans())
    )
    return pool, [2, *sizes(draw, dim, 5, 9 if dim < 3 else 6)]


@st.composite
def adaptive(draw, kind, dim):
    module = of_dimension(f"Adaptive{kind}Pool", dim)(sizes(draw, dim, 1, 5))
    return module, [2, *sizes(draw, dim, 4, 9 if dim < 3 else 6)]


@st.composite
def padding(draw, kind, dim):
    value = [draw(st.sampled_from([0.0, 1.5]))] if kind == "Constant" else []
    return of_dimension(f"{kind}Pad", dim)(sizes(draw, 2 * dim, 0, 2), *value), [2, *sizes(draw, dim, 3, 5)]


@st.composite
def normalization(draw):
    dim, offset = draw(ints(1, 3)), draw(st.booleans())
    norm = trained_norm(dim, affine=draw(st.booleans()))
    return FixedNormalization(norm, offset), [3, *[4] * (dim if dim > 1 else 0)]


def trained_norm(dim, channels=3, affine=True):
    """A batch normalization that has seen data."""
    norm = of_dimension("BatchNorm", dim)(channels, affine=affine)
    nn.init.uniform_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    for p in norm.parameters():
        nn.init.uniform_(p, -1, 1)
    return norm


def one(make, *shape):
    """A module without settings."""
    return st.builds(lambda: (make(), list(shape)))


def elementwise(make, *settings):
    return st.builds(lambda *a: (make(*a[:-1], inplace=a[-1]), [3, 4]), *settings, st.booleans())


def placed(part, dim, *shapes):
    """A part of a concatenation that has been measured."""
    concatenation = Concatenation("the concatenation", dim, len(shapes))
    concatenation.measured(shapes)
    return Placement(concatenation, part)


@st.composite
def placement(draw):
    shape, parts = list(sizes(draw, draw(ints(1, 3)), 1, 4)), draw(ints(1, 3))
    axis = draw(ints(0, len(shape) - 1))
    shapes = [(*shape[:axis], draw(ints(1, 4)), *shape[axis + 1 :]) for _ in range(parts)]
    part = draw(ints(0, parts - 1))
    dim = draw(st.sampled_from([axis + 1, axis - len(shape)]))
    return placed(part, dim, *shapes), list(shapes[part])


FUNCTIONS = [
    (torch.flip, (Slot(0), (1,)), {}),
    (Tensor.narrow, (Slot(0), 1, 1, 2), {}),
    (Tensor.transpose, (Slot(0),), {"dim0": 1, "dim1": -1}),
    (torch.mean, (Slot(0), -1), {"keepdim": True}),
    (torch.matmul, (Slot(0), Slot(1)), {}),
    (torch.sub, (Slot(1), Slot(0)), {}),
]


def function(called):
    """A function of a tensor [3, 4], and of a parameter."""
    slots = [Input(), constant("weight", Held(nn.Parameter(torch.linspace(-1, 1, 16).view(4, 4)[-3:].mT[:, :3])))]
    if called[0] is torch.sub:
        slots[1] = constant("weight", Held(nn.Parameter(torch.linspace(-1, 1, 4))))
    signal = Joined("f", Function(*called), tuple(slots[: 1 + (Slot(1) in called[1])]))
    return as_linear(signal, "a function")[0]


RECURRENT = (
    lambda: snn.RLeaky(0.5, V=0.3, all_to_all=False),
    lambda: snn.RSynaptic(0.5, 0.5, V=0.3, all_to_all=False),
)

CASES = {
    nn.Linear: st.builds(
        lambda i, o, b, extra: (nn.Linear(i, o, bias=b), [*extra, i]),
        *(ints(1, 6), ints(1, 6), st.booleans(), st.sampled_from([[], [3]])),
    ),
    **{of_dimension("Conv", d): convolution(d) for d in (1, 2, 3)},
    **{of_dimension("ConvTranspose", d): transposed(d) for d in (1, 2, 3)},
    **{of_dimension("AvgPool", d): average_pool(d) for d in (1, 2, 3)},
    **{of_dimension("MaxPool", d): max_pool(d) for d in (1, 2, 3)},
    **{of_dimension(f"Adaptive{k}Pool", d): adaptive(k, d) for k in ("Avg", "Max") for d in (1, 2, 3)},
    **{
        of_dimension(f"{kind}Pad", d): padding(kind, d)
        for kind in ("Zero", "Circular", "Constant", "Reflection", "Replication")
        for d in (1, 2, 3)
    },
    nn.PixelShuffle: one(lambda: nn.PixelShuffle(2), 4, 3, 3),
    nn.ChannelShuffle: one(lambda: nn.ChannelShuffle(2), 4, 2, 3),
    nn.PixelUnshuffle: one(lambda: nn.PixelUnshuffle(2), 2, 4, 6),
    nn.Upsample: st.builds(
        lambda mode: (nn.Upsample(scale_factor=2, mode=mode), [2, 3, 4]),
        st.sampled_from(["nearest", "bilinear", "bicubic"]),
    ),
    nn.UpsamplingNearest2d: one(lambda: nn.UpsamplingNearest2d(scale_factor=3), 2, 3, 4),
    nn.UpsamplingBilinear2d: one(lambda: nn.UpsamplingBilinear2d(size=(5, 7)), 2, 3, 4),
    nn.Flatten: st.builds(lambda end: (nn.Flatten(1, end), [2, 3, 4]), st.sampled_from([-1, 2])),
    FlattenedTo: st.builds(lambda n: (FlattenedTo(6 * n), [2, 3, n]), ints(1, 4)),
    nn.Unflatten: one(lambda: nn.Unflatten(1, (2, 3)), 6, 4),
    nn.Identity: one(nn.Identity, 4),
    nn.ReLU: elementwise(nn.ReLU),
    nn.ReLU6: elementwise(nn.ReLU6),
    nn.LeakyReLU: elementwise(nn.LeakyReLU, st.sampled_from([0.01, 0.5])),
    nn.Hardtanh: elementwise(nn.Hardtanh, st.sampled_from([-1.0, 0.1]), st.sampled_from([0.5, 2.0])),
    Scale: one(lambda: Scale(2.5), 4),
    FixedNormalization: normalization(),
    SharedDropout: one(lambda: SharedDropout(nn.Dropout()).eval(), 4),
    Placement: placement(),
    LinearFunction: st.builds(lambda called: (function(called), [3, 4]), st.sampled_from(FUNCTIONS)),
    LinearPart: one(lambda: LinearPart(nn.Linear(4, 3)), 4),
    **{type(make().recurrent): one(lambda make=make: make().recurrent, 4) for make in RECURRENT},
}
"""Kind -> strategy of (module, shape of its input without the batch)."""
