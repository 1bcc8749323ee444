"""Parts of random nets of images: each is drawn for a shape `[C, L]` or `[C, H, W]`, without the batch.

A part is a module, or a function as a forward would write it. Those in `BENT` are not linear.
"""

import torch
import torch.nn.functional as F
from torch import nn


def _of(shape, name, home=nn):
    """The class or the function of a name for so many dimensions."""
    d = len(shape) - 1
    return getattr(home, f"{name}{d}d")


def _each(rng, shape, *numbers):
    """A number, the same for each dimension or one for each."""
    if len(shape) == 2 or rng.random() < 0.6:
        return rng.choice(numbers)
    return tuple(rng.choice(numbers) for _ in shape[1:])


def _groups(rng, shape):
    return rng.choice([g for g in (1, 1, 2, shape[0]) if shape[0] % g == 0])


def conv(rng, shape):
    groups = _groups(rng, shape)
    options = {
        "stride": _each(rng, shape, 1, 1, 2),
        "padding": _each(rng, shape, 0, 1, 1, 2),
        "dilation": _each(rng, shape, 1, 1, 2),
        "groups": groups,
        "bias": rng.random() < 0.7,
        "padding_mode": rng.choice(["zeros"] * 5 + ["circular", "reflect", "replicate"]),
    }
    if rng.random() < 0.2:
        options |= {"padding": rng.choice(["same", "valid"]), "stride": 1}
    module = _of(shape, "Conv")(shape[0], groups * rng.choice([1, 2, 3]), _each(rng, shape, 1, 2, 3, 3), **options)
    if max(module.kernel_size) == 1:  # PyTorch 2.14 crashes where such a kernel is dilated and padded
        module.dilation = (1,) * len(module.kernel_size)
    return module


def by_function(rng, shape):
    """A module's weights, in a function that the forward calls."""
    kind = rng.choice(["conv", "conv_transpose", "batch_norm"])
    if kind == "batch_norm":
        m = norm(rng, shape)
        return m, lambda h: F.batch_norm(h, m.running_mean, m.running_var, m.weight, m.bias)
    m, function = globals()[kind](rng, shape), _of(shape, kind, F)
    if kind == "conv_transpose":
        return m, lambda h: function(h, m.weight, m.bias, m.stride, m.padding, m.output_padding, m.groups, m.dilation)
    return m, lambda h: function(
        h, m.weight, bias=m.bias, stride=m.stride, padding=m.padding, dilation=m.dilation, groups=m.groups
    )


def conv_transpose(rng, shape):
    groups, stride = _groups(rng, shape), rng.choice([1, 2, 2])
    options = {
        "stride": stride,
        "padding": rng.choice([0, 0, 1]),
        "output_padding": rng.choice([0, stride - 1]),
        "groups": groups,
        "bias": rng.random() < 0.7,
        "dilation": rng.choice([1, 1, 2]),
    }
    return _of(shape, "ConvTranspose")(shape[0], groups * rng.choice([1, 2]), rng.choice([2, 3]), **options)


def norm(rng, shape):
    made = _of(shape, "BatchNorm")(shape[0], affine=rng.random() < 0.7)
    made.running_mean.uniform_(-0.1, 0.1)
    made.running_var.uniform_(0.5, 1.5)
    return made


def _pooling(rng, shape):
    kernel = _each(rng, shape, 2, 2, 3)
    padding = rng.choice([0, 0, 1])
    return {
        "kernel_size": kernel,
        "stride": rng.choice([None, None, 1, 2]),
        "padding": padding,
        "ceil_mode": rng.random() < 0.3,
    }


def average_pool(rng, shape):
    return _of(shape, "AvgPool")(**_pooling(rng, shape), count_include_pad=rng.random() < 0.5)


def average_pool_function(rng, shape):
    function, options = _of(shape, "avg_pool", F), _pooling(rng, shape)
    kernel, stride = options.pop("kernel_size"), options.pop("stride")
    return rng.choice(
        [
            lambda h: function(h, kernel, stride, **options),
            lambda h: function(h, kernel_size=kernel, stride=stride),
            lambda h: function(input=h, kernel_size=kernel, **options),
        ]
    )


def max_pool(rng, shape):
    return _of(shape, "MaxPool")(**_pooling(rng, shape), dilation=rng.choice([1, 1, 1, 2]))


def max_pool_function(rng, shape):
    function, kernel = _of(shape, "max_pool", rng.choice([F, torch])), _each(rng, shape, 2, 3)
    stride, padding = rng.choice([1, 2, kernel]), rng.choice([0, 1])
    return lambda h: function(h, kernel, stride=stride, padding=padding)


def _places(rng, shape):
    return _each(rng, shape, 1, 2, 3, 4)


def adaptive_average(rng, shape):
    places, function = _places(rng, shape), _of(shape, "adaptive_avg_pool", F)
    return rng.choice([_of(shape, "AdaptiveAvgPool")(places), lambda h: function(h, places)])


def adaptive_max(rng, shape):
    places, function = _places(rng, shape), _of(shape, "adaptive_max_pool", F)
    return rng.choice([_of(shape, "AdaptiveMaxPool")(places), lambda h: function(h, output_size=places)])


def upsample(rng, shape):
    mode = rng.choice(["nearest", "nearest-exact", "linear" if len(shape) == 2 else "bilinear"])
    options = {"align_corners": rng.random() < 0.5} if "linear" in mode else {}
    return rng.choice(
        [
            nn.Upsample(scale_factor=2, mode=mode, **options),
            nn.Upsample(tuple(n + 1 for n in shape[1:]), mode=mode, **options),
            lambda h: F.interpolate(h, scale_factor=2, mode=mode, **options),
            lambda h: F.interpolate(h, size=tuple(n + 2 for n in shape[1:]), mode=mode, **options),
        ]
    )


def pad(rng, shape):
    sizes = [rng.choice([0, 1, 2]) for _ in range(2 * len(shape[1:]))]
    return rng.choice(
        [
            _of(shape, "ZeroPad")(tuple(sizes)),
            _of(shape, "ConstantPad")(1, 0.3),
            _of(shape, "ReplicationPad")(1),
            lambda h: F.pad(h, sizes),
            lambda h: F.pad(h, tuple(sizes), value=0.2),
            lambda h: F.pad(h, (1, 1) * len(shape[1:]), mode="circular"),
        ]
    )


def crop(rng, shape):
    channel = rng.randrange(shape[0])
    return rng.choice(
        [
            lambda h: h[:, :, 1:],
            lambda h: h[..., :-1],
            lambda h: h[:, :, ::2],
            lambda h: h[:, channel:],
            lambda h: h[:, [channel, 0]],
            lambda h: h[:, channel].unsqueeze(1),
            lambda h: h[:, channel, None],
            lambda h: h.narrow(2, 1, shape[1] - 1),
            lambda h: h.chunk(2, dim=1)[0],
            lambda h: torch.split(h, [1, shape[0] - 1], 1)[1],
            lambda h: h.unbind(1)[channel].unsqueeze(1),
        ]
    )


def rearranged(rng, shape):
    half = shape[0] // 2
    return rng.choice(
        [
            lambda h: h.flip(-1),
            lambda h: torch.roll(h, 1, dims=2),
            lambda h: h.transpose(1, 2),
            lambda h: h.transpose(-1, -2) if len(shape) == 3 else h.permute(0, 2, 1),
            lambda h: h.unflatten(1, (2, half)).transpose(1, 2).flatten(1, 2),
            lambda h: h.view(h.size(0), 2, half, *shape[1:]).transpose(1, 2).reshape(h.size(0), *shape),
            lambda h: h.reshape(len(h), shape[0], -1).unflatten(2, shape[1:]),
            lambda h: h.repeat_interleave(2, dim=1),
            lambda h: h.repeat(1, 2, *[1] * len(shape[1:])),
            nn.Unflatten(1, (1, shape[0])) if len(shape) == 2 else nn.PixelShuffle(2),
            nn.PixelUnshuffle(2) if len(shape) == 3 else nn.Identity(),
            nn.ChannelShuffle(2),
        ]
    )


def scaled(rng, shape):
    number = rng.choice([0.5, 2, -0.7])
    gain = torch.rand(shape[0], *[1] * len(shape[1:])) + 0.5
    return rng.choice(
        [
            lambda h: h * number,
            lambda h: 1.5 - h,
            lambda h: h / 2 + 0.1,
            lambda h: torch.add(h, h, alpha=0.5),
            lambda h: h * gain,
            lambda h: h + gain,
            rng.choice([nn.Dropout(0.4), _of(shape, "Dropout")(0.4)]),
            lambda h: h.contiguous().clone(),
        ]
    )


class Block(nn.Module):
    """A module of the user's, with a forward of its own: several paths, pooled by a function."""

    def __init__(self, rng, shape):
        super().__init__()
        self.one, self.two = (_of(shape, "Conv")(shape[0], 2, k, padding=k // 2) for k in (1, 3))
        self.norm, self.pool = norm(rng, (4, *shape[1:])), _of(shape, "avg_pool", F)
        self.last = _of(shape, "Conv")(shape[0], 4, 1)

    def forward(self, x):
        h = torch.cat([self.one(x), self.two(x)], dim=1)
        return self.pool(self.norm(h) + self.last(x), 2)


def bent(rng, shape):
    """Piecewise linear, entry by entry."""
    return rng.choice([nn.ReLU(), nn.LeakyReLU(0.2), nn.Hardtanh(0.0, 0.8), F.relu, lambda h: h.clamp(0, 1)])


def smooth(rng, shape):
    """May stand before the first neuron only."""
    # PyTorch normalizes no single number of a single sample.
    norm = nn.GroupNorm(1, shape[0]) if max(shape) > 1 else nn.Tanh()
    return rng.choice([torch.tanh, norm, nn.Sigmoid(), lambda h: h.amax(1, keepdim=True)])


PARTS = {
    **{
        "conv": conv,
        "conv_transpose": conv_transpose,
        "norm": norm,
        "by_function": by_function,
        "block": Block,
        "upsample": upsample,
    },
    **{"average_pool": average_pool, "average_pool_function": average_pool_function},
    **{"max_pool": max_pool, "max_pool_function": max_pool_function},
    **{"adaptive_average": adaptive_average, "adaptive_max": adaptive_max},
    **{"pad": pad, "crop": crop, "rearranged": rearranged, "scaled": scaled, "bent": bent, "smooth": smooth},
}
OFTEN = {"conv": 6, "smooth": 0.3, "block": 0.7, "bent": 0.5, "max_pool_function": 0.5, "rearranged": 2, "crop": 2}
BENT = {"max_pool", "max_pool_function", "adaptive_max", "bent", "smooth"}
"""Not linear, so that what they make of spikes is not what they make of rates."""


def flattened(rng, shape):
    """To one axis: with all entries, or those of each channel averaged."""
    entries, last = torch.Size(shape).numel(), -len(shape)
    dims = tuple(range(2, len(shape) + 1))
    return rng.choice(
        [
            nn.Flatten(),
            lambda h: h.flatten(1),
            lambda h: h.flatten(start_dim=1),
            lambda h: torch.flatten(h, 1),
            lambda h: torch.flatten(h, start_dim=1, end_dim=-1),
            lambda h: torch.flatten(input=h, start_dim=1),
            lambda h: h.reshape(shape=(h.size(0), -1)),
            lambda h: h.flatten(1, len(shape)),
            lambda h: h.flatten(last),
            lambda h: h.flatten(2).flatten(1),
            lambda h: h.reshape(h.size(0), -1),
            lambda h: h.reshape(h.shape[0], entries),
            lambda h: h.reshape((len(h), -1)),
            lambda h: torch.reshape(h, (h.shape[0], -1)),
            lambda h: h.contiguous().view(h.size(0), -1),
            lambda h: h.contiguous().view(-1, entries),
            lambda h: h.reshape(-1, entries),
            lambda h: h.unflatten(1, (shape[0], 1)).flatten(1),
            lambda h: h.mean(dims),
            lambda h: torch.mean(h, dim=dims),
            lambda h: h.sum(dim=list(dims)) / 4,
            lambda h: h.mean(-1).flatten(1),
            lambda h: h.flatten(2).mean(2),
            lambda h: h.flatten(2).mean(dim=-1, keepdim=True).squeeze(-1),
            lambda h: _of(shape, "adaptive_avg_pool", F)(h, 1).flatten(1),
        ]
    )
